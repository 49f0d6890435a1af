"""Sums in float64 of what any device computes, without waiting for it."""
from collections.abc import Sequence

import torch
from torch import Tensor

from utils.system.devices import has_float64

from . import parallel


class Sums:
    """`count` sums over images.

    They are added up when they are read, on the CPU, since some GPUs have no float64; until then
    terms stay on the device where they were computed.
    """

    def __init__(self, count: int, device: torch.device):
        self.device, self.images = device, 0
        self.sums = torch.zeros(count, dtype=torch.float64)
        self.terms: list[Tensor] = []
        self.factors: list[Sequence[int]] = []

    def add(self, terms: Tensor, factors: Sequence[int], images: int):
        """Add each of the terms (count,) times its factor; `images` is how many they are of."""
        self.terms.append(terms)
        self.factors.append(factors)
        self.images += images

    def read(self) -> tuple[list[float], int]:
        """The sums and the number of images, of all processes; waits for them and the device."""
        if self.terms:
            terms = torch.stack(self.terms).cpu().double()
            for products in terms * torch.tensor(self.factors, dtype=torch.float64):
                self.sums += products       # one after another, whenever they are read
            self.terms, self.factors = [], []
        total = torch.cat([self.sums, torch.tensor([self.images])])
        if parallel.processes() > 1:    # NCCL adds on GPUs only
            dtype = torch.float64 if has_float64(self.device) else torch.float32
            total = parallel.sum_(total.to(self.device, dtype))
        *sums, images = total.tolist()
        return sums, int(images)
