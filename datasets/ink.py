"""How sketches are drawn: dark strokes on white paper, or light on dark, which --ink tells."""
import numpy as np
from PIL import Image

INK = 'auto', 'dark', 'light'
DARK, BLACK, WHITE = 128, 64, 240   # gray values: below the first two, from the last on
CONTRAST = 32   # gray values by which ink differs from its ground
SHEET = 0.9     # what covers more of its rectangle is a sheet of paper, perhaps with round corners
MIXED = 0.02    # the share of dark parts from which a cutout is a drawing with light fill
HINTS = {       # what may help where sketches are dark or have hardly any ink, by --ink
    'auto': '',
    'dark': '; light strokes on a dark or transparent ground need --ink=light or --ink=auto',
    'light': '; dark strokes on a light or transparent ground need --ink=dark or --ink=auto'}


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
