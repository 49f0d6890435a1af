"""Predictions of a network: loss and hits over images, and the likeliest classes of each."""
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from utils.system.devices import has_float64

from . import parallel

LIKELIEST = 5       # classes of an image that are kept
NO_HIT = 2 ** 31 - 1    # a rank behind any


def true_class_ranks(log_probs: Tensor, target: Tensor) -> Tensor:
    """The rank of each image's true class among all, from 0; log_probs (N, classes), target (N,).

    A rank below k is a top-k hit, in training, evaluation and comparisons. Of equally likely
    classes the one with the lower number comes first, as with argmax: ties favour no method, and a
    network whose outputs are all equal is right as often as chance. (Networks that end in ReLU give
    many outputs of exactly 0.) NaN among the outputs is no hit. Nothing waits for the device.
    """
    true_class = log_probs.gather(1, target[:, None])
    has_lower_number = torch.arange(log_probs.size(1), device=target.device) < target[:, None]
    is_before = (log_probs > true_class) | (log_probs == true_class) & has_lower_number
    return is_before.sum(1).masked_fill(log_probs.isnan().any(1), NO_HIT)


def likeliest(log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """The LIKELIEST classes of each image, the likeliest first, and their probabilities.

    log_probs: (N, classes); both results (N, LIKELIEST), or fewer where there are fewer classes.
    The order is that of true_class_ranks, which torch.topk does not promise.
    """
    order = log_probs.sort(dim=1, descending=True, stable=True).indices[:, :LIKELIEST]
    return order, log_probs.softmax(1).gather(1, order)


class Sums:
    """`count` sums over images, in float64.

    They are added up when they are read, on the CPU, since some GPUs have no float64; until then
    terms stay on the device where they were computed, and nothing waits for it.
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

    def total(self) -> tuple[list[float], int]:
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


class Meter(Sums):
    """The loss and the top-1 and top-5 hits over images."""

    def __init__(self, device: torch.device):
        super().__init__(3, device)
        self.start = time.perf_counter()
        self.data_time = 0.0

    def update(self, log_probs: Tensor, loss: Tensor, target: Tensor):
        """Add a batch: log_probs (N, classes), mean loss in nats, target (N,), class numbers."""
        ranks = true_class_ranks(log_probs.detach(), target)
        hits = [(ranks < top).sum().to(loss.dtype) for top in (1, 5)]
        self.add(torch.stack([loss.detach(), *hits]), (len(target), 1, 1), len(target))

    def read(self) -> dict[str, float]:
        """Over all processes; waits for them and for the device.

        Loss in nats, top1 and top5 in percent, times in seconds.
        """
        sums, images = self.total()
        loss, top1, top5 = (value / max(images, 1) for value in sums)
        return {'loss': loss, 'top1': 100 * top1, 'top5': 100 * top5, 'images': images,
                'time': time.perf_counter() - self.start, 'data_time': self.data_time}


def metrics_line(split: str, metrics: dict, prefix: str = '') -> str:
    """The line of one split: times in seconds, loss in nats, accuracies in percent."""
    hits = round(metrics['top1'] * metrics['images'] / 100)
    return (f'{split.capitalize() + ":":6} {prefix}  time {metrics["time"]:.1f} s  '
            f'data {metrics["data_time"]:.1f} s  loss {metrics["loss"]:.4f}  '
            f'accuracy {hits}/{metrics["images"]}  '
            f'top-1 {metrics["top1"]:.2f}  top-5 {metrics["top5"]:.2f}')


class Predictions:
    """The likeliest classes of every image, from the batches that epoch.validate observes."""

    def __init__(self):
        self.batches: list[tuple[Tensor, Tensor, Tensor]] = []

    def observe(self, log_probs: Tensor, target: Tensor):
        """Add a batch: log_probs (N, classes), target (N,); nothing waits for the device."""
        self.batches.append((target, *likeliest(log_probs)))

    def of_this_rank(self) -> tuple[Tensor, ...]:
        """gather() of the images of this process alone; () without an image."""
        return tuple(torch.cat(parts).cpu() for parts in zip(*self.batches))

    def gather(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gather the predictions of all processes, in the order of the images, on the CPU.

        Class numbers (N,), the likeliest classes (N, LIKELIEST) and their probabilities.
        """
        shares = [share for share in parallel.gather(self.of_this_rank()) if share]
        return tuple(map(interleaved, zip(*shares)))


def interleaved(shares: tuple[Tensor, ...]) -> Tensor:
    """One tensor of the rows of several processes, of which process r has rows r, r + P, …"""
    whole = shares[0].new_empty(sum(map(len, shares)), *shares[0].shape[1:])
    for rank, share in enumerate(shares):
        whole[rank::len(shares)] = share
    return whole


def mistakes(target: Tensor, likeliest: Tensor, probabilities: Tensor) -> list[int]:
    """Which images are misclassified, the one with the most probable mistake first.

    The arguments are what Predictions.gather returns.
    """
    wrong = (likeliest[:, 0] != target).nonzero().flatten()
    order = probabilities[wrong, 0].sort(descending=True, stable=True).indices
    return wrong[order].tolist()
