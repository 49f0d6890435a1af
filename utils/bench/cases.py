"""The networks that are measured in training and validation."""
import argparse
from typing import NamedTuple

import torch
from torch import Tensor, nn

import models
from utils.source import new_network

from .timing import kind

CLASSES = 250


class Case(NamedTuple):
    name: str
    batch: int = 16     # images in a step
    channels: int = 1
    binStart: int = 2
    binEnd: int = 100
    inpsize: int | None = None      # None: the network's own

    @property
    def side(self) -> int:
        """Of its images in pixels."""
        return self.inpsize or models.default_inpsize(self.name)

    def network(self, search: str | None, device: torch.device) -> nn.Module:
        """The binarized network or, without a search, the real one from the same initialization."""
        torch.manual_seed(0)
        binarized = (self.binStart, self.binEnd, 'dab', search) if search else None
        return new_network(self.name, CLASSES, self.channels, self.inpsize,
                           binarized=binarized).to(device)

    def images(self, device: torch.device, *count: int) -> Tensor:
        """Random images (*count, channels, side, side)."""
        return torch.randn(*count, self.channels, self.side, self.side).to(device)

    def __str__(self):
        side = f' at {self.inpsize}' if self.inpsize else ''
        return f'{self.name}{side} batch {self.batch} convolutions {self.binStart}-{self.binEnd}'


DEFAULT = {
    'cpu': [Case('sketchanetwbin', 32, binEnd=7), Case('resnetwbin18', 16),
            Case('bincifar', 64, 3, binEnd=7)],
    'gpu': [Case('sketchanetwbin', 256, binEnd=7), Case('resnetwbin18', 128),
             Case('bincifar', 256, 3, binEnd=7)],
}
BATCH = {'cpu': 16, 'gpu': 128}     # of the networks that --model_def names


def chosen(options: argparse.Namespace, device: torch.device,
           default: list[Case] | None = None) -> list[Case]:
    """The cases of --model_def, or the default ones, as the other flags change them."""
    cases = default or DEFAULT[kind(device)]
    if options.model_def:
        cases = [Case(name, BATCH[kind(device)]) for name in options.model_def]
    given = {name: value for name, value in vars(options).items()
             if name in Case._fields and value is not None}
    return [case._replace(**given) for case in cases]
