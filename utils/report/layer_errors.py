"""The binarized convolutions of a network, measured in float64 under every method."""
from typing import NamedTuple

import torch
from torch import Tensor, nn

from utils import binarize

ROUNDING = 1e-12        # of ‖W‖²: by how much float64 can be wrong about an error
PART = 256              # filters at a time, which keeps the memory for large layers small


class Layer(NamedTuple):
    """A binarized convolution as evaluation sees it; all tensors per filter are (out,)."""
    number: int
    name: str
    method: str             # the name of its own binarizer
    projected: Tensor       # the projected latent weights W, (out, c, kh, kw)
    weight: Tensor          # their W~ that the layer computes with, of their shape
    alpha: Tensor
    beta: Tensor
    mask: Tensor            # of their shape, True where a weight becomes alpha
    norms: Tensor           # ‖W‖², in float64, above 0
    errors: dict[str, Tensor]   # {method: ‖W − W~‖²}, in float64

    @property
    def title(self) -> str:
        return title(self.number, self.name)

    @property
    def shares(self) -> Tensor:
        """K/n of every filter."""
        return self.mask.flatten(1).double().mean(1)

    def relative_error(self, method: str) -> float:
        return (self.errors[method].sum() / self.norms.sum()).item()

    def worse_filters(self) -> int:
        """How many filters have a larger error under dab than under xnor."""
        excess = self.errors['dab'] - self.errors['xnor']
        return int((excess > ROUNDING * self.norms).sum())

    def two_valued(self, method: str) -> Tensor:
        """W~ of the projected weights under a method; under its own, what it computes with."""
        return self.weight if method == self.method else two_valued(self.projected, method)


def title(number: int, name: str) -> str:
    """What a report calls the convolution of this number and name."""
    return f'convolution {number} ({name})'


def measure_layers(model: nn.Module) -> list[Layer]:
    """The Layer of every binarized convolution."""
    smallest = torch.finfo(torch.float64).tiny
    layers = []
    for number, name, conv in binarize.convolutions(model):
        if own := binarize.binarization(conv):
            projected, weight, alpha, beta, mask = binarize.layer_weights(conv)
            norms = projected.flatten(1).double().square().sum(1).clamp_min(smallest)
            errors = {method: squared_errors(projected, method) for method in binarize.METHODS}
            if own.method.state_dict():     # learned values, which only this layer has
                difference = projected.double() - weight
                errors[own.name] = difference.flatten(1).square().sum(1)
            layers.append(Layer(number, name, own.name, projected, weight, alpha, beta, mask,
                                norms, errors))
    return layers


def squared_errors(weight: Tensor, method: str) -> Tensor:
    """‖W − W~‖² of every filter of weight (out, c, kh, kw): (out,), in float64."""
    errors = []
    for part in weight.split(PART):
        part = part.double()
        difference = part - binarize.binarize_weight(part, method)
        errors.append(difference.flatten(1).square().sum(1))
    return torch.cat(errors)


def two_valued(weight: Tensor, method: str) -> Tensor:
    """W~ of weight (out, c, kh, kw), in its dtype, but searched in float64."""
    return torch.cat([binarize.binarize_weight(part.double(), method).to(weight.dtype)
                      for part in weight.split(PART)])
