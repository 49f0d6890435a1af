"""The weights of another run or another program as the initial values of a network.

The rule of --pretrained_file=FILE:

1.  FILE is a checkpoint of this program, a state_dict that torch.save wrote, or a dict with one in
    'state_dict' or 'model'. Prefixes of DataParallel and torch.compile are dropped; real and latent
    weights count as the same. No code in the file is run.
2.  By name: where at least half of the convolutions and linear layers, of the file or of the
    network, whichever has fewer, have common names, and half of these the same shape, layers of
    one name and shape are taken. A
    checkpoint of the 2018 program counts as one of the network that its `arch` names.
3.  In order: otherwise the convolutions and linear layers of the file, in its order, must have the
    shapes of the network's, in the order of registration, up to the classifier, the last. A linear
    layer counts as a convolution over its whole input. The first convolution may have other input
    channels, and the classifier another shape; they keep their initial values. In place of the
    classifier the file may have several linear layers. Any other difference is an error, and so
    are numbered modules out of order, such as branch2 ahead of branch1.
4.  A BatchNorm is taken only where it stands in the same place. By name: where the layer ahead of
    it has one name in both. In order: where all layers up to the classifier are of the same kinds
    and widths. Between real and fbin variants most are not taken: ahead of a sign a BatchNorm
    normalizes another quantity than behind a convolution.

A layer whose weight does not fit keeps all its initial values, as does a BatchNorm behind it. The
learned values of a binarization method are not taken: they start from the weights that were.
"""
from pathlib import Path

from torch import nn

from utils.state_dicts import (COUNTER, Layer, Layers, convolutions_and_linears,
                               is_numbered_in_order, layers_of, plain, read_layers)
from utils.system.errors import InputError
from utils.system.files import check_numbers

MOST_NAMES = 4      # that the log lists one by one

Pairs = list[tuple[Layer, Layer]]       # of the file and of the network


def load_pretrained(model: nn.Module, path: str | Path) -> list[str]:
    """Copy what the rule above takes from the file at path into `model`.

    Returns sentences for the log: what was taken, what else the file has, and what keeps its
    initial values. Raises InputError for any other file than those of the rule, for one that does
    not fit, and for numbers that are not finite.
    """
    state = model.state_dict()
    stored, own = read_layers(path), layers_of(state)
    pairs = pairs_by_name(stored, own)
    in_order = pairs is None
    if in_order:
        pairs = pairs_in_order(stored, own, path)
    pairs = fitting(pairs, own)
    if not any(ours.has_weights for _, ours in pairs):
        raise InputError(f'no layer of {path} fits this network')
    taken = {f'{ours.name}.{key}': theirs.tensors[key].reshape(tensor.shape).to(tensor.dtype)
             for theirs, ours in pairs for key, tensor in ours.tensors.items()
             if key in theirs.tensors}
    check_numbers(taken, path)
    model.load_state_dict({key: taken[plain(key)] for key in state if plain(key) in taken},
                          strict=False)
    how = 'by name'
    if in_order:
        (first, own_first), (last, own_last) = pairs[0], pairs[-1]
        how = (f'in order: {first.name} -> {own_first.name}, …, {last.name} -> {own_last.name}')
    return sentences(path, stored, own, pairs, how)


def fitting(pairs: Pairs, own: Layers) -> Pairs:
    """The pairs of equal shapes, without a BatchNorm whose input comes from a layer of no pair."""
    ahead, found, names = layer_ahead(own), [], {None}
    for theirs, ours in pairs:
        if fits(theirs, ours) and not (ours.is_norm and ahead[ours.name] not in names):
            found.append((theirs, ours))
            names.add(ours.name)
    return found


def fits(theirs: Layer, ours: Layer) -> bool:
    """Whether the tensors that both layers have are of the same shapes."""
    if theirs.is_norm != ours.is_norm or theirs.has_weights != ours.has_weights:
        return False
    if theirs.has_weights and not have_same_weight(theirs, ours):
        return False
    return all(theirs.tensors[key].shape == tensor.shape for key, tensor in ours.tensors.items()
               if key in theirs.tensors and not (key == 'weight' and theirs.has_weights))


def have_same_weight(theirs: Layer, ours: Layer) -> bool:
    """Whether the weights have one shape, or one is linear and the other a convolution."""
    one, other = theirs.shape, ours.shape
    return one == other or ({len(one), len(other)} == {2, 4} and one[0] == other[0]
                            and one.numel() == other.numel())


def pairs_by_name(stored: Layers, own: Layers) -> Pairs | None:
    """The layers of common names, or None where fewer than half have them."""
    theirs, ours = ({name for name, layer in layers.items() if layer.has_weights}
                    for layers in (stored, own))
    common = theirs & ours
    alike = [name for name in common if have_same_weight(stored[name], own[name])]
    if 2 * len(common) < min(len(theirs), len(ours)) or 2 * len(alike) < len(common):
        return None
    ahead, own_ahead = layer_ahead(stored), layer_ahead(own)
    return [(stored[name], layer) for name, layer in own.items() if name in stored
            and not (layer.is_norm and ahead[name] != own_ahead[name])]


