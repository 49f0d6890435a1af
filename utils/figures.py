"""The pictures of the commands: each function draws numbers into a PNG file and knows nothing of networks.

Everything that is told apart by colour is told apart by line, marker or hatch too, for gray print.
"""
import math

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

matplotlib.rcParams.update({'font.size': 9, 'axes.titlesize': 9, 'axes.grid': True, 'grid.color': '0.9',
                            'axes.axisbelow': True, 'hatch.linewidth': 0.6, 'savefig.dpi': 100})

WIDTH = 11      # inches, 1100 pixels
LOOKS = {     # of each way to hold a weight, in every picture
    'real': dict(color='black', linestyle='-', marker='D'),
    'dab': dict(color='#0072b2', linestyle='-', marker='o'),
    'xnor': dict(color='#e08a00', linestyle='--', marker='s'),
    'bnn': dict(color='#8c8c8c', linestyle=':', marker='^'),
}
ALPHA, BETA = dict(facecolor='#5b9bc8', edgecolor='0.2'), dict(facecolor='#e9c48a', edgecolor='0.2', hatch='////')
LINES = [dict(color='#0072b2', linestyle='-', marker='o'), dict(color='#e08a00', linestyle='--', marker='s')]
REFERENCE = dict(color='0.35', linestyle=':', linewidth=1.3)


def look(method):
    """How a method looks in every picture; those of one's own, which LOOKS does not have, alike."""
    return LOOKS.get(method, dict(color='#009e73', linestyle='-.', marker='v'))


def grid(count, columns, height, **options):
    """A figure of `count` panels of `height` inches in so many columns: (figure, list of axes)."""
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(WIDTH, height * rows + 0.6), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False, **options).flatten()
    for unused in axes[count:]:
        unused.remove()
    for last in axes[max(count - columns, 0):count]:    # the lowest of a column may stand in the last row but one
        last.xaxis.set_tick_params(labelbottom=True)
    return figure, axes[:count]


def legend_above(figure, handles):
    figure.legend(handles=handles, loc='outside upper center', ncols=len(handles), frameon=False)


def histograms(path, filters):
    """A histogram of every (title, weights (n,), mask (n,), alpha, beta), both sides of the boundary apart."""
    figure, axes = grid(len(filters), len(filters), 2.1)
    for ax, (title, weights, mask, alpha, beta) in zip(axes, filters):
        boundary, (low, high) = (alpha + beta) / 2, (weights.min(), weights.max())
        step = max(high - low, 1e-12) / min(40, max(8, round(math.sqrt(len(weights)))))
        first, last = math.floor((low - boundary) / step), math.ceil((high - boundary) / step)
        edges = boundary + step * np.arange(first, last + 1)    # so that no bar lies on both sides
        for side, look in ((~mask, BETA), (mask, ALPHA)):
            ax.stairs(np.histogram(weights[side], edges)[0], edges, fill=True, linewidth=0.4, **look)
        for value, line in ((alpha, '-'), (beta, '--')):
            ax.axvline(value, color='black', linestyle=line, linewidth=1.6)
        ax.axvline(boundary, color='black', linestyle=':', linewidth=1.3)
        ax.set(title=title, xlabel='weight')
        ax.locator_params(axis='x', nbins=5)
    axes[0].set_ylabel('number of weights')
    legend_above(figure, [
        *(Line2D([], [], color='black', linestyle=line, label=label)
          for label, line in (('β', '--'), ('boundary', ':'), ('α', '-'))),
        Patch(**BETA, label='weights that become β'), Patch(**ALPHA, label='weights that become α')])
    figure.savefig(path)


def spread(path, numbers, shares, alphas, betas):
    """Box plots over the filters of each convolution: K/n above, α and β below."""
    figure = Figure(figsize=(WIDTH, 5.4), layout='constrained')
    above, below = figure.subplots(2, sharex=True)
    places = np.arange(len(numbers))
    looks = dict(patch_artist=True, whis=(5, 95), showfliers=False, medianprops=dict(color='black', linewidth=1.4))
    above.boxplot(shares, positions=places, widths=0.45, boxprops=dict(facecolor='#d5e5f1'), **looks)
    above.axhline(0.5, **REFERENCE)
    above.set_ylabel('K/n')
    for values, shift, look in ((alphas, -0.19, ALPHA), (betas, 0.19, BETA)):
        below.boxplot(values, positions=places + shift, widths=0.32, boxprops=look, **looks)
    below.axhline(0, **REFERENCE)
    below.set_ylabel('weight')
    below.legend(handles=[Patch(**ALPHA, label='α'), Patch(**BETA, label='β')], loc='center left',
                 bbox_to_anchor=(1, 0.5), frameon=False)
    name_convolutions(below, numbers)
    figure.savefig(path)


def name_convolutions(ax, numbers):
    ax.set_xticks(range(len(numbers)), numbers, fontsize=9 if len(numbers) <= 30 else 6)
    ax.set(xlabel='number of the convolution', xlim=(-0.6, len(numbers) - 0.4))


