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
    .lock           while a process trains: which one
"""
import contextlib
import json
import shutil
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from torch import nn

from utils import console
from utils.binarize import binarized, layer_weights
from utils.errors import InputError, RunError, explained, naming
from utils.files import LOCK, TEMPORARY, claim, release, write_atomically, write_text
from utils.provenance import describe_provenance

from .checkpoint import CHECKPOINTS, on_cpu, read_checkpoint, write_checkpoint
from .epoch import metrics_line
from .events import Events
from .logs import keep_epochs_before

STARTS = 'log.txt', 'history.jsonl'             # kept of a start that finished no epoch
FILES = (*STARTS, 'flags.json', 'metrics.jsonl', 'weights.jsonl', 'events.out.tfevents.*',
         *CHECKPOINTS)
PER_FILTER = 'alpha', 'beta', 'K_over_n'    # TensorBoard gets their histograms and means


class Run:
    """The folder of a run, opened for writing before the first epoch, so that it fails early.

    checkpoint: the one that the run continues, read from the file `resume`. What is recorded of a
    later, unsaved epoch is dropped: that epoch is trained again. Raises InputError where another
    process uses the folder, where it holds another run or a longer one, unless `overwrite`, or
    where it cannot be written. A context manager, which closes the folder's files and logs why the
    run ended early.
    """

    def __init__(self, folder: Path, flags: dict, origin: dict, resume: str | None = None,
                 checkpoint: dict | None = None, overwrite: bool = False):
        self.folder = folder
        self.saved = checkpoint['epoch'] if checkpoint else 0
        self.masks: dict = {}
        self.thread = ThreadPoolExecutor(1)     # which writes checkpoints
        self.saving: Future | None = None
        continued = bool(resume) and Path(resume).parent.resolve() == self.folder.resolve()
        with naming('--logdir'):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.claimed = claim(self.folder)
            try:
                self._make_room(resume, continued, overwrite, flags['pretrained_file'])
                self._open(flags, origin)
                self.best = self._restore_best(checkpoint if continued else None, resume)
            except BaseException:
                release(self.claimed)
                raise
        self.say(describe_provenance(origin))

    def _open(self, flags, origin):
        self.log = open(self.folder / 'log.txt', 'a', encoding='utf-8', buffering=1,
                        errors='backslashreplace')
        write_text(self.folder / 'flags.json', json.dumps(flags, indent=2))
        for name in ('metrics.jsonl', 'weights.jsonl'):
            keep_epochs_before(self.saved, self.folder / name)
        self._append('history.jsonl', origin)
        self.events = Events(self.folder, self.saved or None)

    def _restore_best(self, continued, resume):
        """The best top-1 so far, which is that of best.pth.tar; -1 where there is none.

        continued: the checkpoint, read from `resume`, of this folder's run, or None.
        """
        best = self.folder / 'best.pth.tar'
        try:
            stored = read_checkpoint(best) if best.exists() else None
        except InputError as error:
            raise InputError(f'{error}: move it away to continue without it') from error
        if stored and stored['epoch'] > self.saved:
            best.unlink()       # of an epoch that is trained again
            stored = None
        if continued and continued['metrics']['top1'] == continued['best']:
            # A run that was killed after it wrote last.pth.tar had no time for best.pth.tar.
            if not stored or stored['metrics']['top1'] < continued['best']:
                stored = continued
                copy_atomically(resume, best)
        return stored['metrics']['top1'] if stored else -1.0

    def _make_room(self, resume, continued, overwrite, pretrained):
        """Refuse a folder that holds other things, or remove its run under `overwrite`.

        A start that finished no epoch is in nobody's way.
        """
        for path in self.folder.glob(TEMPORARY):    # of a process that was killed
            path.unlink()
        own = {path for pattern in FILES for path in self.folder.glob(pattern)}
        saved = [self.folder / name for name in CHECKPOINTS if self.folder / name in own]
        if continued:
            later = saved and read_checkpoint(saved[0])['epoch'] > self.saved
            if later and not overwrite:
                raise InputError(f'{self.folder} holds later epochs than {resume}: give another '
                                 f'--name, --overwrite them, or continue with --resume={saved[0]}')
            if later:       # before the records go, what a next start continues
                copy_atomically(resume, self.folder / 'last.pth.tar')
            return
        if saved and not overwrite:
            raise InputError(f'{self.folder} already holds a run: give another --name, '
                             f'--overwrite it, or continue it with --resume={saved[0]}')
        foreign = set(self.folder.iterdir()) - own - {self.folder / LOCK}
        if foreign and self.folder / 'history.jsonl' not in own and not overwrite:
            raise InputError(f'{self.folder} holds something else, such as {min(foreign).name}: '
                             'give another --name')
        if pretrained and Path(pretrained).resolve() in {path.resolve() for path in own}:
            raise InputError(f'--overwrite would remove {pretrained}, where --pretrained_file is: '
                             'give another --name')
        for path in own:
            if overwrite or path.name not in STARTS:
                path.unlink()

    def say(self, text: str):
        """Print a text and log it."""
        console.say(text)
        self._log(text)

    def _log(self, text):
        with naming(f'{self.folder}/log.txt', RunError):
            print(text, file=self.log)

    def record_epoch(self, split: str, epoch: int, metrics: dict, lr: float):
        """Record one epoch (from 0) of one split, 'train' or 'val', and say its line."""
        self._append('metrics.jsonl', {'epoch': epoch, 'split': split, 'lr': lr, **metrics})
        with naming(str(self.folder), RunError):
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
        with naming(str(self.folder), RunError):
            measures = on_cpu({name: self._measures(name, layer_weights(conv))
                               for name, conv in binarized(model)})
            for name, of_layer in measures.items():
                self._record_layer(name, of_layer, epoch)

    def _measures(self, name, layer):
        error = (layer.projected - layer.weight).square().sum() / layer.projected.square().sum()
        flips = (layer.mask != self.masks[name]).float().mean()
        self.masks[name] = layer.mask
        share = layer.mask.flatten(1).float().mean(1)
        return {'alpha': layer.alpha, 'beta': layer.beta, 'K_over_n': share,
                'relative_error': error, 'flip_ratio': flips}

    def _record_layer(self, name, measures, epoch):
        numbers = {key: values.mean().item() for key, values in measures.items()}
        for key in PER_FILTER:
            self.events.add_histogram(f'{key}/{name}', measures[key].numpy(), epoch)
        self._append('weights.jsonl', {'epoch': epoch, 'layer': name, **numbers})
        for key, value in numbers.items():
            tag = f'{key}_mean' if key in PER_FILTER else key
            self.events.add_scalar(f'{tag}/{name}', value, epoch)

    def _append(self, name, row):
        path = self.folder / name
        with naming(str(path), RunError), open(path, 'a', encoding='utf-8') as file:
            print(json.dumps(row), file=file)

    def save(self, checkpoint: dict, is_best: bool):
        """Start to write last.pth.tar, and best.pth.tar where is_best, with the tensors of now.

        Each is written atomically. Raises RunError where the ones before could not be written.
        """
        self.finish()
        self.saving = self.thread.submit(self._write, on_cpu(checkpoint), is_best)

    def finish(self):
        """Wait until the last checkpoint lies on the disk. Raises RunError where it does not."""
        if self.saving:
            saving, self.saving = self.saving, None
            saving.result()

    def _write(self, checkpoint, is_best):
        last, best = self.folder / 'last.pth.tar', self.folder / 'best.pth.tar'
        with naming(str(self.folder), RunError):
            self.events.flush()
        write_checkpoint(last, checkpoint)
        self.saved = checkpoint['epoch']
        if is_best:
            with naming(str(best), RunError):
                copy_atomically(last, best)

    def __enter__(self):
        return self

    def __exit__(self, _, error, __):
        """Log why the run ends where it ends early, as far as that can be done, and close it."""
        self.thread.shutdown()
        with contextlib.suppress(RunError):
            if error:
                self._log(f'ended early: {reason(error)}')
        for file in self.events, self.log:
            with contextlib.suppress(OSError):      # a full disk, which has been reported
                file.close()
        release(self.claimed)


def reason(error: BaseException) -> str:
    """The sentence of an expected error, the traceback of any other."""
    known = explained(error)
    if isinstance(known, (InputError, KeyboardInterrupt)):
        return str(known)
    return ''.join(traceback.format_exception(error)).rstrip()


class SilentRun:
    """Stands for the Run in all processes but the first, which alone records."""

    saved = folder = None
    best = -1.0

    def nothing(self, *_, **__):
        pass

    say = record_epoch = remember_masks = record_weights = save = finish = __exit__ = nothing

    def __enter__(self):
        return self


def copy_atomically(source: str | Path, target: Path):
    write_atomically(target, lambda temporary: shutil.copyfile(source, temporary))
