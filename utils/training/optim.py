"""--optimType and --learningratescheduler, one table each; weight decay; the optimizer's steps."""
import contextlib
import math
from argparse import Namespace
from collections.abc import Callable, Iterator, Sized
from typing import NamedTuple

import torch
from torch import Tensor, nn, optim

from utils.binarize import Method, binarization, binarized, forget_projections
from utils.system.errors import InputError

from . import parallel

OPTIMIZERS = {
    'sgd': optim.SGD,
    'adam': optim.Adam,
    'adamw': optim.AdamW,
    'adagrad': optim.Adagrad,
    'adamax': optim.Adamax,
    'adadelta': optim.Adadelta,
}


def decay_schedular(epoch: int, maxlr: float, minlr: float, decayinterval: int,
                    decaylevel: float) -> float:
    """max(minlr, maxlr / decaylevel^⌊epoch / decayinterval⌋)"""
    return max(minlr, maxlr * decaylevel ** -(epoch // decayinterval))     # cannot overflow


def cosine(epoch: int, maxlr: float, minlr: float, epochs: int) -> float:
    """minlr + (maxlr − minlr)·(1 + cos(π·epoch / (epochs − 1))) / 2, minlr in the last epoch.

    Source: Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts.
    """
    share = (1 + math.cos(math.pi * _progress(epoch, epochs))) / 2
    return maxlr * share + minlr * (1 - share)


def linear(epoch: int, maxlr: float, minlr: float, epochs: int) -> float:
    """maxlr + (minlr − maxlr)·epoch / (epochs − 1), minlr in the last epoch."""
    progress = _progress(epoch, epochs)
    return maxlr * (1 - progress) + minlr * progress


def _progress(epoch, epochs):
    """0 in the first of so many epochs, 1 in the last; 0 in a single one."""
    return epoch / max(1, epochs - 1)


def constant(epoch: int, maxlr: float) -> float:
    """maxlr"""
    return maxlr


class Schedule(NamedTuple):
    """The learning rate of an epoch from 0, counted without the warm-up."""

    rate: Callable[..., float]
    flags: tuple[str, ...]      # that it depends on beside maxlr, in the order of its arguments


SCHEDULES = {
    'decayschedular': Schedule(decay_schedular, ('minlr', 'decayinterval', 'decaylevel')),
    'cosine': Schedule(cosine, ('minlr', 'epochs')),
    'linear': Schedule(linear, ('minlr', 'epochs')),
    'constant': Schedule(constant, ()),
}


def learning_rate(flags: Namespace, epoch: int) -> float:
    """The learning rate of an epoch, from 0, of a run with these flags.

    maxlr·(epoch + 1) / (warmup + 1) in the `warmup` first epochs; the schedule runs over the rest.
    """
    if epoch < flags.warmup:
        return flags.maxlr * (epoch + 1) / (flags.warmup + 1)
    schedule = SCHEDULES[flags.learningratescheduler]
    values = vars(flags) | {'epochs': flags.epochs - flags.warmup}
    return schedule.rate(epoch - flags.warmup, flags.maxlr,
                         *(values[name] for name in schedule.flags))


def set_learning_rate(optimizer: optim.Optimizer, lr: float):
    for group in optimizer.param_groups:
        group['lr'] = lr


NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm
NO_DECAY = 'norm', 'bias', 'latent'


def latent_weights(model: nn.Module) -> list[nn.Parameter]:
    return [conv.parametrizations.weight.original for _, conv in binarized(model)]


def spared(model: nn.Module, noDecay: str) -> set[nn.Parameter]:
    """The parameters without weight decay, by names of NO_DECAY separated by commas.

    norm: scales and biases of normalizations; bias: the other biases; latent: latent weights, and
    the learned values of binarization methods.
    """
    kinds: dict[str, set] = {name: set() for name in NO_DECAY}
    kinds['latent'] = set(latent_weights(model))
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, Method):
                kinds['latent'].add(parameter)
            elif isinstance(module, NORMS):
                kinds['norm'].add(parameter)
            elif name == 'bias':
                kinds['bias'].add(parameter)
    return set().union(*(kinds[name] for name in noDecay.split(',') if name))


def build_optimizer(name: str, model: nn.Module, lr: float, weightDecay: float, momentum: float,
                    nesterov: bool, noDecay: str = '') -> optim.Optimizer:
    """The optimizer `name` of all parameters of the model.

    momentum and nesterov go to sgd, which alone has them; noDecay: see spared.
    """
    own = {'momentum': momentum, 'nesterov': nesterov} if name == 'sgd' else {}
    without_decay = spared(model, noDecay)
    groups: list[dict] = [{'params': [], 'weight_decay': decay} for decay in (weightDecay, 0.0)]
    for parameter in model.parameters():
        groups[parameter in without_decay]['params'].append(parameter)
    return OPTIMIZERS[name]([group for group in groups if group['params']], lr=lr,
                            weight_decay=weightDecay, **own)


def optimizer_state(optimizer: optim.Optimizer, model: nn.Module) -> dict:
    """The state_dict, with parameters numbered as in the model, whatever their groups."""
    stored, numbers = optimizer.state_dict(), _numbers(optimizer, model)
    groups = [group | {'params': [numbers[place] for place in group['params']]}
              for group in stored['param_groups']]
    return {'state': {numbers[place]: values for place, values in stored['state'].items()},
            'param_groups': groups}


def restore_optimizer(optimizer: optim.Optimizer, model: nn.Module, state: dict[int, dict]):
    """Restore the `state` of optimizer_state(); settings and groups may differ from then.

    Raises InputError where it is not the state of such an optimizer of these parameters.
    """
    sample, parameters = _sample_state(optimizer), list(model.parameters())
    names = [name for name, _ in model.named_parameters()]
    for number, values in state.items():
        fits = 0 <= number < len(parameters) and all(
            is_like(values.get(key), tensor, parameters[number]) for key, tensor in sample.items()
            if key in values or key != 'momentum_buffer')   # absent after --momentum=0
        if not fits:
            raise InputError('the checkpoint has a state of the optimizer that does not fit it')
        for key in sample.keys() & values.keys():
            if values[key].isnan().any() or (key in NOT_NEGATIVE and (values[key] < 0).any()):
                raise InputError(f'the checkpoint has an impossible {key} of {names[number]} in '
                                 'the state of the optimizer (NaN or below 0)')
    places = {number: place for place, number in enumerate(_numbers(optimizer, model))}
    state = {places[number]: values for number, values in state.items()}
    optimizer.load_state_dict(optimizer.state_dict() | {'state': state})


def _numbers(optimizer, model):
    """Return the number in the model of each parameter, in the order of the groups."""
    number = {parameter: number for number, parameter in enumerate(model.parameters())}
    return [number[parameter] for group in optimizer.param_groups for parameter in group['params']]


def _sample_state(optimizer):
    """The state of a parameter after a step: which tensors it needs."""
    probe = nn.Parameter(torch.zeros(2))
    probe.grad = torch.zeros(2)
    probed = type(optimizer)([probe])
    probed.param_groups[0].update(optimizer.defaults | {'lr': 0.1})
    probed.step()
    return probed.state[probe]


# Steps, sums and means of squares or sizes in the states of OPTIMIZERS.
NOT_NEGATIVE = 'step', 'exp_avg_sq', 'exp_inf', 'sum', 'square_avg', 'acc_delta'


def is_like(value, sample: Tensor, parameter: nn.Parameter) -> bool:
    """Whether value is a number as a tensor, or as large as the parameter, as the sample is."""
    return (isinstance(value, Tensor) and value.is_floating_point()
            and value.shape == (parameter.shape if sample.dim() else sample.shape))


class Steps:
    """A step of the optimizer after every `accumulate` batches, on the mean of their gradients.

    The last group of an epoch takes the mean over what it has. clipGrad: the largest norm of all
    gradients together, to which a longer one is shortened (Pascanu et al., ICML 2013); 0 for none.
    All batches of a group see the same binarized weights: the first one projects the latent weights
    in place, and none after it, or none but after they are restored, under torch.compile.
    """

    def __init__(self, model: nn.Module, optimizer: optim.Optimizer,
                 scaler: torch.amp.GradScaler, loader: Sized, accumulate: int = 1,
                 clipGrad: float = 0.0):
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        self.accumulate, self.clipGrad = accumulate, clipGrad
        self.batches = len(loader) if accumulate > 1 else math.inf
        is_compiled = hasattr(model, '_orig_mod')
        self.restored = changed_by_forward(model) if accumulate > 1 and is_compiled else []
        forget_projections(model)

    @contextlib.contextmanager
    def batch(self, number: int) -> Iterator[Callable[[Tensor], None]]:
        """The forward pass of batch `number`, from 0, and the call of its yielded backward(loss).

        Zeroes the gradients before the first batch of a group, and steps after the last.
        """
        first = number - number % self.accumulate       # of the group
        size = min(self.accumulate, self.batches - first)
        if number == first:
            self.optimizer.zero_grad(set_to_none=True)
            self.before = [tensor.detach().clone() for tensor in self.restored]
        else:
            for tensor, before in zip(self.restored, self.before):
                tensor.detach().copy_(before)
        is_last = number == first + size - 1
        with contextlib.nullcontext() if is_last else parallel.no_sync(self.model):
            yield lambda loss: self.scaler.scale(loss / size).backward()
        if is_last:
            self._step()

    def _step(self):
        if self.clipGrad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clipGrad)
        self.scaler.step(self.optimizer)
        self.scaler.update()


def changed_by_forward(model: nn.Module) -> list[Tensor]:
    """The latent weights and the buffers of methods, which a training forward changes."""
    methods = [binarization(conv).method for _, conv in binarized(model)]
    return [*latent_weights(model), *(buffer for method in methods for buffer in method.buffers())]
