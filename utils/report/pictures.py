"""The pictures of images and of what layers respond to them, in sizes in proportion to theirs."""
import numpy as np
from matplotlib.figure import Figure

from .words import number

PIXEL = 0.1             # inches of a number of a map
SIDES = 0.5, 1.9        # inches, the smallest and the largest map
SLOT = 1.15             # inches at least, from one map to the next, for what stands above them


def picture(pixels: np.ndarray) -> Figure:
    """One gray picture (h, w)."""
    side = map_side(pixels)
    figure = Figure(figsize=(side + 0.2, side + 0.2))
    show(figure.add_axes((0.1 / (side + 0.2),) * 2 + (side / (side + 0.2),) * 2), pixels)
    return figure


def map_side(values: np.ndarray) -> float:
    """The side of a map (…, h, w) in inches."""
    smallest, largest = SIDES
    return min(largest, max(smallest, PIXEL * max(values.shape[-2:])))


def show(ax, values: np.ndarray, **limits: float):
    ax.imshow(values, cmap='gray', interpolation='none', **limits)
    ax.set_axis_off()


def responses(channels: list[int], maps: dict[str, np.ndarray], alone: set[str]) -> Figure:
    """Maps {title of a row: (channels, h, w)}; each column, a channel, has its own gray scale.

    The rows whose titles are in `alone` have scales of their own.
    """
    together = np.stack([rows for title, rows in maps.items() if title not in alone])
    side = map_side(together)
    slot, left, above, gap = max(SLOT, side + 0.12), 1.5, 0.55, 0.12        # inches
    width, height = left + slot * len(channels), above + (side + gap) * len(maps)
    figure = Figure(figsize=(width, height))
    for column, channel in enumerate(channels):
        low, high = together[:, column].min(), together[:, column].max()
        figure.text((left + slot * column) / width, 1 - 0.42 / height,
                    f'channel {channel}\n{number(low)} to {number(high)}', fontsize=8)
        for row, (title, values) in enumerate(maps.items()):
            bottom = height - above - side - row * (side + gap)
            ax = figure.add_axes(((left + slot * column) / width, bottom / height, side / width,
                                  side / height))
            show(ax, values[column], **{} if title in alone else dict(vmin=low, vmax=high))
            if column == 0:
                figure.text(0.1 / width, (bottom + side / 2) / height, title, va='center')
    return figure
