"""--optimType and --learningratescheduler: one table each."""
from collections.abc import Iterable

from torch import nn, optim


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


def set_learning_rate(optimizer: optim.Optimizer, lr: float):
    for group in optimizer.param_groups:
        group['lr'] = lr
