"""What binarization does to the weights of each layer, epoch after epoch."""
from torch import Tensor, nn

from utils.binarize import binarization, convolutions, layer_weights
from utils.training.checkpoint import on_cpu


def masks(model: nn.Module) -> dict[str, Tensor]:
    """{name: mask} of every binarized convolution, as in LayerWeights."""
    return {name: layer_weights(conv).mask
            for _, name, conv in convolutions(model) if binarization(conv)}


def flipped(before: Tensor, after: Tensor) -> Tensor:
    """The share of weights that changed sides between two masks of a layer."""
    return (after != before).float().mean()


class Layers:
    """Measures the binarized layers; it keeps the masks from which it counts flips."""

    def __init__(self):
        self.masks: dict[str, Tensor] = {}

    def remember_masks(self, model: nn.Module):
        """Keep which weights take which value, from which the next measures count flips."""
        self.masks = masks(model)

    def measures(self, model: nn.Module) -> dict[tuple[int, str], dict[str, Tensor]]:
        """{(number, name) of a binarized convolution: {measure: values}}, on the CPU.

        alpha, beta and K_over_n are per filter; relative_error is ‖W − W~‖²/‖W‖², flip_ratio the
        share of weights that changed sides since remember_masks or since the last call.
        """
        return on_cpu({(number, name): self._of_layer(name, layer_weights(conv))
                       for number, name, conv in convolutions(model) if binarization(conv)})

    def _of_layer(self, name, layer):
        error = (layer.projected - layer.weight).square().sum() / layer.projected.square().sum()
        flips = flipped(self.masks[name], layer.mask)
        self.masks[name] = layer.mask
        share = layer.mask.flatten(1).float().mean(1)
        return {'alpha': layer.alpha, 'beta': layer.beta, 'K_over_n': share,
                'relative_error': error, 'flip_ratio': flips}
