"""From strokes to the likeliest classes, by the network of a checkpoint or a packed model."""
import base64
import io
import time
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import datasets
from utils import packed
from utils.system import console
from utils.binarize import binarized
from utils.packed import BinaryUnit, ExpandedConv2d
from utils.packed.ops import has_kernel
from utils.source import Source, stored_network
from utils.training.predictions import likeliest

from .drawing import frame_of, sketch


class Recognizer:
    """A network that recognizes drawings, on the CPU; not for several threads at a time.

    It takes the center crop of an image, also where it was validated on ten. Binarized inputs make
    it compute on bits, as validation does. Within parametrize.cached() weights are binarized once.
    """

    def __init__(self, source: Source):
        flags, self.classes = source.flags, list(map(console.one_line, source.classes))
        self.spec = source.spec
        self.frame = frame_of(flags['dataset'])
        self.transform = datasets.transform(self.spec, flags['inpsize'])
        self.network = packed.on_bits(stored_network(source).eval())
        self.arithmetic = arithmetic(self.network)

    def seen(self, strokes: Sequence[np.ndarray]) -> Tensor:
        """What the network sees of a drawing: normalized float32 (1, inpsize, inpsize)."""
        return self.transform(sketch(strokes, self.frame))

    @torch.no_grad()
    def answer(self, strokes: Sequence[np.ndarray]) -> dict:
        """What the page shows of a drawing, to be sent as JSON.

        likeliest: [class, probability] of the likeliest classes; seen: the image that the network
        saw, as the URL of a PNG; network_ms and total_ms: milliseconds of the network, of it all.
        """
        start = time.perf_counter()
        image = self.seen(strokes)
        before = time.perf_counter()
        log_probs = self.network(image[None])
        after = time.perf_counter()
        labels, probabilities = (of_images[0].tolist() for of_images in likeliest(log_probs))
        named = [[self.classes[label], probability]
                 for label, probability in zip(labels, probabilities)]
        url = picture(datasets.pixels(image, self.spec))
        return {'likeliest': named, 'seen': url, 'network_ms': 1000 * (after - before),
                'total_ms': 1000 * (time.perf_counter() - start)}


def picture(pixels: Tensor) -> str:
    """The URL of a gray PNG of pixels (1, height, width) in [0, 1]."""
    png = io.BytesIO()
    Image.fromarray((255 * pixels[0]).round().byte().numpy()).save(png, 'PNG', compress_level=1)
    return f'data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}'


def arithmetic(network: nn.Module) -> str:
    """What the network computes with."""
    on_bits = sum(isinstance(module, BinaryUnit) for module in network.modules())
    others = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    if on_bits and has_kernel():
        return f'bits in {on_bits} of {on_bits + others} convolutions, float32 in the others'
    expanded = any(isinstance(module, ExpandedConv2d) for module in network.modules())
    if on_bits or expanded or binarized(network):
        return 'float32 with two-valued weights'
    return 'float32'
