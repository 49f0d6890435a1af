"""Read an image, whatever its format, mode and ink: sketches become dark on light."""
import ctypes
import errno
import io
import os
import struct
import threading
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from utils.system.errors import RunError

LONGEST = 2 ** 15   # pixels of a side
MOST_VALUES = 2 ** 29   # pixels times channels: 179 million pixels of RGB take some 2 GB in all
DARK, BLACK, WHITE = 128, 64, 240   # gray values: below the first two, from the last on
CONTRAST = 32   # gray values by which ink differs from its ground
SHEET = 0.9     # what covers more of its rectangle is a sheet of paper, perhaps with round corners
MIXED = 0.02    # the share of dark parts from which a cutout is a drawing with light fill
HINTS = {       # what may help where sketches are dark or have hardly any ink, by --ink
    'auto': '',
    'dark': '; light strokes on a dark or transparent ground need --ink=light or --ink=auto',
    'light': '; dark strokes on a light or transparent ground need --ink=dark or --ink=auto'}
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


def is_dark(sketch: Image.Image) -> bool:
    """Whether more than half of the pixels of a sketch (mode 'L') are dark."""
    counts = sketch.histogram()
    return sum(counts[:DARK]) > sum(counts) / 2


def is_blank(sketch: Image.Image) -> bool:
    """Whether a sketch (mode 'L') has hardly any ink, as an empty sheet, faint or with a speck.

    Ink is what differs from the median gray by CONTRAST. A sketch has more pixels of it than a line
    of a quarter of the shorter side; the outer sixteenth, where scans have edges, does not count.
    """
    width, height = sketch.size
    counts = np.array(sketch.crop((width // 16, height // 16, width - width // 16,
                                   height - height // 16)).histogram())
    median = np.searchsorted(counts.cumsum(), counts.sum() / 2)
    ink = counts[abs(np.arange(256) - median) >= CONTRAST].sum()
    return bool(ink < min(width, height) / 4)


def is_drawn_light(sketch: Image.Image) -> bool:
    """Whether a sketch (mode 'LA') with transparent parts is drawn light, on a dark ground.

    Its opaque parts decide, those at least half as opaque as the most opaque. Where they cover
    nearly all, they are a sheet: as without transparency, it is light where most of it is dark.
    Elsewhere they are the drawing: it is light where hardly any part is dark. So white chalk and
    white silhouettes are light; black strokes, black shapes with white eyes, and stickers with
    a black outline and a white fill are dark.
    """
    gray, alpha = sketch.split()
    half = alpha.getextrema()[1] // 2
    counts = gray.histogram(alpha.point(lambda value: 255 * (value > half)))
    opaque, dark = sum(counts), sum(counts[:DARK])
    if opaque > SHEET * gray.width * gray.height:
        return dark > opaque / 2
    return dark < MIXED * opaque


def paper_fault(sketch: Image.Image, ink: str = 'dark') -> str | None:
    """Why a sketch, as read_image returns it for this --ink, is not dark on white paper, or None.

    Paper is the brightest tenth of each of 8 x 8 fields. It counts as gray where it is neither
    white nor black, as in a field that is filled with ink. More than a quarter of gray fields is a
    fault: a pen of 5 pixels on 150 leaves fewer, and a shadow on half of the sheet more.
    """
    if is_blank(sketch):
        return f'has hardly any ink{HINTS[ink]}'
    if is_dark(sketch):
        if ink == 'light':
            return f'is mostly dark once --ink=light has inverted it{HINTS[ink]}'
        return ('is mostly dark: networks of sketches expect dark strokes on white paper'
                f'{HINTS[ink]}')
    pixels = np.asarray(sketch.resize((64, 64), Image.BOX))
    fields = pixels.reshape(8, 8, 8, 8).swapaxes(1, 2).reshape(64, 64)
    paper = np.quantile(fields, 0.9, axis=1)
    if ((BLACK <= paper) & (paper < WHITE)).mean() > 0.25:
        return ('is not on white paper: networks of sketches expect it; '
                'make the background of a photograph white first')
    return None
