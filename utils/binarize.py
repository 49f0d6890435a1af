"""Distribution-aware binarization (DAB) of convolution weights: the whole method.

    Prabhu, Batchu, Munagala, Gajawada, Namboodiri: "Distribution-Aware Binarization of Neural
    Networks for Sketch Recognition", WACV 2018, arXiv:1804.02941.

A filter is the vector W of the n = c·kh·kw weights that make one output channel. It is replaced
by two real numbers and one bit per weight, W~ = α·e + β·(1 − e) with e in {0, 1}^n. A weight's way:

    latent parameter -> project -> split -> two values -> convolution

and the gradient's way back, from W~ to the latent weight, is each method's `gradient_factor`.
"""
import warnings

import torch
from torch import nn
from torch.nn.utils import parametrize

from . import native


class DAB:
    """Distribution-aware binarization: the least-squares best two values of every filter.

    Forward (WACV 2018, §3): W~ = α·e + β·(1 − e) with the two group means
    α = (W·e)/K, β = (W·(1 − e))/(n − K), K = Σe, and the e, 1 ≤ K ≤ n − 1, that maximizes
    J(e) = (W·e)²/K + (W·(1 − e))²/(n − K) = ‖W‖² − ‖W − W~‖². For each K the best e marks the
    K largest weights, so one sort and its prefix sums hold every candidate.

    Backward, with s = 1 − 1/c for c input channels per group (s = 1 where c = 1):
        dL/dW_i = dL/dW~_i · s · (|α|·[|W_i| < 1] + 1/K)          where e_i = 1
        dL/dW_i = dL/dW~_i · s · (|β|·[|W_i| < 1] + 1/(n − K))    where e_i = 0
    """

    @staticmethod
    def split(rows):
        n = rows.size(1)
        # A shift of the whole filter adds the same to every J, and float32 rounds the sums of small numbers less.
        mean = rows.mean(1, keepdim=True)
        descending, order = (rows - mean).sort(dim=1, descending=True, stable=True)
        sums = descending.cumsum(1)
        total, marked = sums[:, -1:], sums[:, :-1]
        counts = torch.arange(1, n, device=rows.device, dtype=rows.dtype)
        objective = marked.square() / counts + (total - marked).square() / (n - counts)
        best = objective.argmax(1, keepdim=True)
        marked = marked.gather(1, best)
        alpha = mean + marked / (best + 1)
        beta = mean + (total - marked) / (n - 1 - best)
        is_marked = torch.arange(n, device=rows.device) <= best
        mask = torch.empty_like(is_marked).scatter_(1, order, is_marked)
        return alpha, beta, mask

    @staticmethod
    def gradient_factor(inside, alpha, beta, mask):
        marked = mask.sum(1, keepdim=True)
        unmarked = mask.size(1) - marked
        return torch.where(mask, alpha.abs() * inside + 1 / marked, beta.abs() * inside + 1 / unmarked)


class XNOR:
    """Naive scaled binarization: BWN, and XNOR-Net where the inputs are binarized too.

    Forward: W~ = α·sign(W), α = mean |W| of the filter. Backward, s as for DAB:
    dL/dW_i = dL/dW~_i · s · n · (α·[|W_i| < 1] + 1/n). Source: Rastegari et al., "XNOR-Net", ECCV 2016.
    """

    @staticmethod
    def split(rows):
        alpha = rows.abs().mean(1, keepdim=True)
        return alpha, -alpha, rows >= 0

    @staticmethod
    def gradient_factor(inside, alpha, beta, mask):
        return mask.size(1) * alpha * inside + 1


class BNN:
    """Binarization to ±1 without a scale.

    Forward: W~ = sign(W). Backward, s as for DAB: dL/dW_i = dL/dW~_i · s · [|W_i| < 1].
    Source: Hubara et al., "Binarized Neural Networks", NIPS 2016.
    """

    @staticmethod
    def split(rows):
        alpha = torch.ones_like(rows[:, :1])
        return alpha, -alpha, rows >= 0

    @staticmethod
    def gradient_factor(inside, alpha, beta, mask):
        return inside.to(alpha.dtype)


