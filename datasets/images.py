"""Reading one image file, whatever its format and mode, and the error that names a bad one."""
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from utils.errors import RunError


class ImageError(RunError):
    """An image that cannot be read; str() is one sentence that names the file.

    A DataLoader worker passes its exceptions on as type(text of the whole traceback), which ends
    with '...ImageError: <sentence>': only the sentence is kept.
    """

    def __init__(self, message: str):
        super().__init__(message.rpartition('ImageError: ')[2].strip())


def read_image(path: str | Path, channels: int) -> Image.Image:
    """The image file at `path` as a PIL image, as as_channels returns it. Raises ImageError."""
    return decode(path, channels, path)


def decode(file: str | Path | BinaryIO, channels: int, name: str | Path) -> Image.Image:
    """As read_image, from a path or an open binary file; `name` is what an ImageError calls it."""
    try:
        with Image.open(file) as image:
            image.load()
            return as_channels(image, channels)
    except Exception as error:  # on bad input Pillow raises nearly every type there is
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise ImageError(f'cannot read the image {name}: {reason}') from None


def as_channels(image: Image.Image, channels: int) -> Image.Image:
    """The PIL image `image` of any mode in mode 'L' (1 channel) or 'RGB' (3 channels).

    Transparent parts become white.
    """
    return _on_white(image).convert('L' if channels == 1 else 'RGB')


def _on_white(image):
    """`image` in 8 bits per channel, its transparent parts white."""
    if image.mode.startswith('I'):  # 16-bit gray
        values = np.asarray(image).astype(float) / 257
        return Image.fromarray(values.round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert('RGBA')
        return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image
