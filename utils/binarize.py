"""Distribution-aware binarization (DAB) of convolution weights: the whole method.

    Prabhu, Batchu, Munagala, Gajawada, Namboodiri: "Distribution-Aware Binarization of Neural
    Networks for Sketch Recognition", WACV 2018, arXiv:1804.02941.

A filter is the vector W of the n = c·kh·kw weights that make one output channel. It is replaced
by two real numbers and one bit per weight, W~ = α·e + β·(1 − e) with e in {0, 1}^n. A weight's way:

    latent parameter -> project_ -> split -> two values -> convolution

and the gradient's way back, from W~ to the latent weight, is each method's `gradient_factor`.

    wrap(model, 2, 7)           binarize the weights of convolutions 2 to 7 of any model
    layer_weights(conv)         what a binarized layer computes with: α, β, mask, two-valued weight
    bake(model)                 the same network with plain nn.Conv2d weights
    split, binarize_weight      the method alone, on any tensor of weights
"""
import copy
import warnings
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from utils import native
from utils.system import devices
from utils.system.errors import InputError


class Method(nn.Module):
    """A way to binarize: subclass it, set the texts, and enter the class in METHODS.

    Every binarized layer has an instance of its own. Values that are to be learned are its
    parameters, and what else it remembers is its buffers: checkpoints keep both. The functions work
    on the rows (out, n) of a weight, one row per filter; where they need no instance, they are
    static methods.
    """

    title = 'binarization'      # what the report calls the method
    formula = ''                # how α and β come from W
    style = dict(color='#009e73', linestyle='-.', marker='v')   # Matplotlib's, in every plot

    def __init__(self, weight: Tensor):
        """weight: the initial latent weights (out, c, kh, kw) of the layer, to start values from.

        (out, n) where a tensor without a layer is binarized.
        """
        super().__init__()

    def observe(self, rows: Tensor):
        """Called before split where a training forward has projected, to change buffers in place.

        By add_, copy_, …: after `self.steps += 1`, torch.compile (2.14) returned wrong outputs.
        """

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """alpha (out, 1), beta (out, 1) and mask (out, n), True where a weight becomes alpha.

        Where alpha and beta depend on parameters of the method, these get the gradients that
        W~ = where(mask, alpha, beta) gives them; the mask, which has no gradient, gives none.
        """
        raise NotImplementedError

    def gradient_factor(self, inside: Tensor, alpha: Tensor, beta: Tensor, mask: Tensor) -> Tensor:
        """(out, n), by which dL/dW~ is multiplied beside s; `inside` is the mask [|W| < 1]."""
        raise NotImplementedError


def _scale(rows):
    """A power of two (out, 1), which rounds nothing: the squares of tiny weights would be 0."""
    is_tiny = rows.abs().amax(1, keepdim=True) < 2.0 ** -50
    return torch.where(is_tiny, 2.0 ** 90, 1.0).to(rows.dtype)


class DAB(Method):
    """Distribution-aware binarization: the least-squares best two values of every filter.

    Forward (WACV 2018, §3): W~ = α·e + β·(1 − e) with the two group means
    α = (W·e)/K, β = (W·(1 − e))/(n − K), K = Σe, and the e, 1 ≤ K ≤ n − 1, that maximizes
    J(e) = (W·e)²/K + (W·(1 − e))²/(n − K) = ‖W‖² − ‖W − W~‖². For each K the best e marks the
    K largest weights, so one sort and its prefix sums hold every candidate.

    Backward, with s = 1 − 1/c for c input channels per group (s = 1 where c = 1):
        dL/dW_i = dL/dW~_i · s · (|α|·[|W_i| < 1] + 1/K)          where e_i = 1
        dL/dW_i = dL/dW~_i · s · (|β|·[|W_i| < 1] + 1/(n − K))    where e_i = 0
    """

    title = 'distribution-aware binarization (DAB)'
    formula = 'α and β are the means of the two groups of weights, the groups chosen per filter ' \
              'so that ‖W − W~‖² is the smallest possible'
    style = dict(color='#0072b2', linestyle='-', marker='o')

    @staticmethod
    def split(rows):
        n = rows.size(1)
        # Subtracting the filter's mean shifts every J equally, and loses fewer digits. J is flat at
        # its maximum: sums in float32 would choose another partition, hardly worse.
        mean = rows.mean(1, keepdim=True)
        centred = rows - mean
        scale = _scale(centred)
        descending, order = (centred * scale).sort(dim=1, descending=True)
        precise = torch.float64 if devices.has_float64(rows.device) else rows.dtype
        sums = descending.cumsum(1, dtype=precise)
        total, marked = sums[:, -1:], sums[:, :-1]
        counts = torch.arange(1, n, device=rows.device, dtype=precise)
        objective = marked.square() / counts + (total - marked).square() / (n - counts)
        best = objective.argmax(1, keepdim=True)
        marked = marked.gather(1, best)
        alpha = mean + (marked / (best + 1) / scale).to(rows.dtype)
        beta = mean + ((total - marked) / (n - 1 - best) / scale).to(rows.dtype)
        is_marked = torch.arange(n, device=rows.device) <= best
        mask = torch.empty_like(is_marked).scatter_(1, order, is_marked)
        return alpha, beta, mask

    @staticmethod
    def gradient_factor(inside, alpha, beta, mask):
        marked = mask.sum(1, keepdim=True)
        unmarked = mask.size(1) - marked
        return torch.where(mask, alpha.abs() * inside + 1 / marked,
                           beta.abs() * inside + 1 / unmarked)


