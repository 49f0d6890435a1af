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
"""
import difflib
import importlib
import pkgutil
from collections.abc import Callable
from typing import NamedTuple

import torch

from .blocks import initialize, layer_set


class Variant(NamedTuple):
    builder: Callable
    inpsize: int
    smallest: int
    row: dict
    signable: str  # the convolutions of the family whose inputs may be binarized, as '2-7'


_variants = {}


def register(inpsize=224, smallest=1, variants=None):
    """Register the decorated builder(nClasses, channels, inpsize, **row) -> nn.Module.

    inpsize is the default side of an input image, smallest the least side that the architecture
    takes. variants maps names to rows, the keywords that distinguish them; without it the
    function's own name is the only one. Rows with 'signLayers' let build() override that entry by
    any part of the family's widest. Raises ValueError if a name is already taken.
    """
    def decorator(builder):
        rows = variants or {builder.__name__: {}}
        signable = max((row.get('signLayers', '') for row in rows.values()),
                       key=lambda layers: len(layer_set(layers)))
        for name, row in rows.items():
            if name in _variants:
                other = _variants[name].builder.__module__
                raise ValueError(f'{other} and {builder.__module__} both register a model {name}')
            _variants[name] = Variant(builder, inpsize, smallest, row, signable)
        return builder
    return decorator


def build(name, nClasses, channels=3, inpsize=None, signLayers=None):
    """Return the network: images (N, channels, inpsize, inpsize) -> log-softmax (N, nClasses).

    inpsize=None takes the family's default. signLayers, '2-5,7' or a set of numbers, replaces the
    variant's convolutions with binarized inputs and leaves all else (biases, dropout) as it is.
    Under one seed the variants of a family start from the same weights.
    Raises ValueError for an unknown name, an inpsize that is too small, and signLayers that the
    family cannot binarize.
    """
    variant = _find(name)
    inpsize = variant.inpsize if inpsize is None else inpsize
    if inpsize < variant.smallest:
        raise ValueError(f'{name} takes --inpsize of at least {variant.smallest}, not {inpsize}')
    row = variant.row
    if signLayers is not None:
        if not variant.signable:
            raise ValueError(f'{name} takes no signLayers: its family has no variants that differ '
                             'in which inputs are binarized')
        if not layer_set(signLayers) <= layer_set(variant.signable):
            raise ValueError(f'signLayers of {name} must lie in {variant.signable}, '
                             f'not {signLayers}')
        row = row | {'signLayers': signLayers}
    seed = torch.randint(2 ** 63 - 1, (), device='cpu').item()
    with torch.random.fork_rng(devices=[]):     # so that variants with other biases start from the same weights
        model = variant.builder(nClasses, channels, inpsize, **row)
        torch.default_generator.manual_seed(seed)
        return model.apply(initialize)


def names():
    """Return the names of all models, sorted."""
    return sorted(_variants)


def family(name):
    """Return the names of the models that share a builder with `name`, the real-valued one first if there is one."""
    builder = _find(name).builder
    return [other for other, variant in _variants.items() if variant.builder is builder]


def sign_layers(name):
    """Return the numbers of the convolutions of `name` whose inputs are binarized, of those that signLayers can change
    (none of nin's), as a frozenset.
    """
    return layer_set(_find(name).row.get('signLayers', ''))


def default_inpsize(name):
    """Return the side of the images that `name` was made for. Raises ValueError if unknown."""
    return _find(name).inpsize


def _find(name):
    if name not in _variants:
        near = ', '.join(difflib.get_close_matches(name, _variants, n=5))
        raise ValueError(f"there is no model '{name}'" + (f' (near: {near})' if near else '') +
                         "; python3 -c 'import models; print(*models.names())' lists all")
    return _variants[name]


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f'{__name__}.{_module.name}')
