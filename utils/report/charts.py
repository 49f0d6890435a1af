"""The charts of a training: curves over its epochs."""
import numpy as np
from matplotlib import cm, colormaps, colors
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .figures import REFERENCE, legend_above, panel_grid

Curve = tuple[list[int], list[float]]       # epochs and values
Curves = dict[str, Curve]                   # by label
LINES = [dict(color='#0072b2', linestyle='-', marker='o'),
         dict(color='#e08a00', linestyle='--', marker='s')]


def accuracy(panels: dict[str, Curves], epoch: int) -> Figure:
    """A panel for each {title: curves in percent}; a dotted line at `epoch`."""
    figure, axes = panel_grid(len(panels), len(panels), 2.6)
    for ax, (title, curves) in zip(axes, panels.items()):
        draw_curves(ax, curves, epoch)
        ax.set(title=title, xlabel='epoch', ylim=(0, 1.08 * ax.get_ylim()[1]))
    axes[0].set_ylabel('accuracy, %')
    legend_above(figure, axes[0].get_legend_handles_labels()[0])
    return figure


def all_layers(panels: dict[str, dict[int, list[Curve]]], epoch: int) -> Figure:
    """A panel for each {title: {number of a convolution: its curves}}, coloured by the number.

    The second curve of a convolution is dashed; a dotted line is drawn at `epoch`.
    """
    figure, axes = panel_grid(len(panels), 2, 1.9, right=1)
    numbers = sorted({number for curves in panels.values() for number in curves})
    palette = colormaps['viridis'](np.linspace(0, 0.9, len(numbers)))
    for ax, (title, layers) in zip(axes, panels.items()):
        for number, curves in layers.items():
            for (epochs, values), line in zip(curves, ('-', '--')):
                ax.plot(epochs, values, line, color=palette[numbers.index(number)], linewidth=1.3)
        ax.axvline(epoch, **REFERENCE)
        ax.set_title(title)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    for lowest in axes[-2:]:
        lowest.set_xlabel('epoch')
    scale = cm.ScalarMappable(colors.BoundaryNorm(np.arange(len(numbers) + 1) - 0.5, len(numbers)),
                              colors.ListedColormap(palette))
    places = range(0, len(numbers), -(-len(numbers) // 20))
    bar = figure.colorbar(scale, cax=figure.add_axes((0.94, 0.11, 0.015, 0.72)), ticks=places)
    bar.ax.set_yticklabels([numbers[place] for place in places])
    bar.ax.set_title('convolution')
    bar.ax.tick_params(length=0)
    return figure


def per_layer(panels: dict[str, Curves], ylabel: str, epoch: int) -> Figure:
    """A panel for each {title: curves}, all on the same axes; a dotted line at `epoch`."""
    columns = 3 if len(panels) <= 6 else 5
    figure, axes = panel_grid(len(panels), columns, 1.5, sharex=True, sharey=True)
    for ax, (title, curves) in zip(axes, panels.items()):
        draw_curves(ax, curves, epoch)
        ax.set_title(title)
    figure.supxlabel('epoch', fontsize='medium')
    figure.supylabel(ylabel, x=0.008, fontsize='medium')
    legend_above(figure, axes[0].get_legend_handles_labels()[0])
    return figure


def draw_curves(ax, curves: Curves, epoch: int):
    """Curves with a dotted line at the epoch of the checkpoint."""
    for (label, (epochs, values)), style in zip(curves.items(), LINES):
        ax.plot(epochs, values, label=label, linewidth=1.3, **style, markersize=4,
                markevery=max(1, len(epochs) // 8))
    ax.axvline(epoch, **REFERENCE, label='this checkpoint')
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
