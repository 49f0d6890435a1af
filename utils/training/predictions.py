"""What a network takes images for: hits, the likeliest classes of each, the confused classes."""
import math
import statistics

import torch
from torch import Tensor

from . import parallel

LIKELIEST = 5       # classes of an image that are kept
LEVEL = 0.95        # of intervals
NO_HIT = 2 ** 31 - 1    # a rank behind any


def true_class_ranks(log_probs: Tensor, target: Tensor) -> Tensor:
    """The rank of each image's true class among all, from 0; log_probs (N, classes), target (N,).

    This alone decides what a top-k hit is, in training, evaluation and comparisons: a rank below k.
    Of equally likely classes the one with the lower number comes first, as in `likeliest` and with
    argmax, which whoever uses the network takes. This does not look at the true class, so ties
    favour no method, and a network whose outputs are all equal is right as often as chance.
    (Networks that end in ReLU and an average pool give many outputs of exactly 0.) An image with
    NaN among its outputs is no hit. Nothing waits for the device.
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


class Predictions:
    """The likeliest classes of every image, from the batches that epoch.validate observes."""

    def __init__(self):
        self.batches: list[tuple[Tensor, Tensor, Tensor]] = []

    def observe(self, log_probs: Tensor, target: Tensor):
        """Add a batch: log_probs (N, classes), target (N,); nothing waits for the device."""
        self.batches.append((target, *likeliest(log_probs)))

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


def taken_for(counts: Tensor, label: int) -> list[tuple[int, int]]:
    """(other class, images) that images of class `label` are taken for in counts, most first."""
    row = counts[label].tolist()
    return sorted(((other, images) for other, images in enumerate(row)
                   if images and other != label), key=lambda pair: -pair[1])


def wilson_interval(right: int, images: int) -> tuple[float, float]:
    """The score interval at LEVEL of the accuracy of which `right` of so many images are a sample.

    Both ends lie in [0, 1]; without an image it is all of that. Source: Wilson, "Probable
    Inference, the Law of Succession, and Statistical Inference", JASA 1927.
    """
    z = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)
    half = z * math.sqrt(right * (images - right) / max(images, 1) + z ** 2 / 4)
    low, high = ((right + z ** 2 / 2 + side * half) / (images + z ** 2) for side in (-1, 1))
    return max(low, 0.0), min(high, 1.0)    # against rounding


def mistakes(target: Tensor, likeliest: Tensor, probabilities: Tensor) -> list[int]:
    """Which images are misclassified, the one with the most probable mistake first.

    The arguments are what Predictions.gather returns.
    """
    wrong = (likeliest[:, 0] != target).nonzero().flatten()
    order = probabilities[wrong, 0].sort(descending=True, stable=True).indices
    return wrong[order].tolist()


def most_confused(counts: Tensor, number: int) -> list[int]:
    """Up to so many class numbers: those of the worst of the confused_pairs, pair by pair."""
    classes: dict[int, None] = {}
    for pair in confused_pairs(counts):
        if len(classes.keys() | pair) > number:
            break
        classes |= dict.fromkeys(pair)
    return list(classes)


def confused_adjacent(counts: Tensor) -> list[int]:
    """The class numbers in an order in which classes that are confused lie side by side.

    Clusters are merged from single classes on, always the two whose classes are confused the most
    on average (average linkage), and joined at those of their ends that are confused the most.
    """
    alike = (counts + counts.T).double()
    alike.fill_diagonal_(0)
    between = alike.clone().fill_diagonal_(-1)      # sums over the pairs of two clusters
    sizes = torch.ones(len(counts), dtype=torch.float64)
    clusters = {label: [label] for label in range(len(counts))}
    while len(clusters) > 1:
        means = between / sizes.outer(sizes)
        one, other = sorted(divmod(int(means.argmax()), len(counts)))
        clusters[one] = joined(clusters[one], clusters.pop(other), alike)
        sizes[one] += sizes[other]
        between[one] += between[other]
        between[:, one] = between[one]
        between[one, one] = -1
        between[other], between[:, other] = -1, -1
    return clusters[0] if clusters else []


def joined(one: list[int], other: list[int], alike: Tensor) -> list[int]:
    """Two orders of classes end to end, each turned so that the ends that meet are most alike."""
    ways = [(a, b) for a in (one, one[::-1]) for b in (other, other[::-1])]
    first, second = max(ways, key=lambda way: float(alike[way[0][-1], way[1][0]]))
    return first + second
