"""Train, validate, record and save, epoch after epoch."""
import contextlib

import torch
from torch import nn

from utils.record.progress import Progress, TimeLeft
from utils.system import interrupt
from utils.system.errors import naming

from . import checkpoint as checkpoints
from . import epoch as one_epoch
from . import optim, parallel
from .loaders import mixed
from .predictions import Predictions


class Observer:
    """Callbacks of training, for a subclass."""

    def before_training(self, model: nn.Module):
        pass

    def part(self, name: str) -> contextlib.AbstractContextManager:
        """The context of a part of an epoch: arithmetic, data in it, validation or records."""
        return contextlib.nullcontext()

    def after_epoch(self):
        pass


NOBODY = Observer()


def train(flags, model: nn.Module, loaders: tuple, run, device: torch.device,
          facts: dict, checkpoint: dict | None = None, observer: Observer = NOBODY):
    """Train `model` in place until flags.epochs epochs are done, counted from the run's start.

    loaders: those of training, whose dataset and sampler have set_epoch, and of validation.
    run: the Run or SilentRun of utils.record.run.
    facts: what every checkpoint has beside the state of training, such as flags and classes.
    checkpoint: where to continue. Raises RunError where training diverges, an image cannot be
    read or the record cannot be written.
    """
    train_loader, val_loader = loaders
    optimizer, scaler = make_optimizer(flags, model, device)
    run.remember_masks(model)
    if checkpoint:
        with naming(flags.resume):
            restore(checkpoint, model, optimizer, scaler)
    first, best = checkpoint['epoch'] if checkpoint else 0, run.best
    replica = parallel.replicate(model, device, flags.syncBN)
    if flags.compile:
        replica = torch.compile(replica)
    time_left = TimeLeft(flags.epochs - first)
    observer.before_training(model)
    try:
        for epoch in range(first, flags.epochs):
            lr = optim.learning_rate(flags, epoch)
            optim.set_learning_rate(optimizer, lr)
            start_epoch(train_loader, epoch, flags.manualSeed)
            progress = Progress(f'epoch {epoch + 1}/{flags.epochs}', len(train_loader), time_left)
            with observer.part('arithmetic'):
                metrics = one_epoch.train_epoch(
                    replica, train_loader, optimizer, device, progress, flags.printfreq, flags.amp,
                    scaler, flags.accumulate, flags.clipGrad, flags.labelSmoothing, observer.part)
            with observer.part('records'):
                run.record_epoch('train', epoch, metrics, lr)
            with observer.part('validation'):
                parallel.broadcast_buffers(model)
                predictions = Predictions()
                progress = Progress('validation', len(val_loader), time_left)
                metrics = one_epoch.validate(model, val_loader, device, progress, flags.amp,
                                             predictions.observe)
            is_best, best = metrics['top1'] > best, max(metrics['top1'], best)
            with observer.part('records'):
                run.record_epoch('val', epoch, metrics, lr)
                run.record_weights(model, epoch)
                if is_best:
                    run.record_pictures(model, predictions, epoch)
                run.say(f'best top-1 so far {best:.2f}{time_left.after_epoch()}')
                with interrupt.deferred():
                    run.save({'epoch': epoch + 1, 'best': best, 'metrics': metrics, **facts,
                              **state(model, optimizer, scaler)}, is_best)
            observer.after_epoch()
    finally:
        finish(run, flags.epochs, best)


def make_optimizer(flags, model: nn.Module, device: torch.device) -> tuple:
    """Return the optimizer of the flags and the gradient scaler, which float16 alone enables."""
    optimizer = optim.build_optimizer(flags.optimType, model, flags.maxlr, flags.weightDecay,
                                      flags.momentum, flags.nesterov, flags.noDecay)
    return optimizer, torch.amp.GradScaler(device.type, enabled=flags.amp == 'float16')


def finish(run, epochs, best):
    """Wait for the last checkpoint, and say what is done."""
    try:
        with interrupt.deferred():
            run.finish()
    finally:
        reached = f', best top-1 {best:.2f}' if best >= 0 else ''
        is_cut = run.saved and run.saved < epochs
        go_on = f'; to go on: --resume={run.folder / "last.pth.tar"}' if is_cut else ''
        run.say(f'{run.saved} of {epochs} epochs done{reached}; '
                f'log, curves and checkpoints: {run.folder}{go_on}')


def start_epoch(train_loader, epoch, seed):
    """Set what the data and the dropout of an epoch depend on."""
    train_loader.dataset.set_epoch(epoch)
    train_loader.sampler.set_epoch(epoch)
    rank = parallel.rank()
    if rank > 0:        # other dropout than in the first process, whose random state is saved
        torch.manual_seed(mixed(seed, epoch, rank))


def state(model, optimizer, scaler) -> dict:
    """Return the state that a resumed run continues from."""
    return {'model': model.state_dict(), 'optimizer': optim.optimizer_state(optimizer, model),
            'scaler': scaler.state_dict(), 'rng': checkpoints.random_state()}


def restore(checkpoint, model, optimizer, scaler):
    """Restore the state of training; the optimizer's other settings are those of the flags."""
    optim.restore_optimizer(optimizer, model, checkpoint['optimizer']['state'])
    checkpoints.restore_random_state(checkpoint['rng'])
    if checkpoint.get('scaler'):     # empty where training was not in float16
        scaler.load_state_dict(checkpoint['scaler'])