def errors(path, numbers, relative):
    """Relative errors {method: one for each convolution}: all on a log axis, and dab and xnor again, closer."""
    figure = Figure(figsize=(WIDTH, 5.4), layout='constrained')
    above, below = figure.subplots(2, sharex=True)
    for ax, methods in ((above, relative), (below, ('dab', 'xnor'))):
        for method in methods:
            ax.plot(range(len(numbers)), relative[method], label=method, **look(method))
        ax.set_ylabel('relative error')
        ax.legend(loc='center left', bbox_to_anchor=(1, 0.5), frameon=False)
    above.set(yscale='log', title='all methods, logarithmic axis')
    below.set(title='dab and xnor, linear axis that does not begin at 0')
    below.margins(y=0.15)
    name_convolutions(below, numbers)
    figure.savefig(path)


def error_pairs(path, dab, xnor):
    """Relative error under dab against that under xnor, a point for each filter."""
    figure = Figure(figsize=(5.6, 5.2), layout='constrained')
    ax = figure.subplots()
    low, high = min(dab.min(), xnor.min()), max(dab.max(), xnor.max())
    limits = low - 0.04 * (high - low), high + 0.04 * (high - low)
    ax.plot(limits, limits, **REFERENCE, label='equal errors')
    ax.plot(xnor, dab, '.', color='#0072b2', markersize=5, markeredgewidth=0, alpha=0.5,
            label='a filter')
    ax.set(xlabel='relative error under xnor', ylabel='relative error under dab', xlim=limits, ylim=limits,
           aspect='equal')
    ax.legend(loc='upper left')
    figure.savefig(path)


def picture(path, pixels):
    """One gray picture (h, w)."""
    figure = Figure(figsize=(2.6, 2.6), layout='constrained')
    ax = figure.subplots()
    ax.imshow(pixels, cmap='gray')
    ax.set_axis_off()
    figure.savefig(path)


def responses(path, channels, maps, titles):
    """Maps {row: (channels, h, w)}: a row for each kind of weights, a column and a gray scale for each channel."""
    height = 1.3 + 2 * len(maps)
    figure = Figure(figsize=(9.5, height), layout='constrained')
    axes = figure.subplots(len(maps), len(channels), squeeze=False)
    for column, channel in enumerate(channels):
        values = np.stack([rows[column] for rows in maps.values()])
        for row, (kind, ax) in enumerate(zip(maps, axes[:, column])):
            image = ax.imshow(values[row], cmap='gray', vmin=values.min(), vmax=values.max())
            ax.set(xticks=[], yticks=[], title=f'channel {channel}' if row == 0 else '')
            if column == 0:
                ax.set_ylabel(titles[kind])
        bar = figure.colorbar(image, ax=axes[:, column], location='bottom', shrink=0.85, aspect=25, pad=0.02)
        bar.ax.locator_params(nbins=4)
    figure.savefig(path)


def activations(path, names, measures, kept):
    """Dots for {measure: a value for each of the sign layers}, the first at the top; `kept` names are shaded."""
    figure = Figure(figsize=(WIDTH, 1.5 + 0.3 * len(names)), layout='constrained')
    ax = figure.subplots()
    places = np.arange(len(names))[::-1]
    looks = [dict(marker='o', color='#0072b2'), dict(marker='s', color='#c06a00', markerfacecolor='none', markersize=9),
             dict(marker='^', color='black', markerfacecolor='none', markersize=9)]
    for (measure, values), look in zip(measures.items(), looks):
        ax.plot(values, places, linestyle='', label=measure, **look)
    for place, name in zip(places, names):
        if name in kept:
            ax.axhspan(place - 0.45, place + 0.45, color='0.88', zorder=0)
    handles = [*ax.get_legend_handles_labels()[0], Patch(color='0.88', label='suggested: keep real')]
    ax.set_yticks(places, names)
    ax.set(xlabel='measure (no unit; 0 would be no loss)', xlim=(0, None), ylim=(-0.7, len(names) - 0.3))
    legend_above(figure, handles)
    figure.savefig(path)


def per_layer(path, curves, ylabel, epoch):
    """A panel for each of {title: {label: (epochs, values)}}, all on the same axes; a dotted line at `epoch`."""
    figure, axes = grid(len(curves), 3 if len(curves) <= 6 else 5, 1.6, sharex=True, sharey=True)
    for ax, (title, lines) in zip(axes, curves.items()):
        draw_lines(ax, lines, epoch)
        ax.set_title(title)
    figure.supxlabel('epoch')
    figure.supylabel(ylabel)
    legend_above(figure, axes[0].get_legend_handles_labels()[0])
    figure.savefig(path)


def draw_lines(ax, lines, epoch):
    """Curves {label: (epochs, values)} with a dotted line at the epoch of the checkpoint."""
    for (label, (epochs, values)), look in zip(lines.items(), LINES):
        ax.plot(epochs, values, label=label, linewidth=1.3, **look, markersize=4,
                markevery=max(1, len(epochs) // 8))
    ax.axvline(epoch, **REFERENCE, label='this checkpoint')
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))


def accuracy(path, panels, epoch):
    """A panel for each of {title: {label: (epochs, percent)}}."""
    figure, axes = grid(len(panels), len(panels), 3, sharey=True)
    for ax, (title, lines) in zip(axes, panels.items()):
        draw_lines(ax, lines, epoch)
        ax.set(title=title, xlabel='epoch')
    axes[0].set(ylabel='accuracy, %', ylim=(0, 100))
    legend_above(figure, axes[0].get_legend_handles_labels()[0])
    figure.savefig(path)
