"""Which images a split has: their names, and hashes that tell them from others."""
import hashlib
import os
import unicodedata

from datasets import cache, folders, transforms
from datasets.squares import Squares


def fingerprint(images: transforms.Transformed) -> str:
    """A key of the images, which changes where their files do."""
    if isinstance(images.images, cache.CachedSquares):
        return images.images.key.hex()
    folder = folder_of(images)
    return cache.fingerprint(folder) if folder else str(len(images))


def image_names(images: transforms.Transformed, below: bool = False) -> list[str]:
    """The paths of the images, or their numbers, from 0, where they are not files of their own.

    below: the paths below the folder of their split.
    """
    folder = folder_of(images)
    if folder is None:
        return [str(number) for number in range(len(images))]
    paths = [os.fspath(path) for path, _ in folder.samples]
    root = f'{folder.root}{os.sep}' if below else ''
    return [path.removeprefix(root) for path in paths]


def names_digest(images: transforms.Transformed, form: str = 'NFC') -> str:
    """A hash of the names of the images in their folder, which stays where the folder is moved.

    form: the Unicode form of the names; older versions took that of the files.
    """
    names = '\0'.join(image_names(images, below=True)).replace(os.sep, '/')
    names = unicodedata.normalize(form, names)
    return hashlib.sha256(names.encode(errors='surrogateescape')).hexdigest()[:16]


def folder_of(images: transforms.Transformed) -> folders.Folder | None:
    """The Folder that the images come from, None for the program's drawings and official files."""
    source = images.images
    if isinstance(source, Squares | cache.CachedSquares):
        source = source.images
    return source if isinstance(source, folders.Folder) else None
