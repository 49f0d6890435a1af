"""What a network takes images for: the likeliest classes of each, and the confused classes."""
import torch
from torch import Tensor

from . import parallel

LIKELIEST = 5       # classes of an image that are kept


class Predictions:
    """The likeliest classes of every image, from the batches that epoch.validate observes."""

    def __init__(self):
        self.batches: list[tuple[Tensor, Tensor, Tensor]] = []

    def observe(self, log_probs: Tensor, target: Tensor):
        """Add a batch: log_probs (N, classes), target (N,); nothing waits for the device."""
        top = log_probs.softmax(1).topk(min(LIKELIEST, log_probs.size(1)))
        self.batches.append((target, top.indices, top.values))

    def own(self) -> tuple[Tensor, ...]:
        """gather() of the images of this process alone; () without an image."""
        return tuple(torch.cat(parts).cpu() for parts in zip(*self.batches))

    def gather(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of all images in their order, whichever process had them, on the CPU.

        Class numbers (N,), the likeliest classes (N, LIKELIEST) and their probabilities.
        """
        shares = [share for share in parallel.gather(self.own()) if share]
        return tuple(map(interleaved, zip(*shares)))


def interleaved(shares: tuple[Tensor, ...]) -> Tensor:
    """One tensor of the rows of several processes, of which process r has rows r, r + P, …"""
    whole = shares[0].new_empty(sum(map(len, shares)), *shares[0].shape[1:])
    for rank, share in enumerate(shares):
        whole[rank::len(shares)] = share
    return whole


def confusion(target: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """(classes, classes): how many images of class i were taken for class j."""
    return torch.bincount(target * classes + predicted, minlength=classes ** 2).view(classes, -1)


def lowest_first(counts: Tensor) -> list[int]:
    """The class numbers in the order of their accuracy in counts, a confusion()."""
    return (counts.diagonal() / counts.sum(1).clamp(min=1)).sort(stable=True).indices.tolist()


def confused_pairs(counts: Tensor) -> list[tuple[int, int]]:
    """The pairs (i, j), i < j, of classes confused in either direction in counts, worst first."""
    pairs = torch.triu(counts + counts.T, diagonal=1).flatten()
    order = pairs.sort(descending=True, stable=True).indices.tolist()
    return [divmod(place, len(counts)) for place in order if pairs[place]]