# A method is a class with two functions, on rows (out, n) of weights:
#     split(rows) -> alpha (out, 1), beta (out, 1), mask (out, n), True where a weight becomes alpha
#     gradient_factor(inside, alpha, beta, mask) -> (out, n), what dL/dW~ is multiplied by beside s; inside is [|W| < 1]
METHODS = {'dab': DAB, 'xnor': XNOR, 'bnn': BNN}


def _method(name):
    if name not in METHODS:
        raise ValueError(f'unknown binarizer {name!r}: choose one of {", ".join(METHODS)}')
    return METHODS[name]


def _split_rows(weight, method):
    """(out, …) weights -> alpha (out, 1), beta (out, 1), mask (out, n); the search is in float32."""
    rows = weight.detach().flatten(1)
    if rows.size(1) < 2:
        raise ValueError('a filter of one weight cannot be split into two groups')
    return _method(method).split(rows if rows.dtype == torch.float64 else rows.float())


def split(weight, method='dab'):
    """The two values of every filter and which weights take which.

    weight: (out, c, kh, kw), or (out, n). Returns alpha (out,), beta (out,), in float32 (float64
    for float64 weights), and the boolean mask e of weight's shape, True where a weight becomes
    alpha. Under 'dab', alpha and beta are the means of the two groups and 1 <= e.sum() <= n - 1
    in every filter. Raises ValueError for n = 1 or an unknown method.
    """
    alpha, beta, mask = _split_rows(weight, method)
    return alpha.squeeze(1), beta.squeeze(1), mask.view(weight.shape)


def binarize_weight(weight, method='dab'):
    """W~ of `weight` (out, c, kh, kw): the same shape and dtype, two values in every filter."""
    alpha, beta, mask = _split_rows(weight, method)
    return torch.where(mask, alpha, beta).view(weight.shape).to(weight.dtype)


def project_(weight):
    """Project latent weights (out, c, kh, kw) in place: centre over input channels, clamp to ±1.

    A single input channel (a depthwise convolution) is not centred, which would erase it.
    """
    if weight.size(1) > 1:
        weight -= weight.mean(1, keepdim=True)
    return weight.clamp_(-1, 1)


class _StraightThrough(torch.autograd.Function):
    """latent -> W~ of the projected weights; backward scales by the method's gradient factor."""

    @staticmethod
    def forward(ctx, latent, projected, method):
        alpha, beta, mask = _split_rows(projected, method)
        ctx.method, ctx.channels = method, latent.size(1)
        ctx.save_for_backward(alpha, beta, mask, projected.flatten(1).abs() < 1)
        return torch.where(mask, alpha, beta).view(latent.shape).to(latent.dtype)

    @staticmethod
    def backward(ctx, gradient):
        alpha, beta, mask, inside = ctx.saved_tensors
        factor = METHODS[ctx.method].gradient_factor(inside, alpha, beta, mask)
        if ctx.channels > 1:
            factor = factor * (1 - 1 / ctx.channels)
        return (gradient * factor.view(gradient.shape)).to(gradient.dtype), None, None


class _NativeDAB(torch.autograd.Function):
    """What projection and _StraightThrough do under 'dab', fused on the CPU (utils/native.cpp).

    forward projects `projected` (the latent tensor or a copy of it) in place. The split is as exact
    as DAB.split's: a histogram bounds J between its edges, and is made again, finer, of the bins that
    may hold the optimum, until they hold so few weights that these are sorted.
    """

    @staticmethod
    def forward(ctx, latent, projected):
        two_valued = torch.empty_like(projected)
        alpha, beta, boundary, marked = projected.new_empty(4, len(projected))
        native.call('dab_forward', projected, two_valued, alpha, beta, boundary, marked)
        ctx.save_for_backward(projected, alpha, beta, boundary, marked)
        return two_valued

    @staticmethod
    def backward(ctx, gradient):
        latent_gradient = torch.empty_like(gradient, memory_format=torch.contiguous_format)
        native.call('dab_backward', gradient.contiguous(), *ctx.saved_tensors, latent_gradient)
        return latent_gradient, None


