"""The benchmark `eval`: a validation pass over two batches of two images of ten crops."""
import argparse
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from utils import packed
from utils.training.epoch import predict, predictions

from .cases import chosen
from .timing import compare

CPU = torch.device('cpu')


def bench(options: argparse.Namespace) -> list[dict]:
    """The binarized network against the real one, and on bits against simulated."""
    rows = []
    for case in chosen(options):
        crops = case.images(2, 10)
        real, binary = (case.network(search).eval() for search in (None, options.binSearch))
        title = f'eval {case.name} 2 batches of 2 × 10 crops'
        rows.append(compare(title, partial(validate, real, crops), partial(validate, binary, crops),
                            options.rounds))
        if packed.on_bits(binary) is not binary:
            rows.append(compare(f'{title}, on bits', partial(simulate, binary, crops),
                                partial(validate, binary, crops), options.rounds))
    return rows


def validate(model: nn.Module, crops: Tensor):
    for _ in predictions(model, [(crops, crops)] * 2, CPU):
        pass


@torch.no_grad()
def simulate(model: nn.Module, crops: Tensor):
    with parametrize.cached():
        for _ in range(2):
            predict(model, crops)
