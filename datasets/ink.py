"""How sketches are drawn: dark strokes on white paper, or light on dark, which --ink tells."""
import numpy as np
from PIL import Image, ImageChops, ImageStat

INK = 'auto', 'dark', 'light'
DARK, BLACK, WHITE = 128, 64, 240   # gray values: below the first two, from the last on
FAINT = 16      # gray values that differ by less are no ink
HINTS = {       # what may help where sketches are dark or have no ink, by --ink
    'auto': '',
    'dark': '; light strokes on a dark or transparent ground need --ink=light or --ink=auto',
    'light': '; dark strokes on a light or transparent ground need --ink=dark or --ink=auto'}


def is_dark(sketch: Image.Image) -> bool:
    """Whether more than half of the pixels of a sketch (mode 'L') are dark."""
    counts = sketch.histogram()
    return sum(counts[:DARK]) > sum(counts) / 2


def is_blank(sketch: Image.Image) -> bool:
    """Whether a sketch (mode 'L') has no ink: hardly more than one gray value."""
    low, high = sketch.getextrema()
    return high - low < FAINT


def is_drawn_light(sketch: Image.Image) -> bool:
    """Whether the strokes of a sketch (mode 'RGBA') with transparent parts are light.

    What is opaque are the strokes; where it is more than half of the sheet, with dark and light
    parts, it is paper with strokes.
    """
    gray, alpha = sketch.convert('LA').split()
    opaque = ImageStat.Stat(alpha).mean[0]
    is_light = ImageStat.Stat(ImageChops.multiply(gray, alpha)).mean[0] >= opaque * DARK / 255
    low, high = ImageStat.Stat(gray, alpha.point(lambda value: 255 * (value >= 128))).extrema[0]
    is_paper = opaque > 128 and high - low > DARK
    return is_light != is_paper


def paper_fault(sketch: Image.Image, ink: str = 'dark') -> str | None:
    """Why a sketch, as read_image returns it for this --ink, is not dark on white paper, or None.

    Paper is the brightest tenth of each of 8 x 8 fields. It counts as gray where it is neither
    white nor black, as in a field that is filled with ink. More than a quarter of gray fields is a
    fault: a pen of 5 pixels on 150 leaves fewer, and a shadow on half of the sheet more.
    """
    if is_blank(sketch):
        return f'has no ink{HINTS[ink]}'
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
