"""What TensorBoard shows of a run, under which names.

TensorBoard sorts the names and opens the first two groups of them: accuracy and loss, a chart each.
"""
from pathlib import Path

from PIL import Image
from torch import Tensor

from utils.record.events import Events

CURVES = {'accuracy': 'top1', 'loss': 'loss', 'top-5 accuracy': 'top5'}
OF_LAYER = {'alpha': 'alpha', 'beta': 'beta', 'K_over_n': 'K/n', 'relative_error': 'relative error',
            'flip_ratio': 'flip ratio'}


class Board:
    """The events of a run in `folder`, see Events; an `epoch` counts from 0."""

    def __init__(self, folder: Path, done: int = 0):
        self.events = Events(folder, done)

    def add_metrics(self, split: str, epoch: int, metrics: dict, lr: float):
        """Those of Meter.read() of one split, 'train' or 'val'."""
        for tag, key in CURVES.items():
            self.events.add_scalar(split, tag, metrics[key], epoch)
        if split == 'train':
            self.events.add_scalar(split, 'optimizer/learning rate', lr, epoch)

    def add_layer(self, number: int, name: str, epoch: int, measures: dict[str, Tensor]):
        """The measures of a binarized layer: their means, and histograms where there are more."""
        group = weights_of(number, name)
        for key, values in measures.items():
            tag = f'{group}/{OF_LAYER[key]}'
            self.events.add_scalar('train', tag, values.mean().item(), epoch)
            if values.dim():
                self.events.add_histogram('train', f'{tag} by filter', values.numpy(), epoch)

    def add_mistakes(self, pictures: list[Image.Image], epoch: int):
        for number, picture in enumerate(pictures, 1):
            self.events.add_picture('val', f'misclassified/{number}', picture, epoch)

    def add_filters(self, number: int, name: str, picture: Image.Image, epoch: int):
        self.events.add_picture('train', f'{weights_of(number, name)}/filters', picture, epoch)

    def flush(self):
        self.events.flush()

    def close(self):
        self.events.close()


def weights_of(number: int, name: str) -> str:
    """The group of a convolution, numbered as in the table that a run prints."""
    return f'weights {number} {name}'
