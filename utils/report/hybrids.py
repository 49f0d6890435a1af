"""Which inputs a hybrid network should keep real by two rules, and what each hybrid costs.

The first rule names the third of the sign layers with the largest normalized RMSE. The second
follows Prabhu, Batchu, Gajawada, Munagala, Namboodiri, "Hybrid Binary Networks: Optimizing for
Accuracy, Efficiency and Memory", WACV 2018, arXiv 1804.03867, as far as its rule is known here.

Established. By the abstract, a metric "jointly models the input binarization-error and
computational cost" of a layer, and an algorithm selects by it the layers whose inputs are
binarized. By the authors' code (github.com/erilyth/HybridBinaryNetworks-WACV18) the error is
measured on a trained fbin network (train.py), and layers with a high score keep real inputs
(visualizations/plot_binarization_errors.py, with the scores of three networks). On ResNet-18
these scores are proportional, within 9 %, to the RMSE over the square root of the multiply-adds;
not so to the normalized RMSE. Its costs count a binary multiply-add as 1/58 of a real one, the
speed-up that Rastegari et al. (XNOR-Net, ECCV 2016) give (plot_speedups.py; our multiply-adds
reproduce its numbers for AlexNet and Sketch-A-Net).

Decided here, since the text of the paper was not at hand. The score is (mean of (sign(x) − x)²)
over the multiply-adds of the layer: what keeping an input real regains, for what it costs. The
scores of Sketch-A-Net's last two layers, which have few multiply-adds, are far below that. The
layers are partitioned by 2-means of the logarithms of their scores, which no unit and no root
changes, and the upper group keeps real inputs. On the authors' own scores this partition gives
their second hybrid of Sketch-A-Net (7 real), and their first of ResNet-18 (the last six 3×3
convolutions) but for one layer more.
"""
import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils import binarize
from utils.activations import MEASURES
from utils.describe import watching_inputs

BINARY = 58             # binary multiply-adds that cost as much as a real one, see above


class Cost(NamedTuple):
    """The multiply-adds of one image."""
    real: int
    binary: int

    @property
    def equivalent(self) -> float:
        """In real multiply-adds."""
        return self.real + self.binary / BINARY


@torch.no_grad()
def multiply_adds(model: nn.Module, image: Tensor) -> dict[str, int]:
    """{name: multiply-adds} of every convolution and linear layer for one image (c, h, w).

    Counted from the shapes that pass through, padding included; nothing else is counted.
    """
    counted = {name: layer for name, layer in model.named_modules()
               if isinstance(layer, nn.Conv2d | nn.Linear)}
    found: dict[str, int] = {}

    def count(name, x):
        layer = counted[name]
        if isinstance(layer, nn.Linear):
            found[name] = x.shape[:-1].numel() * layer.in_features * layer.out_features
            return
        filters = torch.empty(layer.out_channels, layer.in_channels // layer.groups,
                              *layer.kernel_size, device='meta')
        y = F.conv2d(x.to('meta', torch.float32), filters, None, layer.stride, layer.padding,
                     layer.dilation, layer.groups)
        found[name] = y.numel() * filters[0].numel()

    with watching_inputs(counted, count):
        model(image[None])
    return found


class Costs:
    """What a network costs with this or that choice of inputs that are binarized."""

    def __init__(self, model: nn.Module, image: Tensor):
        counted = multiply_adds(model, image)
        self.total = sum(counted.values())
        self.by_number = {number: counted[name]
                          for number, name, _ in binarize.convolutions(model)}
        self.binarizable = {number for number, _, conv in binarize.convolutions(model)
                            if binarize.binarization(conv)}

    def with_signs(self, numbers: Collection[int]) -> Cost:
        """The cost if the convolutions with these numbers have binarized inputs.

        Where their weights are real, their multiply-adds are real too.
        """
        binary = sum(self.by_number[number] for number in self.binarizable.intersection(numbers))
        return Cost(self.total - binary, binary)


def worst_first(losses: Mapping[int, list[float]], measure: str) -> list[int]:
    """The numbers of the layers with these MEASURES, the largest loss first."""
    column = MEASURES.index(measure)
    return sorted(losses, key=lambda number: -losses[number][column])


def worst_third(losses: Mapping[int, list[float]], measure: str) -> list[int]:
    """The third of the layers, rounded up, that loses the most, the worst first."""
    return worst_first(losses, measure)[:math.ceil(len(losses) / 3)]


def errors_per_cost(losses: Mapping[int, list[float]],
                    by_number: Mapping[int, int]) -> dict[int, float]:
    """{number: mean squared error of sign(x) over the multiply-adds of its convolution}."""
    column = MEASURES.index('RMSE')
    return {number: measures[column] ** 2 / by_number[number]
            for number, measures in losses.items()}


def upper_group(scores: Mapping[int, float]) -> list[int]:
    """The layers in the upper of the two groups of scores, the largest first; [] if all are equal.

    The groups are those of 2-means of the logarithms, exactly: what dab's split makes of a filter.
    """
    order = sorted(scores, key=lambda number: -scores[number])
    logs = torch.tensor([math.log(max(scores[number], 1e-300)) for number in order],
                        dtype=torch.float64)
    if len(order) < 2 or logs[0] == logs[-1]:
        return []
    alpha, beta, mask = binarize.split(logs.view(1, -1, 1, 1))
    upper = mask if alpha > beta else ~mask
    return [number for number, is_upper in zip(order, upper.flatten().tolist()) if is_upper]