class XNOR(Method):
    """Naive scaled binarization: BWN, and XNOR-Net where the inputs are binarized too.

    Forward: W~ = α·sign(W), α = mean |W| of the filter. Backward, s as for DAB:
    dL/dW_i = dL/dW~_i · s · n · (α·[|W_i| < 1] + 1/n).
    Source: Rastegari et al., "XNOR-Net", ECCV 2016.
    """

    title = 'naive binarization with a scale per filter (XNOR-Net)'
    formula = 'α = mean |W| of the filter, β = −α'
    style = dict(color='#e08a00', linestyle='--', marker='s')

    @staticmethod
    def split(rows):
        alpha = rows.abs().mean(1, keepdim=True)
        return alpha, -alpha, rows >= 0

    @staticmethod
    def gradient_factor(inside, alpha, beta, mask):
        return mask.size(1) * alpha * inside + 1


class BNN(Method):
    """Binarization to ±1 without a scale.

    Forward: W~ = sign(W). Backward, s as for DAB: dL/dW_i = dL/dW~_i · s · [|W_i| < 1].
    Source: Hubara et al., "Binarized Neural Networks", NIPS 2016.
    """

    title = 'naive binarization without a scale (BNN)'
    formula = 'α = 1, β = −1'
    style = dict(color='#8c8c8c', linestyle=':', marker='^')

    @staticmethod
    def split(rows):
        alpha = torch.ones_like(rows[:, :1])
        return alpha, -alpha, rows >= 0

    @staticmethod
    def gradient_factor(inside, alpha, beta, mask):
        return inside.to(alpha.dtype)


class AdaBin(Method):
    """Two values at the mean of the filter plus and minus its standard deviation.

    Forward: α = μ + σ, β = μ − σ with μ = mean(W), σ² = mean((W − μ)²), and e_i = [W_i ≥ μ].
    Backward, s as for DAB: dL/dW_i = dL/dW~_i · s · [|W_i| < 1]. The projection, which all methods
    share here, makes μ about 0 where a filter has several input channels.
    Source: Tu et al., "AdaBin: Improving Binary Neural Networks with Adaptive Binary Sets", ECCV
    2022, the binary set of the weights.
    """

    title = 'adaptive binary sets (AdaBin)'
    formula = 'α and β are the mean of the filter plus and minus its standard deviation'
    style = dict(color='#cc79a7', linestyle=(0, (5, 1, 1, 1, 1, 1)), marker='P')

    @staticmethod
    def split(rows):
        mean = rows.mean(1, keepdim=True)
        centred = rows - mean
        scale = _scale(centred)
        deviation = (centred * scale).square().mean(1, keepdim=True).sqrt() / scale
        return mean + deviation, mean - deviation, rows >= mean

    @staticmethod
    def gradient_factor(inside, alpha, beta, mask):
        return inside.to(alpha.dtype)


METHODS: dict[str, type[Method]] = {'dab': DAB, 'xnor': XNOR, 'bnn': BNN, 'adabin': AdaBin}


