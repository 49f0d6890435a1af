"""Names of classes: the same letters are the same name, whatever the Unicode form of the folder.

A Mac may store é as e and an accent (NFD) where Linux and Windows store one character (NFC).
"""
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path

from utils.system.errors import InputError


def nfc(name: str) -> str:
    """The name, or path, in the Unicode form NFC, in which names are compared and recorded."""
    return unicodedata.normalize('NFC', name)


def by_class(folders: Iterable[str], place: str | Path) -> dict[str, str]:
    """{class: name of its folder in `place`}. Raises InputError where two are the same class."""
    found: dict[str, str] = {}
    for folder in folders:
        if (other := found.setdefault(nfc(folder), folder)) != folder:
            raise InputError(f'{place} has the class {nfc(folder)} twice, in the folders '
                             f'{ascii(other)} and {ascii(folder)}, which are the same letters in '
                             'two Unicode forms: put their images into one')
    return found


def shown(name: str, others: Collection[str]) -> str:
    """The name as a sentence shows it: with escapes where one of the others looks like it."""
    return ascii(name) if any(looks_like(name, other) for other in others) else name


def looks_like(one: str, other: str) -> bool:
    """Whether two different names may look alike: by invisible characters, or other scripts."""
    if one == other:
        return False
    one, other = (''.join(character for character in unicodedata.normalize('NFKC', name)
                          if unicodedata.category(character)[0] not in 'CZ')
                  for name in (one, other))
    return len(one) == len(other) and all(
        a == b or not (a + b).isascii() and script(a) != script(b) for a, b in zip(one, other))


def script(character: str) -> str:
    """LATIN, CYRILLIC, GREEK, …"""
    return unicodedata.name(character, '').partition(' ')[0]


def require_same(train: Path, train_classes: set[str], other: Path, other_classes: set[str]):
    """Raise InputError where two splits, named by their folders, have different classes."""
    only = train_classes - other_classes, other_classes - train_classes
    found = [f'only {split} has {summary(names, others)}'
             for split, names, others in zip((train, other), only, reversed(only)) if names]
    if found:
        what = 'test' if other.name == 'test' else 'validation'
        raise InputError(f'train and {what} must have the same classes, '
                         f'but {" and ".join(found)}')


def summary(names: Collection[str], others: Collection[str] = ()) -> str:
    """The first of the names and how many more there are; see shown."""
    first, *more = sorted(names)
    return shown(first, others) + (f' (and {len(more)} more)' if more else '')
