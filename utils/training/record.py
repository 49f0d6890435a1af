"""The record of a run: everything that one experiment leaves in <logdir>/<name>/.

    log.txt         the output of the terminal
    flags.json      the flags, defaults included
    history.jsonl   one object per start: command, date, commit, python, torch, device
    metrics.jsonl   one object per epoch and split: epoch, split, lr, loss, top1, top5, images,
                    time, data_time
    weights.jsonl   one object per epoch and binarized layer: epoch, layer, alpha, beta, K_over_n,
                    relative_error, flip_ratio
    events.*        the same for TensorBoard
    last.pth.tar    the last finished epoch; best.pth.tar: the one with the best validation accuracy
"""
import json
import shutil
from pathlib import Path

from tensorboardX import SummaryWriter
from torch import nn

from utils.binarize import binarized, layer_weights
from utils.errors import InputError, RunError, naming
from utils.files import write_atomically, write_text
from utils.provenance import describe_provenance

from .checkpoint import read_checkpoint, write_checkpoint
from .epoch import metrics_line

FILES = ('log.txt', 'flags.json', 'history.jsonl', 'metrics.jsonl', 'weights.jsonl',
         'events.out.tfevents.*', 'last.pth.tar', 'best.pth.tar')
PER_FILTER = 'alpha', 'beta', 'K_over_n'    # TensorBoard gets their histograms and means


