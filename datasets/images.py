"""What counts as an image file, and reading one, whatever its format and mode."""
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from utils.errors import RunError

# Not PIL.Image.registered_extensions(), which also has videos, documents and scientific arrays.
SUFFIXES = tuple('.apng .avif .bmp .dib .gif .j2k .jfif .jp2 .jpe .jpeg .jpg .jpx .mpo .pbm .pcx '
                 '.pfm .pgm .png .pnm .ppm .qoi .tga .tif .tiff .webp'.split())
LONGEST = 2 ** 15   # pixels of a side: a sketch is padded to a square
DARK, BLACK, WHITE = 128, 64, 240   # gray values: below the first two, from the last on


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
    """Whether a file or folder is not data: hidden, or what macOS adds to archives."""
    return name == '__MACOSX' or name.startswith('.') and name not in ('.', '..')


def read_image(path: str | Path, channels: int, upright: bool = True,
               enough: int = LONGEST) -> Image.Image:
    """The image file at `path` as a PIL image, as as_channels returns it. Raises ImageError.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, which is faster, where its shorter side keeps
    `enough` pixels.
    """
    return decode(path, channels, path, upright, enough)


def decode(file: str | Path | BinaryIO, channels: int, name: str | Path, upright: bool = True,
           enough: int = LONGEST) -> Image.Image:
    """As read_image, from a path or an open binary file; `name` is what an ImageError calls it."""
    try:
        with Image.open(file) as image:
            if max(image.size) > LONGEST:
                raise ImageError(f'it is {image.width} × {image.height} pixels, and a side can '
                                 f'have {LONGEST}')
            image.draft(None, (enough, enough))
            image.load()
            return as_channels(image, channels, upright)
    except MemoryError:
        raise       # says nothing about the image
    except Exception as error:  # on bad input Pillow raises nearly every type there is
        if getattr(error, 'errno', None) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        raise ImageError(f'cannot read the image {name}: {reason(error)}') from None


def reason(error: Exception) -> str:
    """Why a file cannot be read, in one line without its name."""
    if isinstance(error, UnidentifiedImageError):
        return 'it is damaged, or not in a format that Pillow reads'
    text = getattr(error, 'strerror', None) or str(error)
    return ' '.join(text.split()) or type(error).__name__


def as_channels(image: Image.Image, channels: int, upright: bool = True) -> Image.Image:
    """The PIL image `image` of any mode in mode 'L' (1 channel) or 'RGB' (3 channels).

    Transparent parts become white; of an animation it is the frame that `image` shows, the first
    one after opening. With `upright` the image is turned as its EXIF orientation says, as viewers
    show it. Gray images of more than 8 bits are scaled to 0..255:

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
    image = _on_white(image).convert('L' if channels == 1 else 'RGB')
    image.info = {}     # neither an orientation nor a transparent color holds for it any more
    return image


def is_dark(sketch: Image.Image) -> bool:
    """Whether more than half of the pixels of a sketch (mode 'L') are dark."""
    counts = sketch.histogram()
    return sum(counts[:DARK]) > sum(counts) / 2


def dark_on_light(sketch: Image.Image) -> Image.Image:
    """The sketch (mode 'L'), inverted if most of it is dark."""
    return ImageOps.invert(sketch) if is_dark(sketch) else sketch


INK: dict[str, Callable | None] = {     # from a sketch (mode 'L') to dark on light, by --ink
    'auto': dark_on_light,
    'dark': None,       # as published
    'light': ImageOps.invert,
}


def paper_fault(sketch: Image.Image, ink: str = 'dark') -> str | None:
    """Why a sketch (mode 'L'), read by --ink, is not dark on white paper; None where it is.

    Paper is the brightest tenth of each of 8 x 8 fields. It counts as gray where it is neither
    white nor black, as in a field that is filled with ink. More than a quarter of gray fields is a
    fault: a pen of 5 pixels on 150 leaves fewer, and a shadow on half of the sheet more.
    """
    if make_dark_on_light := INK[ink]:
        sketch = make_dark_on_light(sketch)
    if is_dark(sketch):
        if ink == 'light':
            return 'is mostly dark once --ink=light has inverted it'
        return ('is mostly dark: networks of sketches expect dark strokes on white paper; '
                'light strokes on a dark ground need --ink=light')
    pixels = np.asarray(sketch.resize((64, 64), Image.BOX))
    fields = pixels.reshape(8, 8, 8, 8).swapaxes(1, 2).reshape(64, 64)
    paper = np.quantile(fields, 0.9, axis=1)
    if ((BLACK <= paper) & (paper < WHITE)).mean() > 0.25:
        return ('is not on white paper: networks of sketches expect it; '
                'make the background of a photograph white first')
    return None


def _turned_upright(image):
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return ImageOps.exif_transpose(image)
    except Exception:   # damaged EXIF says nothing; Pillow raises many types on it
        pass
    return image


def _in_8_bits(image):
    """A gray image of a wider mode, scaled as the docstring of as_channels says."""
    values = np.asarray(image).astype(float)
    low, high = values.min(), values.max()
    if image.mode.startswith('I;') or image.format == 'PPM' and image.mode == 'I':
        scale = 1 / 257
    elif 0 <= low and high <= 65535:
        scale = 255 if high <= 1 and image.mode == 'F' else 1 if high <= 255 else 1 / 257
    else:       # NaN too
        raise ImageError(f'its values lie in {low:g}..{high:g}, and not in 0..65535')
    if 'transparency' in image.info:
        values[values == image.info['transparency']] = 255 / scale
    return Image.fromarray((scale * values).round().astype(np.uint8))


def _on_white(image):
    """`image` with its transparent parts white."""
    if image.has_transparency_data:
        image = image.convert('RGBA')
        return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image