def layer_ahead(layers: Layers) -> dict[str, str | None]:
    """{name: name of the layer ahead of it}."""
    return dict(zip(layers, [None, *layers]))


def pairs_in_order(stored: Layers, own: Layers, path: str | Path) -> Pairs:
    """The layers up to the classifier, and that too where it fits. Raises InputError."""
    for whose, layers in (path, stored), ('this network', own):
        if not is_numbered_in_order(layers):
            raise InputError(f'{path} fits this network neither by name nor in order: the numbered '
                             f'layers of {whose} are out of order')
    theirs, ours = convolutions_and_linears(stored), convolutions_and_linears(own)
    alike = number_alike(theirs, ours)
    last = len(ours) - 1        # the classifier
    if alike == len(theirs) == len(ours):
        return with_batchnorms(theirs, ours, stored, own)
    head = theirs[last:]
    if alike < last or not (len(head) == 1 or all(is_linear(layer) for layer in head)):
        index = min(alike, last)
        difference = (f'number {index + 1} is {theirs[index]}, in the network {ours[index]}'
                      if index < len(theirs) else
                      f'it has {len(theirs)}, the network {len(ours)}')
        raise InputError(f'{path} fits this network neither by name nor in order: of '
                         f'convolutions and linear layers {difference}')
    return with_batchnorms(theirs[:last], ours[:last], stored, own)


def number_alike(theirs: list[Layer], ours: list[Layer]) -> int:
    """How many from the first on have equal weights, the first but for its input channels."""
    number = 0
    for one, other in zip(theirs, ours):
        is_first = number == 0 and without_channels(one) == without_channels(other)
        if not (is_first or have_same_weight(one, other)):
            break
        number += 1
    return number


def without_channels(layer: Layer) -> tuple:
    return layer.shape[0], layer.shape[2:]


def is_linear(layer: Layer) -> bool:
    return len(layer.shape) == 2


def with_batchnorms(theirs: list[Layer], ours: list[Layer], stored: Layers, own: Layers) -> Pairs:
    """The pairs of these convolutions and linear layers, and of all layers in between if alike."""
    both = up_to_next(stored, len(theirs)), up_to_next(own, len(ours))
    if len(both[0]) == len(both[1]) and all(
            one.is_norm == other.is_norm and one.has_weights == other.has_weights
            and (one.has_weights or fits(one, other)) for one, other in zip(*both)):
        return list(zip(*both))
    return list(zip(theirs, ours))


def up_to_next(layers: Layers, count: int) -> list[Layer]:
    """The layers ahead of the convolution or linear layer that follows on the first `count`."""
    found, chosen = 0, []
    for layer in layers.values():
        found += layer.has_weights
        if found > count:
            break
        chosen.append(layer)
    return chosen


def sentences(path: str | Path, stored: Layers, own: Layers, pairs: Pairs, how: str) -> list[str]:
    """What load_pretrained returns."""
    left = beside(stored, {theirs.name: ours for theirs, ours in pairs})
    initial = beside(own, {ours.name: theirs for theirs, ours in pairs})
    counts = [sum(len(real_keys(layer)) for layer in layers)
              for layers in (stored.values(), own.values())]
    taken = counts[1] - sum(map(len, initial.values()))
    lines = [f'starts from {path}: {taken} of its {counts[0]} tensors, {how}']
    if left:
        lines.append(f'not taken from {path}: {listed(stored, left)}')
    if initial:
        lines.append(f'initial values: {listed(own, initial)}')
    return lines


def real_keys(layer: Layer) -> list[str]:
    return [key for key in layer.tensors if key != COUNTER]


def beside(layers: Layers, partners: dict[str, Layer]) -> dict[str, list[str]]:
    """{name of a layer: its tensors that its partner does not have}, where it has such."""
    rest = {}
    for layer in layers.values():
        partner = partners.get(layer.name)
        keys = [key for key in real_keys(layer) if not partner or key not in partner.tensors]
        if keys:
            rest[layer.name] = keys
    return rest


def listed(layers: Layers, keys: dict[str, list[str]]) -> str:
    """These tensors in a few words: whole layers by their names, long lists by their ends."""
    groups: dict[tuple, list[str]] = {}
    for layer in layers.values():
        if layer.name in keys:
            own_keys = keys[layer.name]
            is_whole = own_keys == real_keys(layer)
            names = [layer.name] if is_whole else [f'{layer.name}.{key}' for key in own_keys]
            group = layer.is_norm, is_whole or tuple(own_keys)
            groups.setdefault(group, []).extend(names)
    return ', '.join(f'{names[0]}, {names[1]} … {names[-1]} ({len(names)})'
                     if len(names) > MOST_NAMES else ', '.join(names)
                     for names in groups.values())
