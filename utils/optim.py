"""--optimType and --learningratescheduler: one table each."""
from torch import optim


def decay_schedular(epoch, maxlr, minlr, decayinterval, decaylevel):
    """Learning rate of an epoch, counted from 0: max(minlr, maxlr / decaylevel^⌊epoch / decayinterval⌋)."""
    return max(minlr, maxlr * decaylevel ** -(epoch // decayinterval))     # which cannot overflow


SCHEDULES = {'decayschedular': decay_schedular}

OPTIMIZERS = {
    'sgd': optim.SGD,
    'adam': optim.Adam,
    'adagrad': optim.Adagrad,
    'adamax': optim.Adamax,
    'adadelta': optim.Adadelta,
}


def build_optimizer(name, parameters, lr, weightDecay, momentum, nesterov):
    """The optimizer `name`; momentum and nesterov go to the one that has them, sgd."""
    own = {'momentum': momentum, 'nesterov': nesterov} if name == 'sgd' else {}
    return OPTIMIZERS[name](parameters, lr=lr, weight_decay=weightDecay, **own)


def set_learning_rate(optimizer, lr):
    for group in optimizer.param_groups:
        group['lr'] = lr
