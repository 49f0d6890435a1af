"""What the pictures of several sections share."""
import math

from matplotlib.figure import Figure

WIDTH = 11      # inches, 1056 pixels
REFERENCE: dict = dict(color='0.35', linestyle=':', linewidth=1.3)


def panel_grid(count: int, columns: int, height: float, right: float = 0.1, **options):
    """A figure of `count` panels of `height` inches in so many columns: (figure, list of axes).

    Its margins in inches, for a legend above and the labels, are given: to measure them takes
    seconds. right: that at the right.
    """
    rows = math.ceil(count / columns)
    above, below, left, gap = 0.6, 0.5, 0.8, 0.55
    total = height * rows + above + below
    panel = (WIDTH - left - right - gap * (columns - 1)) / columns
    figure = Figure(figsize=(WIDTH, total))
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw=dict(
        left=left / WIDTH, right=1 - right / WIDTH, top=1 - above / total, bottom=below / total,
        wspace=gap / panel, hspace=0.4), **options).flatten()
    for unused in axes[count:]:
        unused.remove()
    for lowest in axes[max(count - columns, 0):count]:      # of its column
        lowest.xaxis.set_tick_params(labelbottom=True)
    return figure, axes[:count]


def legend_above(figure: Figure, handles: list):
    """One legend in a row above the panels of panel_grid."""
    figure.legend(handles=handles, loc='upper center', ncols=len(handles), frameon=False,
                  borderaxespad=0.1)


def name_convolutions(ax, numbers: list[int]):
    """The horizontal axis of a plot with a place for each convolution; of many, some are named."""
    places = range(0, len(numbers), math.ceil(len(numbers) / 30))
    ax.set_xticks(places, [numbers[place] for place in places])
    ax.set(xlabel='convolution', xlim=(-0.6, len(numbers) - 0.4))
