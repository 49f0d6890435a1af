"""The registry of architectures: build(name, nClasses, ...) returns a network.

Each family is one file of this folder, found by itself. A new architecture is one new file:

    from torch import nn
    from . import register
    from .blocks import Units, network

    @register(inpsize=32)
    def mynet(nClasses, channels, inpsize):
        unit = Units()
        return network(**unit(channels, 64, 3), **unit(64, 128, 3, stride=2),
                       pool=nn.AdaptiveAvgPool2d(1), **unit.conv(128, nClasses, 1))

and can be trained at once: python3 main.py --model_def=mynet. Variants of a family, for example an
fbin variant, in which the inputs of some convolutions are binarized too, are rows of `variants`:

    @register(inpsize=32, variants={
        'tiny':     dict(signLayers=''),
        'tinyfbin': dict(signLayers='2'),
    })
    def tiny(nClasses, channels, inpsize, signLayers):
        unit = Units(signLayers)
        return network(**unit(channels, 64, 3), **unit(64, 128, 3, stride=2),
                       pool=nn.AdaptiveAvgPool2d(1), **unit.conv(128, nClasses, 1))

Weights are not binarized here: utils.binarize.wrap does that to any model.
"""
import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import nn

from utils.system.errors import InputError

from .blocks import initialize, layer_set

MAX_INPSIZE = 2 ** 12   # pixels: side of the largest image that a network is built for


class Variant(NamedTuple):
    builder: Callable[..., nn.Module]
    inpsize: int
    smallest: int
    options: dict       # the builder's keywords that make this variant
    signable: str       # the convolutions of the family whose inputs can be binarized, as '2-7'


_variants: dict[str, Variant] = {}


def register(inpsize: int = 224, smallest: int = 1, variants: dict[str, dict] | None = None):
    """Register the decorated builder(nClasses, channels, inpsize, **options) -> nn.Module.

    inpsize: the default side of an input image in pixels. smallest: the smallest side that the
    architecture can process. variants: {name: options}, by default the builder's own name without
    options. If the options have 'signLayers', build() can replace them by any subset of the largest
    signLayers of the family. Raises ValueError if a name is already taken.
    """
    def decorator(builder):
        options_of = variants or {builder.__name__: {}}
        signable = max((options.get('signLayers', '') for options in options_of.values()),
                       key=lambda layers: len(layer_set(layers)))
        for name, options in options_of.items():
            if name in _variants:
                other = _variants[name].builder.__module__
                raise ValueError(f'{other} and {builder.__module__} both register a model {name}')
            _variants[name] = Variant(builder, inpsize, smallest, options, signable)
        return builder
    return decorator


def build(name: str, nClasses: int, channels: int = 3, inpsize: int | None = None,
          signLayers: str | Iterable[int] | None = None) -> nn.Module:
    """Return the network: images (N, channels, inpsize, inpsize) -> log-softmax (N, nClasses).

    inpsize=None is the family's default. signLayers, '2-5,7' or a set of numbers, are the
    convolutions whose inputs are binarized, in place of the variant's; everything else (biases,
    dropout) stays. Variants of a family start from the same weights under the same seed.
    Raises InputError for an unknown name, an inpsize that is too small or beyond MAX_INPSIZE, and
    signLayers that the family cannot binarize.
    """
    variant = _find(name)
    inpsize = variant.inpsize if inpsize is None else inpsize
    bound, side = 'least', variant.smallest
    if inpsize > MAX_INPSIZE:
        bound, side = 'most', MAX_INPSIZE
    if not variant.smallest <= inpsize <= MAX_INPSIZE:
        raise InputError(f'{name} takes images of at {bound} {side} × {side} pixels, '
                         f'not {inpsize}')
    options = variant.options
    if signLayers is not None:
        if not variant.signable:
            raise InputError(f'{name} takes no signLayers: its family has no variants that differ '
                             'in which inputs are binarized')
        chosen = layer_set(signLayers)
        if not chosen <= layer_set(variant.signable):
            raise InputError(f'signLayers of {name} must lie in {variant.signable}, '
                             f'not {signLayers}')
        options = options | {'signLayers': chosen}
    seed = int(torch.randint(2 ** 63 - 1, (), device='cpu'))
    with torch.random.fork_rng(devices=[]):
        model = variant.builder(nClasses, channels, inpsize, **options)
        # From here on no draw depends on how many numbers the builder has drawn for its biases.
        torch.default_generator.manual_seed(seed)
        return model.apply(initialize)


def names() -> list[str]:
    """Return the names of all models, sorted."""
    return sorted(_variants)


def family(name: str) -> list[str]:
    """Return the names of the models that share a builder with `name`, real-valued ones first."""
    builder = _find(name).builder
    return [other for other, variant in _variants.items() if variant.builder is builder]


def sign_layers(name: str) -> frozenset[int]:
    """Return the numbers of the convolutions of `name` whose inputs are binarized.

    Only those that signLayers can change count: none of nin's.
    """
    return layer_set(_find(name).options.get('signLayers', ''))


def default_inpsize(name: str) -> int:
    """Return the side in pixels of the images that `name` was made for."""
    return _find(name).inpsize


def _find(name):
    if name not in _variants:
        near = ', '.join(difflib.get_close_matches(name, _variants, n=5))
        raise InputError(f"there is no model '{name}'" + (f' (near: {near})' if near else '') +
                         "; python3 -c 'import models; print(*models.names())' lists all")
    return _variants[name]


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f'{__name__}.{_module.name}')
