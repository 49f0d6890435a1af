"""The section on what the first binarized convolutions respond to one image."""
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from utils.record.describe import watching_inputs
from utils.report.layer_errors import Layer

from .page import Page
from .words import capitalized, number

LAYERS = 2      # whose responses are shown
CHANNELS = 4    # of each
PIXEL = 0.1             # inches of a number of a map
SIDES = 0.5, 1.9        # inches, the smallest and the largest map
SLOT = 1.15             # inches at least, from one map to the next, for what stands above them


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
                picture(-image[0].numpy()))
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
    maps, alone, texts = {'real weights': real}, set(), []
    for method in compared_methods(layer):
        y = respond(conv, x, layer.two_valued(method))
        loss = ((y - real).square().sum() / real.square().sum()).item()
        title = f'{method} weights\nlost {loss:,.2f}'
        maps[title] = y
        texts.append(f'{method} weights lose {loss:,.2f}')
        if loss > 1:        # as of bnn, which has no scale
            alone.add(title)
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
                maps_figure(channels, {title: y[channels].numpy() for title, y in maps.items()},
                            alone),
                f'{capitalized(layer.title)}: of the response of the real weights '
                f'{", ".join(texts)}.')


@torch.no_grad()
def layer_inputs(model: nn.Module, names: list[str], image: Tensor) -> dict[str, Tensor]:
    """{name: the input (1, c, h, w) of that layer} when the network sees the image (c, h, w)."""
    inputs: dict = {}
    layers = {name: model.get_submodule(name) for name in names}
    with watching_inputs(layers, inputs.__setitem__):
        model(image[None])
    return inputs


def respond(conv: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    """Convolve x (1, c, h, w) with this weight and no bias: (out, h', w')."""
    return F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)[0]


def picture(pixels: np.ndarray) -> Figure:
    """One gray picture (h, w)."""
    side = map_side(pixels)
    figure = Figure(figsize=(side + 0.2, side + 0.2))
    show(figure.add_axes((0.1 / (side + 0.2),) * 2 + (side / (side + 0.2),) * 2), pixels)
    return figure


def map_side(values: np.ndarray) -> float:
    """The side of a map (…, h, w) in inches."""
    smallest, largest = SIDES
    return min(largest, max(smallest, PIXEL * max(values.shape[-2:])))


def show(ax, values: np.ndarray, **limits: float):
    ax.imshow(values, cmap='gray', interpolation='none', **limits)
    ax.set_axis_off()


def maps_figure(channels: list[int], maps: dict[str, np.ndarray], alone: set[str]) -> Figure:
    """Maps {title of a row: (channels, h, w)}; each column, a channel, has its own gray scale.

    The rows whose titles are in `alone` have scales of their own.
    """
    together = np.stack([rows for title, rows in maps.items() if title not in alone])
    side = map_side(together)
    slot, left, above, gap = max(SLOT, side + 0.12), 1.5, 0.55, 0.12        # inches
    width, height = left + slot * len(channels), above + (side + gap) * len(maps)
    figure = Figure(figsize=(width, height))
    for column, channel in enumerate(channels):
        low, high = together[:, column].min(), together[:, column].max()
        figure.text((left + slot * column) / width, 1 - 0.42 / height,
                    f'channel {channel}\n{number(low)} to {number(high)}', fontsize=8)
        for row, (title, values) in enumerate(maps.items()):
            bottom = height - above - side - row * (side + gap)
            ax = figure.add_axes(((left + slot * column) / width, bottom / height, side / width,
                                  side / height))
            show(ax, values[column], **{} if title in alone else dict(vmin=low, vmax=high))
            if column == 0:
                figure.text(0.1 / width, (bottom + side / 2) / height, title, va='center')
    return figure
