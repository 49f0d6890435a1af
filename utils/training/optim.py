"""--optimType and --learningratescheduler: one table each."""
from collections.abc import Iterable

import torch
from torch import Tensor, nn, optim

from utils.errors import InputError


def decay_schedular(epoch: int, maxlr: float, minlr: float, decayinterval: int,
                    decaylevel: float) -> float:
    """Learning rate of an epoch from 0: max(minlr, maxlr / decaylevel^⌊epoch / decayinterval⌋)."""
    return max(minlr, maxlr * decaylevel ** -(epoch // decayinterval))     # cannot overflow


SCHEDULES = {'decayschedular': decay_schedular}

OPTIMIZERS = {
    'sgd': optim.SGD,
    'adam': optim.Adam,
    'adagrad': optim.Adagrad,
    'adamax': optim.Adamax,
    'adadelta': optim.Adadelta,
}


def build_optimizer(name: str, parameters: Iterable[nn.Parameter], lr: float, weightDecay: float,
                    momentum: float, nesterov: bool) -> optim.Optimizer:
    """The optimizer `name`; momentum and nesterov go to sgd, which alone has them."""
    own = {'momentum': momentum, 'nesterov': nesterov} if name == 'sgd' else {}
    return OPTIMIZERS[name](parameters, lr=lr, weight_decay=weightDecay, **own)


def restore_optimizer(optimizer: optim.Optimizer, state: dict[int, dict]):
    """Continue from the `state` of a state_dict; the settings stay as they are.

    Raises InputError where it is not the state of such an optimizer of these parameters.
    """
    probe = nn.Parameter(torch.zeros(2))    # shows which tensors a parameter needs
    probe.grad = torch.zeros(2)
    probed = type(optimizer)([probe], **optimizer.defaults | {'lr': 0.1})
    probed.step()
    sample = probed.state[probe]
    parameters = [p for group in optimizer.param_groups for p in group['params']]
    for number, values in state.items():
        fits = 0 <= number < len(parameters) and all(
            is_like(values.get(key), tensor, parameters[number]) for key, tensor in sample.items()
            if key in values or key != 'momentum_buffer')   # absent after --momentum=0
        if not fits:
            raise InputError('the checkpoint has a state of the optimizer that does not fit it')
    optimizer.load_state_dict(optimizer.state_dict() | {'state': state})


def is_like(value, sample: Tensor, parameter: nn.Parameter) -> bool:
    """Whether value is a number as a tensor, or as large as the parameter, as the sample is."""
    return (isinstance(value, Tensor) and value.is_floating_point()
            and value.shape == (parameter.shape if sample.dim() else sample.shape))


def set_learning_rate(optimizer: optim.Optimizer, lr: float):
    for group in optimizer.param_groups:
        group['lr'] = lr
