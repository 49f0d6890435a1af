"""The weights of another run or another program as the initial values of a network.

The rule of --pretrained_file=FILE:

1.  FILE is a checkpoint of this program, a state_dict that torch.save wrote, or a dict with one in
    'state_dict' or 'model'. Prefixes of DataParallel and torch.compile are dropped; real and latent
    weights count as the same. No code in the file is run.
2.  By name: where at least half of the convolutions and linear layers, of the file or of the
    network, whichever has fewer, have common names, and half of these the same shape, layers of
    one name and shape are taken. A checkpoint of the 2018 program counts as one of the network
    that its `arch` names.
3.  In order: otherwise the convolutions and linear layers of the file, in its order, must have the
    shapes of the network's, in the order of registration, up to the classifier, the last. A linear
    layer counts as a convolution over its whole input. The first convolution may have other input
    channels, and the classifier another shape, or several linear layers in its place; they keep
    their initial values. Any other difference is an error, and so are numbered modules out of
    order, such as branch2 ahead of branch1.
4.  A BatchNorm is taken only where it stands in the same place. By name: where the layer ahead of
    it has one name in both. In order: where all layers up to the classifier are of the same kinds
    and widths. Ahead of a sign a BatchNorm normalizes another quantity than behind a convolution.

A layer whose weight does not fit keeps all its initial values, as does a BatchNorm behind it. The
learned values of a binarization method are not taken: they start from the weights.
"""
from pathlib import Path

from torch import nn

from utils.state_dicts import Layer, Layers, is_numbered_in_order, layers_of, plain, read_layers
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
    by_name = pairs_by_name(stored, own)
    pairs = fitting(pairs_in_order(stored, own, path) if by_name is None else by_name, own)
    if not any(ours.has_weights for _, ours in pairs):
        raise InputError(f'no layer of {path} fits this network')
    taken = {f'{ours.name}.{key}': theirs.tensors[key].reshape(tensor.shape).to(tensor.dtype)
             for theirs, ours in pairs for key, tensor in ours.tensors.items()
             if key in theirs.tensors}
    check_numbers(taken, path)
    model.load_state_dict({key: taken[plain(key)] for key in state if plain(key) in taken},
                          strict=False)
    how = 'by name'
    if by_name is None:
        (first, own_first), (last, own_last) = pairs[0], pairs[-1]
        how = f'in order: {first.name} -> {own_first.name}, …, {last.name} -> {own_last.name}'
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
    """Whether the layers are of one kind and the tensors that both have are of the same shapes."""
    if theirs.kind != ours.kind or ours.has_weights and not have_same_weight(theirs, ours):
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
    refusal = f'{path} fits this network neither by name nor in order:'
    for whose, layers in (path, stored), ('this network', own):
        if not is_numbered_in_order(layers):
            raise InputError(f'{refusal} the numbered layers of {whose} are out of order')
    theirs, ours = ([layer for layer in layers.values() if layer.has_weights]
                    for layers in (stored, own))
    alike = 0       # how many from the first on have equal weights
    for one, other in zip(theirs, ours):
        channels_differ = one.shape[0] == other.shape[0] and one.shape[2:] == other.shape[2:]
        if not (have_same_weight(one, other) or alike == 0 and channels_differ):
            break
        alike += 1
    count = len(ours)
    if not alike == len(theirs) == count:
        count -= 1      # without the classifier
        head = theirs[count:]
        if alike < count or not (len(head) == 1 or all(len(layer.shape) == 2 for layer in head)):
            first = min(alike, count)
            difference = (f'number {first + 1} is {theirs[first]}, in the network {ours[first]}'
                          if first < len(theirs) else
                          f'it has {len(theirs)}, the network {len(ours)}')
            raise InputError(f'{refusal} of convolutions and linear layers {difference}')
    both = up_to_next(stored, count), up_to_next(own, count)
    if len(both[0]) == len(both[1]) and all(
            one.kind == other.kind and (one.has_weights or fits(one, other))
            for one, other in zip(*both)):
        return list(zip(*both))     # with the BatchNorms in between
    return list(zip(theirs[:count], ours[:count]))


def up_to_next(layers: Layers, count: int) -> list[Layer]:
    """The layers ahead of the convolution or linear layer that follows on the first `count`."""
    every = list(layers.values())
    weighted = [place for place, layer in enumerate(every) if layer.has_weights]
    return every[:weighted[count]] if count < len(weighted) else every


def sentences(path: str | Path, stored: Layers, own: Layers, pairs: Pairs, how: str) -> list[str]:
    """Describe for the log what was loaded and what was not."""
    left = not_in_partner(stored, {theirs.name: ours for theirs, ours in pairs})
    initial = not_in_partner(own, {ours.name: theirs for theirs, ours in pairs})
    in_file, in_network = (sum(len(layer.values) for layer in layers.values())
                           for layers in (stored, own))
    taken = in_network - sum(map(len, initial.values()))
    lines = [f'starts from {path}: {taken} of its {in_file} tensors, {how}']
    if left:
        lines.append(f'not taken from {path}: {listed(stored, left)}')
    if initial:
        lines.append(f'initial values: {listed(own, initial)}')
    return lines


def not_in_partner(layers: Layers, partners: dict[str, Layer]) -> dict[str, list[str]]:
    """{name of a layer: its tensors that its partner does not have}, where it has such."""
    rest = {}
    for layer in layers.values():       # whose keys can be the names that they have here
        there = partners[layer.name].tensors if layer.name in partners else {}
        if keys := [key for key in layer.values if key not in there]:
            rest[layer.name] = keys
    return rest


def listed(layers: Layers, keys: dict[str, list[str]]) -> str:
    """These tensors in a few words: whole layers by their names, long lists by their ends."""
    groups: dict[tuple, list[str]] = {}
    for layer in layers.values():
        if own_keys := keys.get(layer.name):
            is_whole = own_keys == layer.values
            names = [layer.name] if is_whole else [f'{layer.name}.{key}' for key in own_keys]
            group = layer.is_norm, is_whole or tuple(own_keys)
            groups.setdefault(group, []).extend(names)
    return ', '.join(f'{names[0]}, {names[1]} … {names[-1]} ({len(names)})'
                     if len(names) > MOST_NAMES else ', '.join(names)
                     for names in groups.values())
