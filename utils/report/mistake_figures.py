"""The pictures of accuracies, confusions and mistakes."""
import math
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate
from unicodedata import east_asian_width

import numpy as np
from matplotlib import rcParams
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from .figures import REFERENCE, WIDTH

NUMBERED = 45       # classes up to which the cells of a matrix have numbers
SHADES: dict = dict(cmap='Blues', norm=PowerNorm(0.5, 0, 1))      # small shares are seen too
NARROW = 4.9        # inches, which a phone shows whole
COLUMNS = 5         # of pictures
SIDE, GAP, TEXTS = 1.48, 0.08, 0.7      # inches, of a picture, beside it, above and below it
SHORT = 18          # letters of a class


def accuracies(rows: Sequence[tuple], mean: float, split: bool) -> Figure:
    """Dots with intervals of (class, share, low, high), the first at the top.

    With `split` the first and the second half stand side by side. mean: a share, for a line.
    """
    longest = math.ceil(len(rows) / 2) if split else len(rows)
    parts = [rows[:longest], rows[longest:]] if split else [rows]
    figure = Figure(figsize=(WIDTH if split else NARROW, 0.7 + 0.2 * longest),
                    layout='constrained')
    axes = figure.subplots(1, len(parts), squeeze=False, sharex=True)[0]
    for ax, part in zip(axes, parts):
        names, *numbers = zip(*part)
        share, low, high = (100 * np.array(values) for values in numbers)
        places = np.arange(len(part))[::-1]
        ax.hlines(places, low, high, color='0.45', linewidth=1)
        ax.plot(share, places, 'o', color='#0072b2', markersize=5.5)
        ax.axvline(100 * mean, **REFERENCE)
        ax.set_yticks(places, list(map(shortened, names)))
        ax.set(xlabel='top-1 accuracy, %', xlim=(-2, 102),
               ylim=(len(part) - longest - 0.7, len(part) - 0.3))
    return figure


def matrix(shares: np.ndarray, counts: np.ndarray, names: Sequence[str] = ()) -> Figure:
    """A confusion matrix; rows are the true classes. Without names, one of many classes."""
    cell = min(0.45, max(0.235, 7.5 / max(len(names), 1)))
    side = cell * len(names) + 1.7 if names else 8.8
    figure = Figure(figsize=(side + 0.6, side), layout='constrained')
    ax = figure.subplots()
    image = ax.imshow(shares, interpolation='nearest', **SHADES)
    ax.set(xlabel='taken for', ylabel='class', xticks=[], yticks=[])
    ax.grid(False)
    bar = figure.colorbar(image, ax=ax, shrink=0.5, aspect=25, pad=0.02)
    bar.set_ticks([0, 0.05, 0.2, 0.5, 1], labels=['0', '5', '20', '50', '100'])
    bar.set_label('% of the images of a class')
    if names:
        labels = list(map(shortened, names))
        is_wide = len(names) > 3 or max(map(width_of, labels)) > cell
        ax.set_xticks(range(len(names)), labels, rotation=90 if is_wide else 0)
        ax.set_yticks(range(len(names)), labels)
        ax.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
        ax.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
        ax.grid(which='minor', color='0.93', linewidth=0.5)
        ax.tick_params(which='minor', length=0)
    if 0 < len(names) <= NUMBERED:
        for row, column in np.argwhere(counts):
            text = ax.text(column, row, str(counts[row, column]), ha='center', va='center',
                           fontsize=9 if cell > 0.4 else 7,
                           color='white' if shares[row, column] > 0.35 else 'black')
            text.set_in_layout(False)       # which takes seconds
    return figure


def pictures(items: Sequence[tuple]) -> Figure:
    """(pixels (h, w) or (h, w, 3) in [0, 1], class, [(class, probability), …]) as a grid."""
    columns = min(COLUMNS, len(items))
    rows = math.ceil(len(items) / columns)
    width, height = SIDE + GAP, SIDE + TEXTS
    figure = Figure(figsize=(width * columns, height * rows))
    for place, (pixels, name, guesses) in enumerate(items):
        row, column = divmod(place, columns)
        left, bottom = width * column + GAP / 2, height * (rows - 1 - row) + 0.65 * TEXTS
        ax = figure.add_axes((left / width / columns, bottom / height / rows,
                              SIDE / width / columns, SIDE / height / rows))
        ax.imshow(pixels, cmap='gray', vmin=0, vmax=1, interpolation='none')
        ax.set(xticks=[], yticks=[])
        ax.set_title(fitting(name, weight='bold'), fontweight='bold')
        ax.set_xlabel('\n'.join(fitting(guess, f' {rounded(share)}') for guess, share in guesses))
    return figure


def rounded(share: float) -> str:
    """A probability in whole percent; what is not 0 or 100 does not become it."""
    return '> 99 %' if share > 0.99 else '< 1 %' if share < 0.01 else f'{100 * share:.0f} %'


def fitting(name: str, beside: str = '', weight: str = 'normal') -> str:
    """The name, shortened, and the text beside it, not wider than a picture."""
    texts = [shortened(name, letters) + beside for letters in range(SHORT, 0, -1)]
    return next((text for text in texts if width_of(text, weight) < SIDE), texts[-1])


def width_of(text: str, weight: str = 'normal') -> float:
    """Inches."""
    font = FontProperties(size=rcParams['font.size'], weight=weight)
    return text_to_path.get_text_width_height_descent(text, font, False)[0] / 72


def shortened(name: str, letters: int = SHORT) -> str:
    """The drawable name of a class, not wider than so many letters; $ begins no formula.

    Chinese, Japanese and Korean characters are as wide as two letters.
    """
    ends = [*accumulate(1 + (east_asian_width(letter) in 'WF') for letter in name)]
    if ends and ends[-1] > letters:
        name = name[:bisect(ends, letters - 1)] + '…'
    return name.replace('$', r'\$')
