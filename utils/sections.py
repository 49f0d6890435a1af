"""The sections of a report that need nothing but a network, an image and the logs of its run."""
import json
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from utils import binarize, figures

FILTERS = 4             # of each layer get a histogram, and as many channels a picture of their responses
RESPONDING = 2          # layers whose responses are shown
ROUNDING = 1e-12        # of ‖W‖²: what float64 can err in an error
CURVES = {      # of weights.jsonl: name: ({label: key}, axis, caption)
    'values': ({'α': 'alpha', 'β': 'beta'}, 'weight', 'The two values α and β, means over the filters (no unit)'),
    'shares': ({'K/n': 'K_over_n'}, 'K/n', 'K/n, the share of weights that become α, mean over the filters'),
    'error': ({'relative error': 'relative_error'}, 'relative error',
              "Relative error ‖W − W~‖²/‖W‖² of the network's own binarizer (no unit)"),
    'flips': ({'flip ratio': 'flip_ratio'}, 'flip ratio',
              'Flip ratio, the share of weights that changed sides within the epoch'),
}


class Layer(NamedTuple):
    """A binarized convolution as evaluation sees it; all per-filter tensors are (out,)."""
    number: int
    name: str
    weight: Tensor      # the projected latent weights, (out, c, kh, kw)
    alpha: Tensor
    beta: Tensor
    mask: Tensor        # of weight's shape, True where a weight becomes alpha
    norms: Tensor       # ‖W‖², in float64, above 0
    errors: dict        # {method: ‖W − W~‖²}, in float64

    @property
    def shares(self):
        return self.mask.flatten(1).double().mean(1)

    def relative_error(self, method):
        return (self.errors[method].sum() / self.norms.sum()).item()


def two_valued(weight, method):
    """W~ of weight (out, c, kh, kw), in its dtype, but searched in float64; by parts, for large layers."""
    return torch.cat([binarize.binarize_weight(part.double(), method).to(weight.dtype) for part in weight.split(256)])


def squared_errors(weight, method):
    """‖W − W~‖² of every filter of weight (out, c, kh, kw): (out,), in float64; by parts, for large layers."""
    return torch.cat([(part - binarize.binarize_weight(part, method)).flatten(1).square().sum(1)
                      for part in map(Tensor.double, weight.split(256))])


def measure_layers(model):
    """The Layer of every binarized convolution."""
    layers = []
    for number, name, conv in binarize.convolutions(model):
        if binarize.binarization(conv):
            weight, alpha, beta, mask = binarize.layer_split(conv)
            norms = weight.flatten(1).double().square().sum(1).clamp_min(torch.finfo(torch.float64).tiny)
            layers.append(Layer(number, name, weight, alpha, beta, mask, norms,
                                {method: squared_errors(weight, method) for method in binarize.METHODS}))
    return layers


def worse_filters(layer):
    """How many filters dab leaves with a larger error than xnor."""
    return int((layer.errors['dab'] - layer.errors['xnor'] > ROUNDING * layer.norms).sum())


def weights(page, layers):
    page.text(f'{FILTERS} filters of each binarized convolution (counted from 0), evenly spaced from the one with the '
              'smallest K/n to the one with the largest. The boundary lies at (α + β)/2: a weight takes the nearer '
              'of the two values.')
    for layer in layers:
        order = layer.shares.argsort(stable=True)
        chosen = order[torch.linspace(0, len(order) - 1, min(FILTERS, len(order))).round().long()]
        shown = [(f'filter {i}: K/n = {layer.shares[i]:.2f}', layer.weight[i].flatten().numpy(),
                  layer.mask[i].flatten().numpy(), layer.alpha[i].item(), layer.beta[i].item())
                 for i in chosen.tolist()]
        page.figure(f'weights-{layer.number}.png',
                    f'Convolution {layer.number} ({layer.name}): how many of the {layer.weight[0].numel()} latent '
                    f'weights of a filter (vertical, a count) have which value (horizontal, no unit), for '
                    f'{len(shown)} of its {len(layer.weight)} filters.', figures.histograms, shown)
    page.figure('spread.png', 'K/n, the share of the weights that become α (above; dotted: one half), and the two '
                'values α and β (below, no unit; dotted: 0), over the filters of each binarized convolution. The '
                'line in a box is the median, the box holds the middle half of the filters, the whiskers the middle '
                '90 %. The naive method would have K wherever 0 cuts the weights, and β = −α.', figures.spread,
                [layer.number for layer in layers], *([getattr(layer, name).numpy() for layer in layers]
                                                      for name in ('shares', 'alpha', 'beta')))


def errors(page, layers, binarizer):
    page.text('What the same latent weights W lose when they are binarized to W~ by each method: the relative error '
              '‖W − W~‖²/‖W‖², in float64. 0 would be no loss; 1 is the loss of setting all weights to 0. The '
              f'network was trained under {binarizer}, and its weights have adapted to that.')
    relative = {method: [layer.relative_error(method) for layer in layers] for method in binarize.METHODS}
    page.figure('errors.png', 'Relative error ‖W − W~‖²/‖W‖² of all weights of a convolution (no unit) under '
                f'{", ".join(relative)} (above), under dab and xnor enlarged (below); the lines only guide the eye.',
                figures.errors, [layer.number for layer in layers], relative)
    rows = [(layer.number, layer.name, len(layer.weight), layer.weight[0].numel(), f'{layer.shares.mean():.3f}',
             *(f'{relative[method][i]:.4g}' for method in relative),
             f'{layer.errors["dab"].sum() / layer.errors["xnor"].sum():.4f}', worse_filters(layer))
            for i, layer in enumerate(layers)]
    page.table(['convolution', 'name', 'filters', 'n', 'mean K/n', *relative, 'dab / xnor',
                'filters with dab > xnor'], rows)
    dab, xnor = (torch.cat([layer.errors[method] / layer.norms for layer in layers]).numpy()
                 for method in ('dab', 'xnor'))
    worse, filters = sum(map(worse_filters, layers)), sum(len(layer.weight) for layer in layers)
    page.text(f'The error of dab exceeds that of xnor on {worse} of {filters} filters (differences below {ROUNDING:g} '
              'of ‖W‖², which are rounding, not counted). By its construction it never should.')
    page.figure('filters.png', 'Relative error of each single filter (no unit) under dab (vertical) and under xnor '
                '(horizontal). Below the dotted line dab loses less.', figures.error_pairs, dab, xnor)


