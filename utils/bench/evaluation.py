"""The benchmark `eval`: a validation pass over two batches of ten crops of each image."""
import argparse
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from utils import packed
from utils.training.epoch import predict, predictions

from .cases import chosen
from .timing import best_device, compare

IMAGES = {'cpu': 2, 'cuda': 32}     # in a batch


def bench(options: argparse.Namespace) -> list[dict]:
    """The binarized network against the real one, and on bits against simulated."""
    device, rows = best_device(), []
    for case in chosen(options, device):
        crops = case.images(device, IMAGES[device.type], 10)
        real, binary = (case.network(search, device).eval() for search in (None, options.binSearch))
        title = f'eval {case.name} 2 batches of {len(crops)} × 10 crops'
        rows.append(compare(title, partial(validate, real, crops), partial(validate, binary, crops),
                            options.rounds))
        if device.type == 'cpu' and packed.on_bits(binary) is not binary:
            rows.append(compare(f'{title}, on bits', partial(simulate, binary, crops),
                                partial(validate, binary, crops), options.rounds))
    return rows


def validate(model: nn.Module, crops: Tensor):
    for _ in predictions(model, [(crops, crops)] * 2, crops.device):
        pass


@torch.no_grad()
def simulate(model: nn.Module, crops: Tensor):
    with parametrize.cached():
        for _ in range(2):
            predict(model, crops)
