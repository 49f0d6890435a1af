"""Binarized layers on a device against the definition of the method, in float64 on the CPU."""
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from utils import binarize
from utils.binarize import make_method
from utils.errors import RunError

from .cases import Case

TOLERANCES = {      # of what deviations() returns
    'projection': 1e-6,
    'J': 1e-4,      # of a training step; relative, as are all of the following
    'W~': 1e-5,
    'gradient': 1e-4,
    'J in evaluation': 1e-6,
    'hidden NaN': 0,
}
KINDS = [           # filters, from n normal numbers z
    lambda z: 0.05 * z,
    lambda z: 0.7 + 1e-3 * z,
    lambda z: 0.1 * z.abs(),                                # skewed
    lambda z: 0.02 * z + 0.9 * (z > 1.3),                   # bimodal
    lambda z: 1e-3 * z / z.flip(0),                         # heavy-tailed
    lambda z: (2 * z).round() / 4,                          # with many ties
    lambda z: 1.5 * z,                                      # with many beyond the clamp
    lambda z: torch.full_like(z, 0.1),
    lambda z: 1e-30 * z,
    lambda z: 1e-6 * z + 0.9 * (torch.arange(len(z)) == 0),     # one outlier far away
    lambda z: z.where(torch.arange(len(z)) != 1, torch.nan),
]


class Layer(NamedTuple):
    """A convolution by the shape of its weights (out, in / groups, kh, kw)."""
    out: int
    channels: int
    height: int
    width: int
    groups: int = 1

    def __str__(self):
        groups = f' in {self.groups} groups' if self.groups > 1 else ''
        return '×'.join(map(str, self[:4])) + groups


FURTHER = [Layer(64, 1, 3, 3, 64), Layer(48, 16, 3, 3, 4), Layer(32, 2, 1, 1), Layer(32, 3, 1, 1),
           Layer(22, 2048, 7, 7)]   # depthwise, grouped, shortest, longest


def layers_of(cases: Iterable[Case]) -> list[Layer]:
    """The different binarized layers of the cases."""
    found = {}
    for case in cases:
        for _, conv in binarize.binarized(case.network('fast', torch.device('cpu'))):
            found[Layer(*conv.parametrizations.weight.original.shape, conv.groups)] = None
    return list(found)


def check_layer(layer: Layer, method: str, device: torch.device) -> list[dict]:
    """Print the line of a layer, PASS or FAIL and its deviations; returns its row.

    Raises RunError where it fails.
    """
    found = deviations(layer, method, device)
    passes = all(found[name] <= tolerance for name, tolerance in TOLERANCES.items())   # no NaN does
    listed = ', '.join(f'{name} {found[name]:.1e}' for name in TOLERANCES)
    print(f'{"PASS" if passes else "FAIL"} {method:4} {layer}: {listed}', flush=True)
    if not passes:
        raise RunError(f'allowed are {TOLERANCES}')
    return [{'case': f'layer {method} {layer}', **found}]


def deviations(layer: Layer, method: str, device: torch.device) -> dict[str, float]:
    """The largest deviation over all filters of each of TOLERANCES, after one training step.

    The filters are of all KINDS in turn. Where the split may differ from the exact one, as it may
    within the bound of J, W~ and the gradient are held against the split that was made.
    """
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(layer.out, layer.channels * layer.height * layer.width, generator=generator)
    start = torch.stack([KINDS[i % len(KINDS)](row) for i, row in enumerate(z)])
    gradient = torch.randn(z.shape, generator=generator)
    conv = make_convolution(layer, method, start, device)
    latent, used = conv.parametrizations.weight.original, conv.weight
    used.backward(gradient.view(layer[:4]).to(device))
    in_step = [tensor.detach().cpu().double().flatten(1) for tensor in (latent, used, latent.grad)]
    evaluated = binarize.layer_weights(conv.eval())
    evaluated = [tensor.cpu().double().flatten(1) for tensor in (evaluated.projected,
                                                                 evaluated.weight)]
    expected = binarize.project_(start.double().view(layer[:4])).flatten(1)
    whole = start.isfinite().all(1)
    shows = binarize.binarize_weight(expected, method).isnan().any(1)
    hidden = (shows & ~in_step[1].isnan().any(1)).sum().item()
    projected, used, latent_gradient = (tensor[whole] for tensor in in_step)
    found = split_deviations(projected, used, gradient[whole].double(), latent_gradient, method,
                             layer.channels)
    return found | {'projection': largest(projected - expected[whole]), 'hidden NaN': hidden,
                    'J in evaluation': lost(*(tensor[whole] for tensor in evaluated), method)}


def make_convolution(layer: Layer, method: str, weight: Tensor, device: torch.device) -> nn.Conv2d:
    """The layer in training mode with these latent weights (out, n)."""
    conv = nn.Conv2d(layer.channels * layer.groups, layer.out, (layer.height, layer.width),
                     groups=layer.groups, bias=False)
    with torch.no_grad():
        conv.weight.copy_(weight.view_as(conv.weight))
    return binarize.wrap(conv, 1, 1, method).to(device).train()


def split_deviations(rows: Tensor, used: Tensor, gradient: Tensor, latent_gradient: Tensor,
                     method: str, channels: int) -> dict[str, float]:
    """Of J, W~ and the gradient; everything is (out, n) in float64, rows are projected."""
    alpha, beta, mask = make_method(method, rows).split(rows)
    constant = used.amax(1) == used.amin(1)
    if method == 'dab':
        mask = mask.where(constant[:, None], used == used.amax(1, keepdim=True))
        marked = mask.sum(1, keepdim=True)
        alpha = (rows * mask).sum(1, keepdim=True) / marked
        beta = (rows * ~mask).sum(1, keepdim=True) / (rows.size(1) - marked)
    expected = torch.where(mask, alpha, beta)
    factor = make_method(method, rows).gradient_factor(rows.abs() < 1, alpha, beta, mask)
    factor = factor * (1 - 1 / channels if channels > 1 else 1)
    scale = expected.abs().amax(1, keepdim=True).clamp(min=1e-300)
    error = (latent_gradient - gradient * factor) / (gradient * factor).abs().clamp(min=1e-6)
    if method == 'dab':
        error = error[~constant]    # there is no telling which weights are marked
    return {'J': lost(rows, used, method), 'W~': largest((used - expected) / scale),
            'gradient': largest(error)}


def lost(rows: Tensor, used: Tensor, method: str) -> float:
    """The share of J that W~ = `used` loses against the exact split, J being that of rows - mean.

    J = ‖rows − mean‖² − ‖rows − W~‖² is what a split of a filter gains; only that of dab is best.
    """
    if method != 'dab':
        return 0.0
    alpha, beta, mask = make_method(method, rows).split(rows)
    scale = rows.abs().amax(1, keepdim=True).clamp(min=1e-300)
    rows, used, best = (tensor / scale for tensor in (rows, used, torch.where(mask, alpha, beta)))
    mean = rows.mean(1, keepdim=True)

    def gain(two_valued):
        return ((rows - mean).square() - (rows - two_valued).square()).sum(1)
    # A constant filter has nothing to gain but rounding.
    return largest(((gain(best) - gain(used)) / gain(best).clamp(min=1e-6)).clamp(min=0))


def largest(deviation: Tensor) -> float:
    return deviation.abs().max().item()
