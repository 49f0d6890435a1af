"""The networks that are measured in training and validation."""
import argparse
from typing import NamedTuple

import torch
from torch import Tensor, nn

import models
from utils.source import new_network

CLASSES = 250


class Case(NamedTuple):
    name: str
    batch: int      # images in a step
    channels: int
    binStart: int
    binEnd: int

    def network(self, search: str | None) -> nn.Module:
        """The binarized network or, without a search, the real one from the same initialization."""
        torch.manual_seed(0)
        binarized = (self.binStart, self.binEnd, 'dab', search) if search else None
        return new_network(self.name, CLASSES, self.channels, binarized=binarized)

    def images(self, *count: int) -> Tensor:
        """Random images (*count, channels, side, side)."""
        side = models.default_inpsize(self.name)
        return torch.randn(*count, self.channels, side, side)


DEFAULT = [Case('sketchanetwbin', 32, 1, 2, 7), Case('resnetwbin18', 16, 1, 2, 100),
           Case('bincifar', 64, 3, 2, 7)]


def chosen(options: argparse.Namespace) -> list[Case]:
    """The cases of --model_def, or the default ones."""
    if options.model_def is None:
        return DEFAULT
    return [Case(name, options.batch_size, options.channels, options.binStart, options.binEnd)
            for name in options.model_def]
