"""The section on training: curves from the logs of the run (utils/record/run.py)."""
from pathlib import Path

from utils.record.logs import read_log
from utils.report.layer_errors import Layer

from . import charts
from .charts import Curve
from .page import Page
from .words import capitalized, extremes, number, trend

CURVES = {      # of weights.jsonl: name: ({label: key}, axis, caption)
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
    splits = {name: [row for row in metrics if row['split'] == split]
              for name, split in (('training', 'train'), ('validation', 'val'))}
    if not metrics:
        page.text('The curves of the accuracy are left out: there is no metrics.jsonl beside the '
                  f'checkpoint ({folder}).')
    elif len({row['epoch'] for row in metrics}) == 1:
        page.text('The run has one epoch, after which the accuracy in percent was:')
        page.table(['images', *ACCURACIES],
                   [(name, *(f'{row[key]:.2f}' for key in ACCURACIES.values()))
                    for name, rows in splits.items() for row in rows])
    else:
        panels = {title: {name: curve(rows, key) for name, rows in splits.items()}
                  for title, key in ACCURACIES.items()}
        page.figure('accuracy', 'Accuracy after each epoch, in percent of the (augmented) training '
                    'images and of the validation images. Training images are cropped and counted '
                    'while the weights still change, so that they can score lower. The dotted line '
                    'is the epoch of this checkpoint.', charts.accuracy(panels, epoch),
                    accuracy_alt(panels))
    add_layer_curves(page, layers, folder, epoch)


def accuracy_alt(panels: dict[str, charts.Curves]) -> str:
    texts = []
    for title, curves in panels.items():
        for name, (epochs, values) in curves.items():
            if values:
                best = max(values)
                texts.append(f'{title} of {name} goes {trend(epochs, values)}, the highest is '
                             f'{number(best)} in epoch {epochs[values.index(best)]}')
    return f'Accuracy in percent: {"; ".join(texts)}.'


def add_layer_curves(page: Page, layers: list[Layer], folder: Path, epoch: int):
    """What became of the weights: one chart of all layers, and folded a panel for each."""
    keys = [key for labels, *_ in CURVES.values() for key in labels.values()]
    log = read_log(folder / 'weights.jsonl', {'epoch', 'layer', *keys})
    rows_of = {layer.number: [row for row in log if row['layer'] == layer.name]
               for layer in layers}
    if not all(rows_of.values()):
        page.text('The curves of α, β, K/n, error and flips are left out: there is no '
                  f'weights.jsonl of this network beside the checkpoint ({folder}).')
        return
    if len({row['epoch'] for row in log}) == 1:
        page.text('The weights after this epoch: means over the filters, the relative error of '
                  "the network's own binarizer, and the share of weights that changed sides "
                  '(flip ratio).')
        page.table(['convolution', 'name', *(label for labels, *_ in CURVES.values()
                                             for label in labels)],
                   [(layer.number, layer.name,
                     *(f'{rows_of[layer.number][-1][key]:.4f}'.replace('-', '−') for key in keys))
                    for layer in layers])
        return
    panels = {' and '.join(labels): {number: [curve(rows, key) for key in labels.values()]
                                     for number, rows in rows_of.items()}
              for labels, *_ in CURVES.values()}
    page.figure('training', 'The weights over the epochs, a line for each binarized convolution: '
                'α (solid) and β (dashed), means over its filters; K/n; the relative error '
                "‖W − W~‖²/‖W‖² of the network's own binarizer; the flip ratio, the share of "
                'weights that changed sides within the epoch (all without a unit). The vertical '
                'axes need not begin at 0.', charts.all_layers(panels, epoch), layers_alt(panels))
    with page.folded('The same for each convolution by itself'):
        for name, (labels, axis, caption) in CURVES.items():
            of_panel = {f'convolution {number}': {label: curve(rows, key)
                                                  for label, key in labels.items()}
                        for number, rows in rows_of.items()}
            page.figure(f'training-{name}', f'{caption}, over the epochs, for every binarized '
                        'convolution. All panels share their axes; the vertical one need not begin '
                        'at 0.', charts.per_layer(of_panel, axis, epoch))


def layers_alt(panels: dict[str, dict[int, list[Curve]]]) -> str:
    """Where each measure begins and ends, over the layers."""
    texts = []
    for title, layers in panels.items():
        first, last = ([curves[0][1][place] for curves in layers.values()] for place in (0, -1))
        numbers = list(layers)
        texts.append(f'{title.split(" and ")[0]}: after the first epoch '
                     f'{extremes(numbers, first)}, after the last {extremes(numbers, last)}')
    return '; '.join(map(capitalized, texts)) + '.'


def curve(rows: list[dict], key: str) -> Curve:
    """(epochs counted from 1, values) of the rows of a log."""
    return [row['epoch'] + 1 for row in rows], [row[key] for row in rows]