@torch.no_grad()
def layer_inputs(model, names, image):
    """{name: what that layer gets (1, c, h, w)} when the network sees the image (channels, side, side)."""
    inputs = {}
    hooks = [model.get_submodule(name).register_forward_pre_hook(
        lambda _, given, name=name: inputs.update({name: given[0]})) for name in names]
    model(image[None])
    for hook in hooks:
        hook.remove()
    return inputs


def respond(conv, x, weight):
    """What a convolution makes of its input x (1, c, h, w) with this weight and no bias: (out, h', w')."""
    return F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)[0]


def responses(page, model, layers, image, source):
    page.text('What the first binarized convolutions answer to one image, computed with their real latent weights, '
              'with those weights binarized by dab and by xnor. All three get the same input, the one that the network '
              'of this checkpoint gives them, so that only the weights differ. Where inputs are not centred around 0, '
              'as behind a ReLU, it helps that dab keeps the sum of the weights of a filter, Kα + (n − K)β = ΣW; '
              'xnor does not.')
    page.figure('input.png', f'{source}, as the network sees it: ink dark, paper white, a square for each pixel.',
                figures.picture, -image[0].numpy())
    inputs = layer_inputs(model, [layer.name for layer in layers], image)
    chosen = [layer for layer in layers if min(inputs[layer.name].shape[2:]) > 1][:RESPONDING]
    if not chosen:
        page.text('No binarized convolution answers with more than one number a channel: there is nothing to show.')
    for layer in chosen:
        conv = model.get_submodule(layer.name)
        kinds = {'real': layer.weight, **{method: two_valued(layer.weight, method) for method in ('dab', 'xnor')}}
        maps = {kind: respond(conv, inputs[layer.name], weight) for kind, weight in kinds.items()}
        lost = {kind: ((y - maps['real']).square().sum() / maps['real'].square().sum()).item()
                for kind, y in maps.items()}
        channels = maps['real'].flatten(1).var(1).argsort(descending=True, stable=True)[:FILTERS].tolist()
        page.figure(f'responses-{layer.number}.png',
                    f'Responses of convolution {layer.number} ({layer.name}), before bias, BatchNorm and ReLU, by '
                    f'position in the image: rows are the weights, columns the {len(channels)} channels (counted from '
                    '0) whose real responses vary the most, each with its own scale of gray (no unit), the same in all '
                    'rows. "Lost" is ‖y − y~‖²/‖y‖² over all channels, y the response of the real weights.',
                    figures.responses, channels, {kind: y[channels].numpy() for kind, y in maps.items()},
                    {kind: f'{kind} weights' + ('' if kind == 'real' else f'\nlost {lost[kind]:.2f}') for kind in maps})


def training(page, layers, folder, epoch):
    """Curves from the logs in `folder`, the run's own; epoch is that of the checkpoint."""
    metrics = rows(folder / 'metrics.jsonl', {'epoch', 'split', 'top1', 'top5'})
    curves = {title: {label: curve([row for row in metrics if row['split'] == split], key)
                      for label, split in (('training', 'train'), ('validation', 'val'))}
              for title, key in (('top-1', 'top1'), ('top-5', 'top5'))}
    if metrics:
        page.figure('accuracy.png', 'Accuracy after each epoch, in percent of the (augmented) training images and of '
                    'the validation images. The dotted line is the epoch of this checkpoint.',
                    figures.accuracy, curves, epoch)
    else:
        page.text('The curves of the accuracy are left out: there is no metrics.jsonl beside the checkpoint '
                  f'({folder}).')
    keys = {key for keys, *_ in CURVES.values() for key in keys.values()}
    log = rows(folder / 'weights.jsonl', {'epoch', 'layer', *keys})
    by_layer = {f'convolution {layer.number}': [row for row in log if row['layer'] == layer.name] for layer in layers}
    if not all(by_layer.values()):
        page.text('The curves of α, β, K/n, error and flips are left out: there is no weights.jsonl of this network '
                  f'beside the checkpoint ({folder}).')
        return
    for name, (keys, axis, caption) in CURVES.items():
        lines = {title: {label: curve(log, key) for label, key in keys.items()} for title, log in by_layer.items()}
        page.figure(f'training-{name}.png', f'{caption}, over the epochs, for every binarized convolution. All panels '
                    'share their axes; the vertical one need not begin at 0.', figures.per_layer, lines, axis, epoch)


def curve(log, key):
    """(epochs counted from 1, values) of the rows of a log."""
    return [row['epoch'] + 1 for row in log], [row[key] for row in log]


def rows(path, keys):
    """The objects in the lines of a log, each with at least these keys; [] where there is no such file."""
    if not path.is_file():
        return []
    try:
        log = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
        if all(keys <= row.keys() for row in log):
            return log
    except (ValueError, AttributeError):
        pass
    raise ValueError(f'{path} is damaged or no log of this program: without it, the report leaves out its curves')
