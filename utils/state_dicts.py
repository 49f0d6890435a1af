"""The layers in a state_dict, whoever saved it."""
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import models
from utils.packed import is_packed
from utils.system.errors import InputError
from utils.training.checkpoint import is_dict_of, read_file

PREFIXES = 'module.', '_orig_mod.'      # of nn.DataParallel and torch.compile
COUNTER = 'num_batches_tracked'


class Layer(NamedTuple):
    """The tensors of one module."""

    name: str       # as its owner calls it
    tensors: dict[str, Tensor]      # by their names in the module: weight, bias, running_mean, …

    @property
    def is_norm(self) -> bool:
        return 'running_mean' in self.tensors and self.tensors['running_mean'].dim() == 1

    @property
    def has_weights(self) -> bool:
        """Whether it is a convolution or a linear layer."""
        return 'weight' in self.tensors and self.tensors['weight'].dim() > 1

    @property
    def kind(self) -> tuple[bool, bool]:
        return self.is_norm, self.has_weights

    @property
    def shape(self) -> torch.Size:
        return self.tensors['running_mean' if self.is_norm else 'weight'].shape

    @property
    def values(self) -> list[str]:
        """The names of its tensors, but for the counter of batches."""
        return [key for key in self.tensors if key != COUNTER]

    def __str__(self):
        return f'{self.name} ({"×".join(map(str, self.shape))})'


Layers = dict[str, Layer]       # in the order of their owner


def plain(name: str) -> str:
    """The name of a tensor without what binarization, DataParallel and torch.compile add to it."""
    while name.startswith(PREFIXES):
        name = name.partition('.')[2]
    return name.replace('parametrizations.weight.original', 'weight')


def layers_of(state: dict[str, Tensor]) -> Layers:
    """The layers with real numbers in a state_dict.

    Without learned values of binarization methods, and without weights that are changed by another
    parametrization, such as spectral_norm.
    """
    layers: Layers = {}
    changed = {plain(name).partition('.parametrizations.')[0] for name in state
               if '.parametrizations.' in name and '.parametrizations.weight.original' not in name
               and '.parametrizations.weight.0.method.' not in name}
    for key, tensor in state.items():
        name, _, own_name = plain(key).rpartition('.')
        if '.parametrizations.' in f'.{name}.' or (name in changed and own_name == 'weight'):
            continue
        is_real = (tensor.is_floating_point() and tensor.layout == torch.strided
                   and not tensor.is_quantized)
        if is_real or own_name == COUNTER:
            layers.setdefault(name, Layer(name, {})).tensors[own_name] = tensor
    return layers


def read_layers(path: str | Path) -> Layers:
    """The layers in a file of torch.save, as utils.pretrained describes it. Raises InputError."""
    if is_packed(path):
        raise InputError(f'{path} is a packed model, whose weights have two values: name the '
                         'checkpoint that it was made from')
    content = read_file(path, only_zip=False)
    wrapped = content if isinstance(content, dict) else {}
    candidates = [content, wrapped.get('state_dict'), wrapped.get('model')]
    state = next((state for state in candidates if is_dict_of(state, Tensor) and state), {})
    layers = {}
    if all(name.isprintable() and len(name) < 300 for name in state):
        layers = layers_of({key: tensor for key, tensor in state.items() if not tensor.is_meta})
    if not layers:
        raise InputError(f'{path} holds no state_dict: a dict of tensors, by itself or under '
                         "'state_dict' or 'model'")
    arch = wrapped.get('arch')
    return as_named_here(layers, arch) if isinstance(arch, str) else layers


def as_named_here(layers: Layers, arch: str) -> Layers:
    """The layers of a checkpoint of the 2018 program by the names of models.build(arch).

    It registered BatchNorm layers behind convolutions even where it applied them before, so that
    only the order within a kind counts. Others, who also write an `arch`, keep their names.
    """
    if arch not in models.names():
        return layers
    with torch.device('meta'), torch.random.fork_rng(devices=[]):
        reference = layers_of(models.build(arch, 1, 1).state_dict())
    theirs_as: Layers = {}
    for kind in 'has_weights', 'is_norm':
        theirs, ours = ([layer for layer in some.values() if getattr(layer, kind)]
                        for some in (layers, reference))
        checked = -1 if kind == 'has_weights' else None     # the classifier can have other classes
        planes = [[layer.shape[0] for layer in some[:checked]] for some in (theirs, ours)]
        if len(theirs) != len(ours) or planes[0] != planes[1]:
            return layers
        theirs_as |= {own.name: layer for own, layer in zip(ours, theirs)}
    return {name: theirs_as[name] for name in reference}


def is_numbered_in_order(layers: Layers) -> bool:
    """Whether modules that differ in a number only, as branch1 and branch2, are in its order."""
    last: dict[str, int] = {}
    for name in layers:
        for match in re.finditer(r'[0-9]+(?=\.|$)', name):
            place, number = name[:match.start()], int(match[0])
            if number < last.get(place, -1):
                return False
            last[place] = number
    return True
