"""What counts as an image file, and reading one, whatever its format and mode."""
import ctypes
import errno
import io
import os
import re
import struct
import threading
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from datasets.ink import is_dark, is_drawn_light
from utils.system.errors import RunError

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
LONGEST = 2 ** 15   # pixels of a side
MOST_VALUES = 2 ** 29   # pixels times channels: 179 million pixels of RGB take some 2 GB in all
PNG, TEXTS = b'\x89PNG\r\n\x1a\n', (b'iCCP', b'iTXt', b'tEXt', b'zTXt')


LIBTIFF = threading.local()     # has_failed: whether it reported an error in this thread


@ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
def _note_error(*_):
    """The TIFFErrorHandler, in place of the one that prints on stderr without the file's name."""
    LIBTIFF.has_failed = True


with suppress(AttributeError, OSError):     # where Pillow does not export libtiff
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(_note_error)


class ImageError(RunError):
    """An image that cannot be read; str() is one sentence that names the file.

    A DataLoader worker passes its exceptions on as type(text of the whole traceback), which ends
    with '...ImageError: <sentence>': only the sentence is kept.
    """

    def __init__(self, message: str):
        super().__init__(message.rpartition('ImageError: ')[2].strip())


def has_image_name(path: str | Path) -> bool:
    """Whether the name of a file says that it is an image, in upper or lower case."""
    return os.fspath(path).lower().endswith(SUFFIXES)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not data: hidden, or named like those of systems and tools."""
    return (name.startswith('.') and name not in ('.', '..') or name.casefold() in NOT_DATA
            or NOT_DATA_PATTERN.fullmatch(name) is not None)


def read_image(path: str | Path, channels: int, upright: bool = True, enough: int = LONGEST,
               ink: str | None = 'dark') -> Image.Image:
    """The image file at `path` as a PIL image, as as_channels returns it. Raises ImageError.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, which is faster, where its shorter side keeps
    `enough` pixels.
    """
    return decode(path, channels, path, upright, enough, ink)


def decode(file: str | Path | BinaryIO, channels: int, name: str | Path, upright: bool = True,
           enough: int = LONGEST, ink: str | None = 'dark') -> Image.Image:
    """As read_image, from a path or an open binary file; `name` is what an ImageError calls it."""
    Image.MAX_IMAGE_PIXELS = None       # of Pillow, for crops too; the limits here are our own
    options = channels, upright, enough, ink
    try:
        try:
            return _decode(file, *options)
        except ImageError:
            raise
        except ValueError as error:     # Pillow's, of a PNG with long texts and of damaged files
            return _decode(_without_long_texts(file, error), *options)
    except MemoryError:
        raise       # says nothing about the image
    except Exception as error:  # on bad input Pillow raises nearly every type there is
        if getattr(error, 'errno', None) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        raise ImageError(f'cannot read the image {name}: {reason(error)}') from None


def _decode(file, channels, upright, enough, ink):
    with Image.open(file) as image:
        if max(image.size) > LONGEST:
            raise ImageError(f'it is {image.width} × {image.height} pixels, and a side can have '
                             f'{LONGEST}')
        image.draft(None, (enough, enough))
        needs_4 = image.has_transparency_data or image.mode.startswith(('I', 'F'))
        values = 4 if needs_4 else max(len(image.getbands()), channels)
        if image.width * image.height * values > MOST_VALUES:
            raise ImageError(f'it is {image.width} × {image.height} pixels of {values} channels, '
                             f'and can have {MOST_VALUES // values // 10 ** 6} million')
        LIBTIFF.has_failed = False
        image.load()
        if LIBTIFF.has_failed:
            raise ImageError('it is damaged')
        return as_channels(image, channels, upright, ink)


def _without_long_texts(file, error):
    """The PNG `file` in memory, without the texts and color profiles that Pillow finds too long.

    Pillow decompresses the first megabyte of each. Raises `error` where the file is not a PNG.
    """
    is_path = isinstance(file, str | Path)
    with open(file, 'rb') if is_path else nullcontext(file) as source:
        size = source.seek(0, os.SEEK_END)
        source.seek(0)
        if source.read(len(PNG)) != PNG:
            raise error
        texts, kept = PngImagePlugin.PngStream(source), [PNG]
        while len(header := source.read(8)) == 8:
            length, kind = struct.unpack('>I4s', header)
            start, end = source.tell(), source.tell() + length + 4
            try:
                if kind in TEXTS:
                    texts.call(kind, start, length)
                source.seek(start)
                kept += header, source.read(min(end, size) - start)
            except ValueError:
                source.seek(end)
    return io.BytesIO(b''.join(kept))


def reason(error: Exception) -> str:
    """Why a file cannot be read, in one line without its name."""
    if isinstance(error, UnidentifiedImageError):
        return 'it is damaged, or not in a format that Pillow reads'
    text = getattr(error, 'strerror', None) or str(error)
    return ' '.join(text.split()) or type(error).__name__


def as_channels(image: Image.Image, channels: int, upright: bool = True,
                ink: str | None = 'dark') -> Image.Image:
    """The PIL image `image` of any mode in mode 'RGB' (3 channels), or a sketch in 'L' (1 channel).

    Sketches become dark on light. ink, one of INK, says how they are drawn and what is behind the
    transparent parts; other images get a white ground.

        dark    on a white ground
        light   on a black ground; all is inverted
        auto    light where most of it is dark; where parts are transparent, see is_drawn_light
        None    undecided: as it is, in mode 'LA' where parts are transparent

    Of an animation it is the frame that `image` shows, the first one after opening. With `upright`
    the image is turned as its EXIF orientation says, as viewers show it. Gray images of more than 8
    bits are scaled to 0..255:

        16-bit modes, and mode 'I' of a PGM file    divided by 257
        other images of mode 'I' (32-bit integers)  as they are if all values lie in 0..255,
                                                    divided by 257 if they lie in 0..65535
        mode 'F'                                    times 255 if all lie in 0..1, else as 'I'

    Raises ImageError where the values lie in none of these ranges.
    """
    if upright:
        image = _turned_upright(image)
    if image.mode == 'F' or image.mode.startswith('I'):
        image = _in_8_bits(image)
    if image.mode == 'LAB':     # which Pillow converts to RGB only
        image = image.convert('RGB')
    image = _sketch(image, ink) if channels == 1 else _on_white(image).convert('RGB')
    image.info = {}     # neither an orientation nor a transparent color holds for it any more
    return image


def _sketch(image, ink):
    """The image in mode 'L' on its ground, inverted as `ink` says; see as_channels."""
    is_light = ink == 'light'
    if image.has_transparency_data:
        image = image.convert('RGBA').convert('LA')     # Pillow loses RGB's transparent color to LA
    if image.mode != 'LA' or image.getextrema()[1][0] == 255:
        gray = image.convert('L')
        is_light = is_light or ink == 'auto' and is_dark(gray)
    elif ink is None:
        return image
    else:
        is_light = is_light or ink == 'auto' and is_drawn_light(image)
        gray, alpha = image.split()
        gray = Image.composite(gray, Image.new('L', gray.size, 0 if is_light else 255), alpha)
    return ImageOps.invert(gray) if is_light else gray


def _on_white(image):
    """The image with white behind its transparent parts."""
    if image.has_transparency_data:
        image = image.convert('RGBA')
        return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image


def _turned_upright(image):
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return ImageOps.exif_transpose(image)
    except Exception:   # damaged EXIF says nothing; Pillow raises many types on it
        pass
    return image


def _in_8_bits(image):
    """A gray image of a wider mode, scaled as the docstring of as_channels says."""
    values = np.asarray(image, np.float32)
    low, high = values.min(), values.max()
    if image.mode.startswith('I;') or image.format == 'PPM' and image.mode == 'I':
        scale = 1 / 257
    elif 0 <= low and high <= 65535:
        scale = 255 if high <= 1 and image.mode == 'F' else 1 if high <= 255 else 1 / 257
    else:       # NaN too
        raise ImageError(f'its values lie in {low:g}..{high:g}, and not in 0..65535')
    gray = Image.fromarray((values * np.float32(scale)).round().astype(np.uint8))
    if 'transparency' in image.info:
        gray.putalpha(Image.fromarray(values != image.info['transparency']).convert('L'))
    return gray
