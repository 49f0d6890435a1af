"""Confusion tables of classes, and intervals of accuracies: what evaluation and reports show."""
import math
import statistics

import torch
from torch import Tensor

LEVEL = 0.95        # of intervals


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


def wilson_interval(right: int, images: int) -> tuple[float, float]:
    """The score interval at LEVEL of the accuracy of which `right` of so many images are a sample.

    Both ends lie in [0, 1]; without an image it is all of that. Source: Wilson, "Probable
    Inference, the Law of Succession, and Statistical Inference", JASA 1927.
    """
    z = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)
    half = z * math.sqrt(right * (images - right) / max(images, 1) + z ** 2 / 4)
    low, high = ((right + z ** 2 / 2 + side * half) / (images + z ** 2) for side in (-1, 1))
    return max(low, 0.0), min(high, 1.0)    # against rounding
