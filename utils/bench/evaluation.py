"""The benchmark `eval`: a validation pass over two batches of two images of ten crops."""
import argparse
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from utils.training.epoch import predict

from .cases import chosen
from .timing import compare


def bench(options: argparse.Namespace) -> list[dict]:
    """The binarized network against the real one."""
    rows = []
    for case in chosen(options):
        crops = case.images(2, 10)
        real, binary = (partial(validate, case.network(search).eval(), crops)
                        for search in (None, options.binSearch))
        rows.append(compare(f'eval {case.name} 2 batches of 2 × 10 crops', real, binary,
                            options.rounds))
    return rows


@torch.no_grad()
def validate(model: nn.Module, crops: Tensor):
    with parametrize.cached():
        for _ in range(2):
            predict(model, crops)