class Run:
    """The folder of a run, opened for writing before the first epoch, so that it fails early.

    checkpoint: the one that the run continues, read from the file `resume`. What is recorded of a
    later, unsaved epoch is dropped: that epoch is trained again. Raises InputError where the folder
    holds another run or a longer one, unless `overwrite`, or where it cannot be written.
    """

    def __init__(self, folder: Path, flags: dict, origin: dict, resume: str | None = None,
                 checkpoint: dict | None = None, overwrite: bool = False):
        self.folder = folder
        self.saved = checkpoint['epoch'] if checkpoint else 0
        self.masks: dict = {}
        continued = bool(resume) and Path(resume).resolve().parent == self.folder.resolve()
        with naming('--logdir'):
            self._make_room(resume, continued, overwrite)
            self.folder.mkdir(parents=True, exist_ok=True)
            self.log = open(self.folder / 'log.txt', 'a', encoding='utf-8', buffering=1)
            write_text(self.folder / 'flags.json', json.dumps(flags, indent=2))
            for name in ('metrics.jsonl', 'weights.jsonl'):
                keep_epochs_before(self.saved, self.folder / name)
            self._append('history.jsonl', origin)
            self.events = SummaryWriter(str(self.folder), purge_step=self.saved or None)
        self.best = self._restore_best(checkpoint if continued else None, resume)
        self.say(describe_provenance(origin))

    def _restore_best(self, continued, resume):
        """The best top-1 so far, which is that of best.pth.tar; -1 where there is none.

        continued: the checkpoint, read from `resume`, of this folder's run, or None.
        """
        best = self.folder / 'best.pth.tar'
        stored = read_checkpoint(best) if best.exists() else None
        if stored and stored['epoch'] > self.saved:
            best.unlink()       # of an epoch that is trained again
            stored = None
        if continued and continued['metrics']['top1'] == continued['best']:
            # A run that was killed after it wrote last.pth.tar had no time for best.pth.tar.
            if not stored or stored['metrics']['top1'] < continued['best']:
                stored = continued
                write_atomically(best, lambda temporary: shutil.copyfile(resume, temporary))
        return stored['metrics']['top1'] if stored else -1.0

    def _make_room(self, resume, continued, overwrite):
        """Refuse a folder that holds another run, or remove that run under `overwrite`."""
        last = self.folder / 'last.pth.tar'
        if overwrite and not continued:
            for path in [path for pattern in FILES for path in self.folder.glob(pattern)]:
                path.unlink()
        if overwrite or not self.folder.exists():
            return
        if not continued:
            if not self.folder.is_dir() or any(self.folder.iterdir()):
                raise InputError(f'{self.folder} already holds a run: give another --name, '
                                 f'--overwrite it, or continue it with --resume={last}')
        elif last.exists() and read_checkpoint(last)['epoch'] > self.saved:
            raise InputError(f'{self.folder} holds later epochs than {resume}: give another '
                             f'--name, --overwrite them, or continue with --resume={last}')

    def say(self, text: str):
        """Print a text and log it."""
        print(text, flush=True)
        with naming(f'{self.folder}/log.txt', RunError):
            print(text, file=self.log)

    def record_epoch(self, split: str, epoch: int, metrics: dict, lr: float):
        """Record one epoch (from 0) of one split, 'train' or 'val', and say its line."""
        self._append('metrics.jsonl', {'epoch': epoch, 'split': split, 'lr': lr, **metrics})
        for key in ('loss', 'top1', 'top5'):
            self.events.add_scalar(f'{split}/{key}', metrics[key], epoch)
        if split == 'train':
            self.events.add_scalar('train/lr', lr, epoch)
        self.say(metrics_line(split, metrics, f'epoch {epoch + 1}  lr {lr:g}'))

    def remember_masks(self, model: nn.Module):
        """Keep which weights take which value, from which the next epoch counts its flips."""
        self.masks = {name: layer_weights(conv).mask for name, conv in binarized(model)}

    def record_weights(self, model: nn.Module, epoch: int):
        """Record α, β, K/n, ‖W − W~‖²/‖W‖² and the flip ratio of each binarized layer.

        The flip ratio is the share of weights that changed sides since remember_masks or since the
        last call.
        """
        for name, conv in binarized(model):
            layer = layer_weights(conv)
            error = (layer.projected - layer.weight).square().sum() / layer.projected.square().sum()
            flips = (layer.mask != self.masks[name]).float().mean()
            self.masks[name] = layer.mask
            share = layer.mask.flatten(1).float().mean(1)
            per_filter = dict(zip(PER_FILTER, (layer.alpha, layer.beta, share)))
            for key, values in per_filter.items():
                self.events.add_histogram(f'{key}/{name}', values.cpu().numpy(), epoch)
            numbers = {key: values.mean().item() for key, values in per_filter.items()}
            numbers |= {'relative_error': error.item(), 'flip_ratio': flips.item()}
            self._append('weights.jsonl', {'epoch': epoch, 'layer': name, **numbers})
            for key, value in numbers.items():
                tag = f'{key}_mean' if key in PER_FILTER else key
                self.events.add_scalar(f'{tag}/{name}', value, epoch)
        self.events.flush()

    def _append(self, name, row):
        path = self.folder / name
        with naming(str(path), RunError), open(path, 'a', encoding='utf-8') as file:
            print(json.dumps(row), file=file)

    def save(self, checkpoint: dict, is_best: bool):
        """Write last.pth.tar, and best.pth.tar too where is_best, each atomically."""
        last, best = self.folder / 'last.pth.tar', self.folder / 'best.pth.tar'
        write_checkpoint(last, checkpoint)
        self.saved = checkpoint['epoch']
        if is_best:
            with naming(str(best), RunError):
                write_atomically(best, lambda temporary: shutil.copyfile(last, temporary))

    def close(self):
        self.events.close()
        self.log.close()


class SilentRun:
    """Stands for the Run in all processes but the first, which alone records."""

    saved = folder = None
    best = -1.0

    def nothing(self, *_, **__):
        pass

    say = record_epoch = remember_masks = record_weights = save = close = nothing


def keep_epochs_before(epoch: int, path: Path):
    """Drop the lines of later epochs, and part of a line, which a full disk can leave."""
    if path.exists():
        complete, _, _ = path.read_text().rpartition('\n')
        lines = [line for line in complete.splitlines() if json.loads(line)['epoch'] < epoch]
        write_text(path, ''.join(f'{line}\n' for line in lines))
