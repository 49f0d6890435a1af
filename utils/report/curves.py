"""The section on training: curves from the logs of the run (utils/record/run.py)."""
from pathlib import Path

import numpy as np
from matplotlib import cm, colormaps, colors
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.record.logs import read_log
from utils.report.layer_errors import Layer

from .figures import REFERENCE, legend_above, panel_grid
from .page import Page
from .words import capitalized, extremes, number, trend

Curve = tuple[list[int], list[float]]       # epochs from 1, values
Curves = dict[str, Curve]                   # by label
LINES = [dict(color='#0072b2', linestyle='-', marker='o'),
         dict(color='#e08a00', linestyle='--', marker='s')]
WEIGHT_CURVES = {      # of weights.jsonl: name: ({label: key}, axis, caption)
    'values': ({'α': 'alpha', 'β': 'beta'}, 'weight',
               'The two values α and β, means over the filters (no unit)'),
    'shares': ({'K/n': 'K_over_n'}, 'K/n',
               'K/n, the share of weights that become α, mean over the filters'),
    'error': ({'relative error': 'relative_error'}, 'relative error',
              "Relative error ‖W − W~‖²/‖W‖² of the network's own binarizer (no unit)"),
    'flips': ({'flip ratio': 'flip_ratio'}, 'flip ratio',
              'Flip ratio, the share of weights that changed sides within the epoch'),
}
ACCURACIES = {'top-1': 'top1', 'top-5': 'top5'}


def add_curves(page: Page, layers: list[Layer], folder: Path, epoch: int):
    """Curves from the logs in `folder`, that of the run; epoch is that of the checkpoint.

    Raises RunError for a log that is damaged.
    """
    metrics = read_log(folder / 'metrics.jsonl', {'epoch', 'split', *ACCURACIES.values()})
    keys = [key for labels, *_ in WEIGHT_CURVES.values() for key in labels.values()]
    weights = read_log(folder / 'weights.jsonl', {'epoch', 'layer', *keys})
    rows_of = {layer.number: [row for row in weights if row['layer'] == layer.name]
               for layer in layers}
    if not metrics:
        page.text('The curves of the accuracy are left out: there is no metrics.jsonl beside the '
                  f'checkpoint ({folder}).')
    elif len({row['epoch'] for row in metrics}) == 1:
        names = {'train': 'training', 'val': 'validation'}
        page.text('The run has one epoch, after which the accuracy in percent was:')
        page.table(['images', *ACCURACIES],
                   [(names[row['split']], f'{row["top1"]:.2f}', f'{row["top5"]:.2f}')
                    for row in metrics])
    else:
        add_accuracy(page, metrics, epoch)
    if not all(rows_of.values()):
        page.text('The curves of α, β, K/n, error and flips are left out: there is no '
                  f'weights.jsonl of this network beside the checkpoint ({folder}).')
    elif len({row['epoch'] for row in weights}) == 1:
        page.text('The weights after this epoch: means over the filters, the relative error of '
                  "the network's own binarizer, and the share of weights that changed sides "
                  '(flip ratio).')
        columns = [label for labels, *_ in WEIGHT_CURVES.values() for label in labels]
        page.table(['convolution', 'name', *columns],
                   [(layer.number, layer.name, *(
                       f'{rows_of[layer.number][-1][key]:.4f}'.replace('-', '−') for key in keys))
                    for layer in layers])
    else:
        add_layer_curves(page, rows_of, epoch)


def add_accuracy(page: Page, metrics: list[dict], epoch: int):
    """A panel for each accuracy, with curves of training and of validation."""
    splits = {'training': 'train', 'validation': 'val'}
    panels = {title: {name: curve([row for row in metrics if row['split'] == split], key)
                      for name, split in splits.items()} for title, key in ACCURACIES.items()}
    texts = []
    for title, curves in panels.items():
        for name, (epochs, values) in curves.items():
            if values:
                best = max(values)
                texts.append(f'{title} of {name} goes {trend(epochs, values)}, the highest is '
                             f'{number(best)} in epoch {epochs[values.index(best)]}')
    page.figure('accuracy', 'Accuracy after each epoch, in percent of the (augmented) training '
                'images and of the validation images. Training images are cropped and counted '
                'while the weights still change, so that they can score lower. The dotted line '
                'is the epoch of this checkpoint.',
                curves_figure(panels, 'accuracy, %', epoch, columns=2, height=2.6, zero=True),
                f'Accuracy in percent: {"; ".join(texts)}.')


def add_layer_curves(page: Page, rows_of: dict[int, list[dict]], epoch: int):
    """The weights: one chart of all layers and, folded, a panel for each.

    rows_of: the rows of the log for each {number of a convolution}.
    """
    panels, texts = {}, []
    for labels, *_ in WEIGHT_CURVES.values():
        layers = {number: [curve(rows, key) for key in labels.values()]
                  for number, rows in rows_of.items()}
        panels[' and '.join(labels)] = layers
        first, last = ([curves[0][1][place] for curves in layers.values()] for place in (0, -1))
        texts.append(capitalized(f'{next(iter(labels))}: after the first epoch '
                                 f'{extremes(list(layers), first)}, after the last '
                                 f'{extremes(list(layers), last)}'))
    page.figure('training', 'The weights over the epochs, a line for each binarized convolution: '
                'α (solid) and β (dashed), means over its filters; K/n; the relative error '
                "‖W − W~‖²/‖W‖² of the network's own binarizer; the flip ratio, the share of "
                'weights that changed sides within the epoch (all without a unit). The vertical '
                'axes need not begin at 0.', all_layers(panels, epoch), '; '.join(texts) + '.')
    with page.folded('The same for each convolution by itself'):
        for name, (labels, axis, caption) in WEIGHT_CURVES.items():
            of_panel = {f'convolution {number}': {label: curve(rows, key)
                                                  for label, key in labels.items()}
                        for number, rows in rows_of.items()}
            columns = 3 if len(of_panel) <= 6 else 5
            page.figure(f'training-{name}', f'{caption}, over the epochs, for every binarized '
                        'convolution. All panels share their axes; the vertical one need not begin '
                        'at 0.', curves_figure(of_panel, axis, epoch, columns, 1.5,
                                               sharex=True, sharey=True))


def curve(rows: list[dict], key: str) -> Curve:
    """(epochs counted from 1, values) of the rows of a log."""
    return [row['epoch'] + 1 for row in rows], [row[key] for row in rows]


def curves_figure(panels: dict[str, Curves], ylabel: str, epoch: int, columns: int, height: float,
                  zero: bool = False, **shared: bool) -> Figure:
    """A panel for each {title: curves}; a dotted line at `epoch`. zero: axes begin at 0."""
    figure, axes = panel_grid(len(panels), columns, height, **shared)
    for ax, (title, curves) in zip(axes, panels.items()):
        for (label, (epochs, values)), style in zip(curves.items(), LINES):
            ax.plot(epochs, values, label=label, linewidth=1.3, **style, markersize=4,
                    markevery=max(1, len(epochs) // 8))
        ax.axvline(epoch, **REFERENCE, label='this checkpoint')
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        ax.set_title(title)
        if zero:
            ax.set_ylim(0, 1.08 * ax.get_ylim()[1])
    figure.supxlabel('epoch', fontsize='medium')
    figure.supylabel(ylabel, x=0.008, fontsize='medium')
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
        for layer, curves in layers.items():
            for (epochs, values), line in zip(curves, ('-', '--')):
                ax.plot(epochs, values, line, color=palette[numbers.index(layer)], linewidth=1.3)
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
