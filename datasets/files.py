"""Which files are images, and which of a folder's files and folders are not data."""
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from datasets.items import nfc
from utils.system.errors import InputError, naming, speaks_for_all
from utils.system.files import check_file

# Not PIL.Image.registered_extensions(), which also has videos, documents and scientific arrays.
SUFFIXES = tuple('.apng .avif .bmp .dib .gif .j2k .jfif .jp2 .jpe .jpeg .jpg .jpx .mpo .pbm .pcx '
                 '.pfm .pgm .png .pnm .ppm .qoi .tga .tif .tiff .webp'.split())
# Files and folders that systems and photo tools add to folders of images, in upper or lower case.
# Others, such as QNAP's .@__thumb, are hidden by the dot that their names begin with.
NOT_DATA = frozenset(map(str.casefold, [
    # macOS, in zip archives and on network volumes: github/gitignore, Global/macOS.gitignore
    '__MACOSX', 'Icon\r', 'Network Trash Folder', 'Temporary Items',
    # Windows: github/gitignore, Global/Windows.gitignore
    '$RECYCLE.BIN', 'System Volume Information', 'desktop.ini', 'ehthumbs.db', 'Thumbs.db',
    # ext4: syncthing/syncthing, lib/ignore/nukes_windows.go
    'lost+found',
    # Synology, reserved for the system: kb.synology.com, DSM help, File Station, Connect
    '@sharebin', '@tmp',
    # Synology: thumbnails in @eaDir/<image>/SYNOPHOTO_THUMB_*.jpg, deleted files, snapshots:
    # Sonarr/Sonarr, src/NzbDrone.Common/Disk/FileSystemLookupService.cs
    '@eaDir', '#recycle', '#snapshot',
    # QNAP, deleted files and snapshots: ShokoAnime/ShokoServer, its default IgnoredFolders
    '@Recycle', '@Recently-Snapshot',
    # NetApp and Hitachi, over SMB: knowledge.hitachivantara.com, Snapshot Administration Guide
    '~snapshot', '~snapsht',
    # ACDSee, images as they were before it changed them, in English and German:
    # help.acdsystems.com/de/acdsee-ultimate-16, How_files_are_saved.htm
    '[Originals]', '[Originale]']))
# More of them, in the case in which they are written: classes may be called recycler, as they may
# be called Originals or Thumbs, which are names of photo tools too.
NOT_DATA_PATTERN = re.compile(
    'RECYCLER'                      # Windows XP, deleted files
    r'|(FOUND|found)\.\d{3}'        # Windows, what chkdsk recovers
    r'|.*\.lrdata'                  # Lightroom: '<catalog> Previews.lrdata' by Adobe's help
    # Syncthing, the loser of two changes: docs.syncthing.net, Conflicting Changes
    r'|.*\.sync-conflict-\d{8}-\d{6}-[A-Z0-9]{7}(\..*)?', re.DOTALL)


def has_image_name(path: str | Path) -> bool:
    """Whether the name of a file says that it is an image, in upper or lower case."""
    return os.fspath(path).lower().endswith(SUFFIXES)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not data: hidden, or named like those of systems and tools."""
    return (name.startswith('.') and name not in ('.', '..') or name.casefold() in NOT_DATA
            or NOT_DATA_PATTERN.fullmatch(name) is not None)


def image_files(paths: Iterable[str | Path]) -> list[Path]:
    """The files among `paths` and, sorted, the images at any depth of the folders among them.

    Warns of files in the folders that are not images. Raises InputError for a path that does not
    exist and for a folder without images.
    """
    files = []
    for path in map(Path, paths):
        with naming(str(path)):
            is_folder = path.is_dir()
            found, others = images_and_others(path) if is_folder else ([path], [])
        if not is_folder:
            check_file(path, 'image')
        if not found:
            raise InputError(f'there are no images in {path}')
        warn_left_out(path, others, 'not an image')
        files += sorted(map(Path, found))
    return files


def files_below(folder: str | Path,
                parents: frozenset[tuple[int, int]] = frozenset()) -> Iterator[os.DirEntry]:
    """The files at any depth of `folder`, but no hidden ones and none in hidden folders.

    Links are followed, except from a folder back to one of its `parents` (device, inode). Raises
    OSError where a folder cannot be read.
    """
    status = os.stat(folder)
    here = status.st_dev, status.st_ino
    if here in parents:
        return
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not is_hidden(entry.name)]
    for entry in visible:
        if holds(entry.is_dir):
            yield from files_below(entry.path, parents | {here})
        else:
            yield entry


def is_image_file(entry: os.DirEntry) -> bool:
    """Whether it is named like an image and can be opened: no pipe, no link that leads nowhere."""
    return has_image_name(entry.name) and holds(entry.is_file)


def warn_left_out(root: str | Path, paths: Sequence[str], why: str):
    """Warn in one line that files below `root` are left out."""
    if paths:
        files = 'file is' if len(paths) == 1 else 'files are'
        warn(f'{root}: {len(paths)} {files} left out ({why}): {first_names(root, paths)}')


def first_names(root: str | Path, paths: Sequence[str]) -> str:
    """Three of the paths, below `root`, and how many more there are."""
    names = [os.path.relpath(path, root) for path in paths[:3]]
    names += [f'and {len(paths) - 3} more'] if len(paths) > 3 else []
    return ', '.join(names)


def warn(sentence: str):
    """Warn, of the processes that torchrun starts on a machine in the first only."""
    if speaks_for_all():
        warnings.warn(sentence)


def images_and_others(folder):
    """The paths of the images and of the other files at any depth of `folder`, in order."""
    images, others = [], []
    for entry in files_below(folder):
        (images if is_image_file(entry) else others).append(entry.path)
    return [sorted(paths, key=lambda path: os.path.split(nfc(path))) for paths in (images, others)]


def holds(test: Callable[[], bool]) -> bool:
    """test(), False where a link leads in a circle or where no one may look."""
    try:
        return test()
    except OSError:
        return False
