"""A drawing: strokes as the page sends them, and the image that a network would know them in.

Strokes are polylines of complex numbers x + yj, y pointing down, in any unit.
"""
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

MAX_BYTES = 2 ** 19     # of a drawing as JSON
MAX_STROKES = 1000
MAX_POINTS = 20_000
MAX_COORDINATE = 1e6
DOT = 1e-3              # a drawing that is smaller has no shape
MAX_SAMPLES = 50_000    # points that are drawn of a drawing


class Frame(NamedTuple):
    """How large, and with which pen, the training images of a dataset show a drawing.

    The bounding box of the drawing is in the middle.
    """

    side: int       # of the square image, in pixels
    extent: float   # longer side of the bounding box, as a share of the image's side
    pen: float      # width of a line, as a share of the image's side
    fineness: int   # it is drawn this many times larger, and shrunk


# doodles: the middle of what datasets/doodles/pen.py chooses from, and its way to draw.
# tuberlin: medians over every second training image of /work/shared/data/tuberlin40, that is 40
# classes, in shares of the side: longer side of the box around ink that is more than a quarter
# black 0.787 (90 % in 0.787..0.800), its middle 0.500 (0.497..0.503); width of a line, the smaller
# one of the sums of blackness along its row and its column, 0.0041 (0.0038..0.0071), which is 3 %
# more than the pen of sketch() that gives it. 256 pixels are what datasets.prepare makes.
FRAMES = {
    'doodles': Frame(side=128, extent=0.715, pen=0.015, fineness=2),
    'tuberlin': Frame(side=256, extent=0.785, pen=0.004, fineness=4),
}


def frame_of(dataset: str) -> Frame:
    """The Frame of a dataset; of sketches that were not measured, that of TU-Berlin."""
    return FRAMES.get(dataset, FRAMES['tuberlin'])


class BadDrawing(ValueError):
    """What is not a drawing; str() is a short sentence."""


def strokes_of(body: bytes) -> list[np.ndarray]:
    """The strokes in {"strokes": [[x, y, x, y, …], …]}, JSON of at most MAX_BYTES.

    Raises BadDrawing for anything else, and for more or larger numbers than the limits above.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise BadDrawing('this is not JSON') from None
    strokes = content.get('strokes') if isinstance(content, dict) else None
    if not isinstance(strokes, list) or not all(isinstance(stroke, list) for stroke in strokes):
        raise BadDrawing('a drawing is {"strokes": [[x, y, x, y, …], …]}')
    if not strokes:
        raise BadDrawing('a drawing has at least one stroke')
    if len(strokes) > MAX_STROKES:
        raise BadDrawing(f'a drawing has at most {MAX_STROKES} strokes')
    if sum(map(len, strokes)) > 2 * MAX_POINTS:
        raise BadDrawing(f'a drawing has at most {MAX_POINTS} points')
    for stroke in strokes:
        if not stroke or len(stroke) % 2:
            raise BadDrawing('a stroke has two numbers for each of its points')
        if not all(type(value) in (int, float) and abs(value) <= MAX_COORDINATE
                   for value in stroke):
            raise BadDrawing(f'a coordinate is a number from {-MAX_COORDINATE:.0f} to '
                             f'{MAX_COORDINATE:.0f}')
    return [np.array(stroke, float).view(complex) for stroke in strokes]


def sketch(strokes: Sequence[np.ndarray], frame: Frame) -> Image.Image:
    """The strokes in ink (0) on white paper (255): a PIL image of mode 'L', side x side pixels.

    It does not depend on where, how large and with which pen they were drawn.
    """
    points = np.concatenate(strokes)
    corner = complex(points.real.min(), points.imag.min())
    size = complex(points.real.max(), points.imag.max()) - corner
    fine_side = frame.side * frame.fineness
    longer = max(size.real, size.imag)
    scale = frame.extent * fine_side / longer if longer > DOT else 0
    middle = complex(fine_side, fine_side) / 2
    placed = [(stroke - corner - size / 2) * scale + middle for stroke in strokes]

    width = round(frame.pen * fine_side)
    length = sum(np.abs(np.diff(stroke)).sum() for stroke in placed)
    step = max(width, length / MAX_SAMPLES)
    paper = Image.new('L', (fine_side, fine_side), 255)
    pen = ImageDraw.Draw(paper)
    for stroke in placed:
        path = np.round(sampled(stroke, step), 3)   # the same pixels from any unit
        if len(path) > 1:
            pen.line(path.view(float).tolist(), fill=0, width=width)
        else:
            pen.circle((path[0].real, path[0].imag), width / 2, fill=0)
    return paper.reduce(frame.fineness)


def sampled(stroke: np.ndarray, step: float) -> np.ndarray:
    """Points at most `step` apart along the stroke, evenly spaced; of a dot, one point.

    As the doodles have them: of shorter lines the pen would draw only some.
    """
    distance = np.append(0, np.abs(np.diff(stroke)).cumsum())
    if distance[-1] < 1:
        return stroke[:1]
    return np.interp(np.linspace(0, distance[-1], int(distance[-1] / step) + 2), distance, stroke)