class LayerWeights(NamedTuple):
    """What a convolution computes with in evaluation: weight = where(mask, alpha, beta)."""

    projected: Tensor   # the latent weights (out, c, kh, kw) after project_
    weight: Tensor      # W~, of the same shape
    alpha: Tensor       # (out,)
    beta: Tensor        # (out,)
    mask: Tensor        # of weight's shape, True where a weight is alpha


def make_method(name: str, weight: Tensor) -> Method:
    """The method `name` for a layer with these weights, its learned values at their start."""
    check_method(name)
    return METHODS[name](weight.detach())


def check_method(name: str):
    """Raise InputError for a name that is not in METHODS."""
    if name not in METHODS:
        raise InputError(f'unknown binarizer {name!r}: choose one of {", ".join(METHODS)}')


def _split_rows(weight, method):
    """(out, …) weights -> alpha (out, 1), beta (out, 1), mask (out, n), searched in float32."""
    rows = weight.detach().flatten(1)
    if rows.size(1) < 2:
        raise InputError('a filter of one weight cannot be split into two groups')
    alpha, beta, mask = method.split(rows if rows.dtype == torch.float64 else rows.float())
    shapes = (len(rows), 1), rows.shape
    if alpha.shape != shapes[0] or beta.shape != shapes[0] or mask.shape != shapes[1]:
        name = (method if isinstance(method, type) else type(method)).__name__
        raise ValueError(f'{name}.split must return alpha and beta of the shape {shapes[0]} and a '
                         f'mask of {tuple(shapes[1])}, not {tuple(alpha.shape)}, '
                         f'{tuple(beta.shape)} and {tuple(mask.shape)}')
    return alpha, beta, mask


@torch.no_grad()
def split(weight: Tensor, method: str = 'dab') -> tuple[Tensor, Tensor, Tensor]:
    """The two values of every filter of `weight` as it is, and which weights take which.

    weight: (out, c, kh, kw), or (out, n). Returns alpha (out,), beta (out,), in float32 (float64
    for float64 weights), and the boolean mask e of weight's shape, True where a weight becomes
    alpha. Under 'dab', alpha and beta are the means of the two groups and 1 <= e.sum() <= n - 1
    in every filter. A layer splits its *projected* latent weights, by its own learned values:
    layer_weights has those. Raises ValueError for n = 1 or an unknown method.
    """
    alpha, beta, mask = _split_rows(weight, make_method(method, weight))
    return alpha.squeeze(1), beta.squeeze(1), mask.view(weight.shape)


@torch.no_grad()
def binarize_weight(weight: Tensor, method: str = 'dab') -> Tensor:
    """W~ of `weight` (out, c, kh, kw) as it is: the same shape and dtype, two values per filter.

    This is not what a layer makes of its latent weights, which it projects first: layer_weights is.
    """
    alpha, beta, mask = _split_rows(weight, make_method(method, weight))
    return torch.where(mask, alpha, beta).view(weight.shape).to(weight.dtype)


def project_(weight: Tensor) -> Tensor:
    """Project latent weights (out, c, kh, kw) in place: centre over input channels, clamp to ±1.

    A single input channel (a depthwise convolution) is not centred, which would erase it, and
    Binarization shows a filter as one of a single channel where its centring is off.
    """
    if weight.size(1) > 1:
        weight -= weight.mean(1, keepdim=True)
    return weight.clamp_(-1, 1)


def _factor(method, projected, alpha, beta, mask):
    """dL/dW = dL/dW~ · factor, of the shape of the projected weights (out, c, kh, kw)."""
    factor = method.gradient_factor(projected.flatten(1).abs() < 1, alpha, beta, mask)
    channels = projected.size(1)
    if channels > 1:
        factor = factor * (1 - 1 / channels)
    return factor.view(projected.shape)


class _StraightThrough(torch.autograd.Function):
    """latent -> its W~ `two_valued`, made by PyTorch; backward scales the gradient by factor.

    W~ has the gradient as it is, for learned values that it was made of.
    """

    @staticmethod
    def forward(ctx, latent, two_valued, factor):
        ctx.save_for_backward(factor)
        return two_valued

    @staticmethod
    def backward(ctx, gradient):
        factor, = ctx.saved_tensors
        return (gradient * factor).to(gradient.dtype), gradient, None


