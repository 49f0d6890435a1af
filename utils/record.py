"""The record of a run: everything that one experiment leaves in <logdir>/<name>/.

    log.txt         what was said on the terminal
    flags.json      the flags, defaults included
    metrics.jsonl   one object per epoch and split: epoch, split, lr, loss, top1, top5, images, time, data_time
    weights.jsonl   one object per epoch and binarized layer: epoch, layer, alpha, beta, K_over_n, relative_error,
                    flip_ratio
    events.*        the same for TensorBoard
    last.pth.tar    the last finished epoch; best.pth.tar: the one with the best validation accuracy
"""
import json
import shutil
import sys
from pathlib import Path

import torch
from tensorboardX import SummaryWriter
from tqdm import tqdm

from . import parallel
from .binarize import binarized, layer_split
from .checkpoint import read_checkpoint, write_checkpoint, write_whole

FILES = ('log.txt', 'flags.json', 'metrics.jsonl', 'weights.jsonl', 'events.*', '*.pth.tar')


class Progress:
    """A progress bar over an epoch, quiet when stderr is not a terminal. Called on an iterable."""

    def __init__(self, title, total):
        self.title, self.total = title, total

    def __call__(self, iterable):
        self.bar = tqdm(iterable, self.title, self.total, leave=False, dynamic_ncols=True,
                        disable=parallel.rank() > 0 or not sys.stderr.isatty())
        return self.bar

    def show(self, metrics):
        self.bar.set_postfix_str(f'loss {metrics["loss"]:.4f}  Prec@1 {metrics["top1"]:.2f}')


class Run:
    """The folder of a run, opened for writing before the first epoch, so that it fails early.

    stored: the checkpoint that the run continues, read from the file `resume`. What is recorded
    of a later, unsaved epoch is dropped: that epoch is trained again. Raises FileExistsError where
    the folder holds another run or a longer one, unless `overwrite`; OSError where it cannot be
    written.
    """

    def __init__(self, folder, flags, resume=None, stored=None, overwrite=False):
        self.folder = Path(folder)
        epoch = stored['epoch'] if stored else 0
        continued = stored and Path(resume).resolve().parent == self.folder.resolve()
        if not overwrite:
            self.refuse_another(resume, epoch)
        elif not continued:
            for pattern in FILES:
                for path in self.folder.glob(pattern):
                    path.unlink()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = open(self.folder / 'log.txt', 'a', encoding='utf-8', buffering=1)
        write_whole(self.folder / 'flags.json', lambda path: path.write_text(json.dumps(flags, indent=2)))
        for name in ('metrics.jsonl', 'weights.jsonl'):
            keep_epochs_before(epoch, self.folder / name)
        self.events = SummaryWriter(str(self.folder), purge_step=epoch or None)
        self.masks = {}
        self.saved = epoch
        best = self.folder / 'best.pth.tar'
        if best.exists() and read_checkpoint(best)['epoch'] > epoch:    # of an epoch that is trained again
            best.unlink()
        self.best = stored['best'] if stored and best.exists() else -1.0

    def refuse_another(self, resume, epoch):
        last = self.folder / 'last.pth.tar'
        if not self.folder.exists() or (self.folder.is_dir() and not any(self.folder.iterdir())):
            return
        if not resume or Path(resume).resolve().parent != self.folder.resolve():
            raise FileExistsError(f'{self.folder} holds a run already: give another --name, --overwrite it, '
                                  f'or continue it with --resume={last}')
        if last.exists() and read_checkpoint(last)['epoch'] > epoch:
            raise FileExistsError(f'{self.folder} holds later epochs than {resume}: give another --name, '
                                  f'--overwrite them, or continue with --resume={last}')

    def say(self, text):
        print(text, flush=True)
        print(text, file=self.log)

    def epoch(self, split, epoch, metrics, lr):
        """Record one epoch of one split ('train' or 'val') and say its line."""
        self.append('metrics.jsonl', {'epoch': epoch, 'split': split, 'lr': lr, **metrics})
        for key in ('loss', 'top1', 'top5'):
            self.events.add_scalar(f'{split}/{key}', metrics[key], epoch)
        if split == 'train':
            self.events.add_scalar('train/lr', lr, epoch)
        self.say(summary(split, metrics, f'epoch {epoch + 1}  lr {lr:g}'))

    def weights(self, model, epoch=None):
        """Record α, β, K/n, ‖W − W~‖²/‖W‖² and the flip ratio of each binarized layer.

        The flip ratio is the share of weights that changed sides since the last call; a call
        without epoch, before the first one, only remembers the sides.
        """
        for name, conv in binarized(model):
            weight, alpha, beta, mask = layer_split(conv)
            before = self.masks.get(name)
            self.masks[name] = mask
            if epoch is None:
                continue
            values = torch.where(mask.flatten(1), alpha[:, None], beta[:, None])
            error = (weight.flatten(1) - values).square().sum() / weight.square().sum()
            share = mask.flatten(1).float().mean(1)
            for key, per_filter in (('alpha', alpha), ('beta', beta), ('K_over_n', share)):
                self.events.add_histogram(f'{key}/{name}', per_filter.cpu().numpy(), epoch)
            means = {'alpha': alpha.mean(), 'beta': beta.mean(), 'K_over_n': share.mean(),
                     'relative_error': error, 'flip_ratio': (mask != before).float().mean()}
            means = dict(zip(means, torch.stack(list(means.values())).tolist()))
            self.append('weights.jsonl', {'epoch': epoch, 'layer': name, **means})
            for key, value in means.items():
                self.events.add_scalar(f'{key}_mean/{name}' if key in ('alpha', 'beta', 'K_over_n')
                                       else f'{key}/{name}', value, epoch)
        self.events.flush()

    def append(self, name, row):
        with open(self.folder / name, 'a', encoding='utf-8') as file:
            print(json.dumps(row), file=file)

    def save(self, checkpoint, is_best):
        """Write last.pth.tar, and best.pth.tar too where is_best: each whole or not at all."""
        last = self.folder / 'last.pth.tar'
        write_checkpoint(last, checkpoint)
        self.saved = checkpoint['epoch']
        if is_best:
            write_whole(self.folder / 'best.pth.tar', lambda path: shutil.copyfile(last, path))

    def close(self):
        self.events.close()
        self.log.close()


class SilentRun:
    """Stands for the Run in all processes but the first, which alone records."""

    saved = folder = None
    best = -1.0

    def nothing(self, *_, **__):
        pass

    say = epoch = weights = save = close = nothing


def summary(split, metrics, prefix=''):
    """The line of one split: times in seconds, loss in nats, accuracies in percent."""
    return (f'{split.capitalize() + ":":6} {prefix}  time {metrics["time"]:.1f} s  '
            f'data {metrics["data_time"]:.1f} s  loss {metrics["loss"]:.4f}  '
            f'accuracy {round(metrics["top1"] * metrics["images"] / 100)}/{metrics["images"]}  '
            f'Prec@1 {metrics["top1"]:.2f}  Prec@5 {metrics["top5"]:.2f}')


def keep_epochs_before(epoch, path):
    if path.exists():
        whole, _, _ = path.read_text().rpartition('\n')     # a full disk or a dead machine leaves part of a line
        rows = [line for line in whole.splitlines() if json.loads(line)['epoch'] < epoch]
        write_whole(path, lambda new: new.write_text(''.join(f'{row}\n' for row in rows)))
