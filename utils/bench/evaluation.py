"""The benchmark `eval`: a validation pass over two batches of ten crops of each image."""
import argparse
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from utils import packed
from utils.devices import choose
from utils.training.epoch import predict, predictions

from .cases import chosen
from .timing import compare, kind

IMAGES = {'cpu': 2, 'gpu': 32}      # in a batch


def bench(options: argparse.Namespace) -> list[dict]:
    """The binarized network against the real one, and on bits against simulated."""
    device, rows = choose(options.device), []
    for case in chosen(options, device):
        crops = case.images(device, IMAGES[kind(device)], 10)
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