@torch.library.custom_op('dab::forward_', mutates_args={'latent'})
def _fused_forward_(latent: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Project latent weights in place; returns W~ and values (4, out): alpha, beta, boundary, K.

    The weights above the boundary become alpha; of a constant filter, none. With _fused_backward
    a custom operator, which torch.compile does not look into, around the code of utils/native; in
    PyTorch where that cannot be started.
    """
    with suppress(native.Unsupported):
        return native.compiled(latent.device).forward_(latent, method)
    rows = project_(latent).flatten(1)
    alpha, beta, mask = _split_rows(rows, METHODS[method])
    boundary = rows.masked_fill(mask, -torch.inf).amax(1, keepdim=True)
    values = torch.cat([alpha, beta, boundary, mask.sum(1, keepdim=True)], 1)
    return torch.where(mask, alpha, beta).view(latent.shape), values.T.contiguous()


@_fused_forward_.register_fake
def _(latent, method):
    return torch.empty_like(latent), latent.new_empty(4, len(latent))


@torch.library.custom_op('dab::backward', mutates_args=())
def _fused_backward(gradient: Tensor, projected: Tensor, values: Tensor, method: str) -> Tensor:
    """The gradient of the latent weights, from that of W~ and what _fused_forward_ made."""
    with suppress(native.Unsupported):
        compiled = native.compiled(projected.device)
        return compiled.backward(gradient.contiguous(), projected, values, method)
    alpha, beta, boundary, _ = values[..., None]
    mask = projected.flatten(1) > boundary
    return (gradient * _factor(METHODS[method], projected, alpha, beta, mask)).contiguous()


@_fused_backward.register_fake
def _(gradient, projected, values, method):
    return torch.empty_like(gradient, memory_format=torch.contiguous_format)


class _Fused(torch.autograd.Function):
    """latent -> its W~ `two_valued`, made by _fused_forward_; backward scales the gradient."""

    @staticmethod
    def forward(ctx, latent, two_valued, projected, values, method):
        ctx.method = method
        ctx.save_for_backward(projected, values)
        return two_valued

    @staticmethod
    def backward(ctx, gradient):
        return _fused_backward(gradient, *ctx.saved_tensors, ctx.method), *[None] * 4


class _LastProjection(NamedTuple):
    """What tells whether latent weights are as the last training forward left them.

    Their content too, which code that writes through `.data` and PyTorch's fused optimizers change
    without a new version.
    """

    version: int
    content: Tensor
    values: Tensor | None       # as _fused_forward_ returns them

    @staticmethod
    def of(projected: Tensor, values: Tensor | None) -> '_LastProjection':
        return _LastProjection(projected._version, _content(projected), values)

    def holds_for(self, latent: Tensor) -> bool:
        return (self.version == latent._version and self.content.device == latent.device
                and torch.equal(self.content, _content(latent)))


def _content(weight):
    """The sum of the bits of all weights as integers, which no change leaves but by chance.

    Modulo 2^32, which is 30 times faster than PyTorch's default of a longer integer.
    """
    bits = weight.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.itemsize])
    return bits.sum(dtype=torch.int64 if weight.itemsize == 8 else torch.int32)


def forget_projections(model: nn.Module):
    """Let the next training forward project all latent weights, as that of a resumed run does."""
    for _, conv in binarized(model):
        binarization(conv).last = None


class Binarization(nn.Module):
    """The parametrization of a convolution's weight: latent parameter in, two-valued weight out.

    In a training step (training mode, gradients enabled) the latent parameter is projected in
    place first; further forward passes before it changes see the same projection, but each projects
    again under torch.compile. Otherwise it is left untouched and W~ is that of its projection, so
    that neither validating nor looking at a weight changes what is trained or saved: the projection
    of a projection can differ, where the clamp has moved a mean.
    """

    two_valued = True       # for models.blocks.SignConv2d
    last: _LastProjection | None = None

    def __init__(self, name: str, weight: Tensor, search: str = 'fast', centring: bool = True):
        super().__init__()
        self.name, self.search, self.centring = name, search, centring
        self.method = make_method(name, weight)

    def forward(self, latent):
        shape, latent = latent.shape, self._filters(latent)
        if torch.compiler.is_exporting():       # ordinary operators, in place of ours
            projected = project_(latent.detach().to(torch.float64, copy=True))
            alpha, beta, mask = _split_rows(projected, self.method)
            return torch.where(mask, alpha, beta).view(shape).to(latent.dtype)
        in_step = self.training and torch.is_grad_enabled()
        projected = latent.detach() if in_step else latent.detach().clone()
        is_fused, values = self._is_fused(latent, in_step), None
        last = self._last_of(latent.detach(), is_fused)
        if is_fused:
            weight, values = self._fused_(latent, projected, last)
        else:
            weight = self._plain_(latent, projected, in_step, last)[0]
        if in_step and not last and not torch.compiler.is_compiling():
            self.last = _LastProjection.of(projected, values)
        if torch.jit.is_tracing() and not in_step:     # a constant: compiled code is not traced
            weight = torch.from_numpy(weight.numpy(force=True)).to(latent.device)
        return weight.view(shape)

    def evaluate(self, latent: Tensor) -> LayerWeights:
        """The LayerWeights of these latent weights, which stay as they are."""
        shape, latent = latent.shape, self._filters(latent)
        projected = latent.detach().clone()
        if self._is_fused(latent, in_step=False):
            weight, (alpha, beta, boundary, _) = self._fused_(latent, projected)
            mask = projected.flatten(1) > boundary[:, None]
            mask[:, 0] |= ~mask.any(1)      # of a constant filter
        else:
            weight, alpha, beta, mask = self._plain_(latent, projected, in_step=False)
        return LayerWeights(projected.view(shape), weight.view(shape), alpha.flatten(),
                            beta.flatten(), mask.view(shape))

    def _last_of(self, latent, is_fused):
        """The last projection, where a forward in training mode needs no other."""
        last = None if torch.compiler.is_compiling() or not self.training else self.last
        if last and (last.values is not None) == is_fused and last.holds_for(latent):
            return last
        return None

    def _filters(self, latent):
        """latent, seen as filters of one input channel, (out, 1, c, kh, kw), without centring."""
        return latent if self.centring else latent.unsqueeze(1)

    def _fused_(self, latent, projected, last=None):
        """W~ as a function of latent, and values as _fused_forward_ returns them."""
        if last:
            values = last.values
            alpha, beta, boundary, _ = values[..., None]
            rows = projected.flatten(1)
            two_valued = torch.where(rows > boundary, alpha, beta).view(projected.shape)
        else:
            two_valued, values = _fused_forward_(projected, self.name)
        return _Fused.apply(latent, two_valued, projected, values, self.name), values

    def _plain_(self, latent, projected, in_step, last=None):
        """W~, of latent and learned values, and its split as _split_rows returns it."""
        if not last:
            project_(projected)
            if in_step:
                self.method.observe(projected.flatten(1))
        split = alpha, beta, mask = _split_rows(projected, self.method)
        two_valued = torch.where(mask, alpha, beta).view(latent.shape).to(latent.dtype)
        if torch.is_grad_enabled():
            factor = _factor(self.method, projected, alpha.detach(), beta.detach(), mask)
            two_valued = _StraightThrough.apply(latent, two_valued, factor)
        return two_valued, *split

    def _is_fused(self, latent, in_step):
        """Whether compiled code computes what this method is, for these weights.

        The search of a GPU may stop early, so that what evaluation uses is searched by PyTorch.
        """
        return (self.search == 'fast' and native.covers(latent, self.name)
                and (in_step or not latent.is_cuda)
                and _has_twin(self, latent.device, latent.shape))


def _has_twin(layer: Binarization, device: torch.device, shape: torch.Size) -> bool:
    """Whether compiled code supports these weights and was written for the layer's method."""
    return (native.compiled(device).supports(tuple(map(int, shape)))
            and native.is_written_for(layer.name, _functions(layer), layer.method.title))


# For torch.compile a constant; torch.compiler.assume_constant_result would import all of Dynamo.
_has_twin._dynamo_marked_constant = True


def _functions(layer):
    """The code of all functions here that decide what a layer computes; () where it has a state."""
    method = layer.method
    if method.state_dict() or vars(method).keys() - vars(nn.Module()).keys():
        return ()
    own = type(method).__mro__[:-2]     # without nn.Module and object
    helpers = _scale, project_, _split_rows, _factor
    return (*native.functions_of(*own, _StraightThrough, Binarization),
            *(getattr(helper, '__code__', None) for helper in helpers))


def convolutions(model: nn.Module) -> list[tuple[int, str, nn.Conv2d]]:
    """[(number, name, Conv2d)] in the order of registration, numbered from 1 as binStart counts."""
    named = [(name, module) for name, module in model.named_modules()
             if isinstance(module, nn.Conv2d)]
    return [(number, name, conv) for number, (name, conv) in enumerate(named, start=1)]


def default_binEnd(model: nn.Module, binStart: int) -> int:
    """The last convolution but one, or binStart where that is further."""
    return max(binStart, len(convolutions(model)) - 1)


def binarization(conv: nn.Module) -> Binarization | None:
    """The Binarization of a convolution's weight, or None where the weight is real."""
    if not parametrize.is_parametrized(conv, 'weight'):
        return None
    first = conv.parametrizations.weight[0]
    return first if isinstance(first, Binarization) else None


def binarized(model: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    """[(name, Conv2d)] of the convolutions with binarized weights."""
    return [(name, conv) for _, name, conv in convolutions(model) if binarization(conv)]


def wrap(model: nn.Module, binStart: int, binEnd: int, method: str = 'dab',
         search: str = 'fast', centring: bool = True) -> nn.Module:
    """Binarize the weights of the convolutions binStart … binEnd (both inclusive) and return model.

    The stored parameter, `parametrizations.weight.original`, is the latent weight that the
    optimizer owns; `conv.weight` is the binarized one. A binEnd beyond the last convolution means
    "to the end". A layer whose filters have one weight stays real, with a warning. search: 'fast'
    splits without sorting where it can (float32 on the CPU, with a C++ compiler), 'exact' sorts.
    centring=False leaves the mean over input channels in the latent weights, and s = 1.
    Raises ValueError for a range without a convolution, an unknown method, or a model wrapped
    before.
    """
    check_method(method)
    layers = convolutions(model)
    chosen = [(name, conv) for number, name, conv in layers if binStart <= number <= binEnd]
    if not chosen:
        raise InputError(f'the range binStart={binStart}, binEnd={binEnd} holds no convolution: '
                         f'the network has the convolutions 1 to {len(layers)}')
    if binarized(model):
        raise InputError('the weights of this network are binarized already')
    for name, conv in chosen:
        if parametrize.is_parametrized(conv, 'weight'):
            raise InputError(f'the weight of convolution {name} is parametrized already')
    for name, conv in chosen:
        if conv.weight[0].numel() == 1:
            warnings.warn(f'convolution {name} stays real: its filters have a single weight')
            continue
        # unsafe=True only skips a trial call, which would project the weights before training.
        parametrize.register_parametrization(
            conv, 'weight', Binarization(method, conv.weight, search, centring), unsafe=True)
    return model


@torch.no_grad()
def layer_weights(conv: nn.Module) -> LayerWeights:
    """What a binarized convolution computes with: see LayerWeights.

    `weight` equals conv.weight, outside of a training step to the last bit. Nothing changes.
    Raises ValueError for a convolution with real weights.
    """
    parametrization = binarization(conv)
    if parametrization is None:
        raise InputError('this convolution has real weights: wrap binarizes them')
    return parametrization.evaluate(conv.parametrizations.weight.original)


def bake(model: nn.Module) -> nn.Module:
    """A copy of `model` in which the weights that evaluation computes with are plain parameters.

    Its convolutions are ordinary nn.Conv2d (or what they were before wrap), its state_dict has
    ordinary names, and it needs nothing of this module. `model` is not touched. Behind binarized
    inputs a plain convolution sums α and β in float32 where SignConv2d sums signs exactly, so
    outputs of such networks can differ by rounding.
    """
    baked = copy.deepcopy(model)
    for _, conv in binarized(baked):
        conv.parametrizations.eval()
        weight = conv.parametrizations.weight().detach().clone()     # not one of parametrize.cached
        # remove_parametrizations changes the class, which the copy shares with the original.
        shared = type(conv)
        conv.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
        parametrize.remove_parametrizations(conv, 'weight', leave_parametrized=False)
        conv.weight = nn.Parameter(weight)
    return baked


def weight_bits(model: nn.Module) -> tuple[int, int]:
    """(weights, bits that these need) of the binarized convolutions: 1 a weight, 64 a filter."""
    weights = [conv.parametrizations.weight.original for _, conv in binarized(model)]
    count = sum(weight.numel() for weight in weights)
    return count, count + 64 * sum(len(weight) for weight in weights)
