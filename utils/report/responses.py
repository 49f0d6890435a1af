"""The section on what the first binarized convolutions respond to one image."""
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.describe import watching_inputs
from utils.report.layer_errors import Layer

from . import pictures
from .page import Page
from .words import capitalized

LAYERS = 2      # whose responses are shown
CHANNELS = 4    # of each


def add_responses(page: Page, model: nn.Module, layers: list[Layer], image: Tensor, title: str):
    """image: (1, side, side), as the network gets it; title says what it shows."""
    methods = compared_methods(layers[0])
    page.text('The responses of the first binarized convolutions to one image, computed with their '
              f'real latent weights and with those weights binarized by {" and by ".join(methods)}.'
              ' All get the same input, the one that the network of this checkpoint gives them, so '
              'that only the weights differ. Where inputs are not centred around 0, as behind a '
              'ReLU, it helps that dab keeps the sum of the weights of a filter, '
              'Kα + (n − K)β = ΣW; xnor does not.')
    page.figure('input', f'{title}, as the network sees it: ink dark, paper white.',
                pictures.picture(-image[0].numpy()))
    inputs = layer_inputs(model, [layer.name for layer in layers], image)
    shown = [layer for layer in layers if min(inputs[layer.name].shape[2:]) > 1][:LAYERS]
    if not shown:
        page.text('No binarized convolution gets more than one number a channel: there is nothing '
                  'to show.')
    for layer in shown:
        add_layer(page, layer, model.get_submodule(layer.name), inputs[layer.name])


def compared_methods(layer: Layer) -> list[str]:
    """The network's own method, dab and xnor."""
    return list(dict.fromkeys((layer.method, 'dab', 'xnor')))


def add_layer(page: Page, layer: Layer, conv: nn.Conv2d, x: Tensor):
    """The responses of one layer to its input x (1, c, h, w), a row for each kind of weights."""
    real = respond(conv, x, layer.projected)
    maps, lost = {'real weights': real}, {}
    for method in compared_methods(layer):
        y = respond(conv, x, layer.two_valued(method))
        loss = ((y - real).square().sum() / real.square().sum()).item()
        lost[f'{method} weights\nlost {loss:,.2f}'] = loss
        maps[f'{method} weights\nlost {loss:,.2f}'] = y
    alone = {title for title, loss in lost.items() if loss > 1}     # bnn, which has no scale
    by_variance = real.flatten(1).var(1).argsort(descending=True, stable=True)
    channels = by_variance[:CHANNELS].tolist()
    scales = 'the same in all rows'
    if alone:
        scales += ' but those that lose more than everything (above 1), which have their own'
    page.figure(f'responses-{layer.number}',
                f'Responses of {layer.title}, before bias, BatchNorm and ReLU, by position in the '
                f'image ({real.size(1)} × {real.size(2)}): rows are the weights, columns the '
                f'{len(channels)} channels (counted from 0) whose real responses vary the most. '
                'The numbers above a column are those drawn black and white (no unit), '
                f'{scales}. "Lost" is ‖y − y~‖²/‖y‖² over all channels, y the response of the '
                'real weights.',
                pictures.responses(channels, {title: y[channels].numpy()
                                              for title, y in maps.items()}, alone),
                f'{capitalized(layer.title)}: of the response of the real weights ' + ', '.join(
                    title.replace('\nlost', ' lose') for title in lost) + '.')


@torch.no_grad()
def layer_inputs(model: nn.Module, names: list[str], image: Tensor) -> dict[str, Tensor]:
    """{name: the input (1, c, h, w) of that layer} when the network sees the image (c, h, w)."""
    inputs: dict = {}
    layers = {name: model.get_submodule(name) for name in names}
    with watching_inputs(layers, inputs.__setitem__):
        model(image[None])
    return inputs


def respond(conv: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    """What a convolution makes of x (1, c, h, w) with this weight and no bias: (out, h', w')."""
    return F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)[0]
