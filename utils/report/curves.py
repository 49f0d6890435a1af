"""The section on training: curves from the logs of the run (utils/training/record.py)."""
from pathlib import Path

from utils.training.logs import read_log

from . import figures
from .layers import Layer
from .page import Page

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


def add_curves(page: Page, layers: list[Layer], folder: Path, epoch: int):
    """Curves from the logs in `folder`, that of the run; epoch is that of the checkpoint.

    Raises RunError for a log that is damaged.
    """
    metrics = read_log(folder / 'metrics.jsonl', {'epoch', 'split', 'top1', 'top5'})
    if metrics:
        train, val = ([row for row in metrics if row['split'] == split]
                      for split in ('train', 'val'))
        panels = {title: {'training': curve(train, key), 'validation': curve(val, key)}
                  for title, key in (('top-1', 'top1'), ('top-5', 'top5'))}
        page.figure('accuracy', 'Accuracy after each epoch, in percent of the (augmented) training '
                    'images and of the validation images. The dotted line is the epoch of this '
                    'checkpoint.', figures.accuracy(panels, epoch))
    else:
        page.text('The curves of the accuracy are left out: there is no metrics.jsonl beside the '
                  f'checkpoint ({folder}).')
    add_layer_curves(page, layers, folder, epoch)


def add_layer_curves(page: Page, layers: list[Layer], folder: Path, epoch: int):
    keys = {key for labels, *_ in CURVES.values() for key in labels.values()}
    log = read_log(folder / 'weights.jsonl', {'epoch', 'layer', *keys})
    by_layer = {f'convolution {layer.number}': [row for row in log if row['layer'] == layer.name]
                for layer in layers}
    if not all(by_layer.values()):
        page.text('The curves of α, β, K/n, error and flips are left out: there is no '
                  f'weights.jsonl of this network beside the checkpoint ({folder}).')
        return
    for name, (labels, axis, caption) in CURVES.items():
        panels = {title: {label: curve(rows, key) for label, key in labels.items()}
                  for title, rows in by_layer.items()}
        page.figure(f'training-{name}', f'{caption}, over the epochs, for every binarized '
                    'convolution. All panels share their axes; the vertical one need not begin at '
                    '0.', figures.per_layer(panels, axis, epoch))


def curve(rows: list[dict], key: str) -> tuple[list[int], list[float]]:
    """(epochs counted from 1, values) of the rows of a log."""
    return [row['epoch'] + 1 for row in rows], [row[key] for row in rows]