class Binarization(nn.Module):
    """The parametrization of a convolution's weight: latent parameter in, two-valued weight out.

    In a training step (training mode, gradients enabled) the latent parameter is projected in
    place first. Otherwise it is left untouched and W~ is that of its projection, so that neither
    validating nor looking at a weight changes what is trained or saved: the projection of a
    projection can differ, where the clamp has moved a mean.
    """

    two_valued = True   # as models.blocks.SignConv2d wants to know

    def __init__(self, method, search='fast'):
        super().__init__()
        self.method, self.search = method, search

    @torch.compiler.disable     # in-place projection and the native library are opaque to it
    def forward(self, latent):
        in_step = self.training and torch.is_grad_enabled()
        projected = latent.detach() if in_step else latent.detach().clone()
        if self.method == 'dab' and self.search == 'fast' and native.takes(projected):
            return _NativeDAB.apply(latent, projected)
        return _StraightThrough.apply(latent, project_(projected), self.method)


def convolutions(model):
    """[(number, name, Conv2d)] in the order of registration, numbered from 1 as binStart counts."""
    named = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    return [(number, name, conv) for number, (name, conv) in enumerate(named, start=1)]


def default_end(model, binStart):
    """The binEnd that is not given: the last convolution but one, or binStart where that is further."""
    return max(binStart, len(convolutions(model)) - 1)


def binarization(conv):
    """The Binarization of a convolution's weight, or None where the weight is real."""
    return conv.parametrizations.weight[0] if parametrize.is_parametrized(conv, 'weight') else None


def binarized(model):
    """[(name, Conv2d)] of the convolutions with binarized weights."""
    return [(name, conv) for _, name, conv in convolutions(model) if binarization(conv)]


def wrap(model, binStart, binEnd, method='dab', search='fast'):
    """Binarize the weights of the convolutions binStart … binEnd (both inclusive) and return model.

    The stored parameter, `parametrizations.weight.original`, is the latent weight that the
    optimizer owns; `conv.weight` is the binarized one. A binEnd beyond the last convolution means
    "to the end". Where a filter has one weight the layer stays real, with a warning. search: 'fast'
    splits without sorting where it can (float32 on the CPU, with a C++ compiler), 'exact' sorts.
    Raises ValueError for a range without a convolution, an unknown method, or a model wrapped before.
    """
    _method(method)
    layers = convolutions(model)
    chosen = [(name, conv) for number, name, conv in layers if binStart <= number <= binEnd]
    if not chosen:
        raise ValueError(f'--binStart={binStart} --binEnd={binEnd} holds no convolution: '
                         f'the network has the convolutions 1 to {len(layers)}')
    if binarized(model):
        raise ValueError('the weights of this network are binarized already')
    for name, conv in chosen:
        if conv.weight[0].numel() == 1:
            warnings.warn(f'convolution {name} stays real: its filters have a single weight')
            continue
        # unsafe=True only skips a trial call, which would project the weights before training.
        parametrize.register_parametrization(conv, 'weight', Binarization(method, search), unsafe=True)
    return model


@torch.no_grad()
def layer_split(conv):
    """What evaluation computes with: projected latent weights, alpha, beta, mask (see split)."""
    latent = conv.parametrizations.weight.original
    projected = project_(latent.clone())
    return projected, *split(projected, binarization(conv).method)


def weight_bits(model):
    """(weights, bits they need binarized) over the binarized convolutions: 1 a weight, 64 a filter."""
    weights = [conv.parametrizations.weight.original for _, conv in binarized(model)]
    count = sum(weight.numel() for weight in weights)
    return count, count + 64 * sum(len(weight) for weight in weights)
