"""The record of a run: everything that one experiment leaves in <logdir>/<name>/.

    log.txt         the output of the terminal, warnings once
    flags.json      the flags, defaults included
    history.jsonl   one object per start: command, date, commit, python, torch, device
    metrics.jsonl   one object per epoch and split: epoch, split, lr, loss, top1, top5, images,
                    time, data_time
    weights.jsonl   one object per epoch and binarized layer: epoch, layer, alpha, beta, K_over_n,
                    relative_error, flip_ratio
    train/, val/    events.* for TensorBoard: the same, histograms and pictures, by epochs from 1. A
                    run begun by an older version keeps its events.*, by epochs from 0, beside them
    last.pth.tar    the last finished epoch; best.pth.tar: the one with the best validation accuracy
    .lock           while a process trains: which one
"""
import contextlib
import json
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from torch import Tensor, nn

from utils.binarize import LayerWeights, binarization, convolutions, layer_weights
from utils.record.logs import copy_atomically, keep_epochs_before, make_room, restore_best
from utils.record.pictures import Pictures
from utils.record.pictures import filters as draw_filters
from utils.record.describe import describe_provenance
from utils.record.tensorboard import TensorBoard
from utils.system import console, interrupt
from utils.system.errors import InputError, RunError, explained, naming
from utils.system.files import claim, release, write_text
from utils.training.checkpoint import on_cpu, write_checkpoint
from utils.training.predictions import Predictions, metrics_line


class Run:
    """The folder of a run, opened before the first epoch; a context manager, which closes it.

    checkpoint: to continue, read from the file `resume`; records of later epochs, which are
    trained again, are dropped. pictures: draws the mistakes, None for no pictures. Raises
    InputError where another process uses the folder, where it holds another or a longer run,
    unless `overwrite`, or where it cannot be written.
    """

    def __init__(self, folder: Path, flags: dict, origin: dict, resume: str | None = None,
                 checkpoint: dict | None = None, overwrite: bool = False,
                 pictures: Pictures | None = None):
        self.folder = folder
        self.saved = checkpoint['epoch'] if checkpoint else 0
        self.masks: dict[str, Tensor] = {}     # of binarized layers, as the last epoch left them
        self.pictures = pictures
        self.thread = ThreadPoolExecutor(1)     # which writes checkpoints
        self.saving: Future | None = None
        continued = bool(resume) and Path(resume).parent.resolve() == self.folder.resolve()
        with naming('--logdir'):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.claimed = claim(self.folder)
            try:
                make_room(self.folder, self.saved, resume, continued, overwrite,
                          flags['pretrained_file'])
                self._open(flags, origin)
                self.best = restore_best(self.folder, self.saved,
                                         checkpoint if continued else None, resume)
            except BaseException:
                release(self.claimed)
                raise
        self.say(describe_provenance(origin))
        console.record_warnings(self._log_warning)

    def _open(self, flags, origin):
        self.log = open(self.folder / 'log.txt', 'a', encoding='utf-8', buffering=1,
                        errors='backslashreplace')
        write_text(self.folder / 'flags.json', json.dumps(flags, indent=2))
        for name in ('metrics.jsonl', 'weights.jsonl'):
            keep_epochs_before(self.saved, self.folder / name)
        self._append('history.jsonl', origin)
        self.board = TensorBoard(self.folder, self.saved)

    def say(self, text: str):
        """Print a text and log it."""
        console.say(text)
        self._log(text)

    def _log(self, text):
        with naming(f'{self.folder}/log.txt', RunError):
            print(console.escaped(text), file=self.log)

    def _log_warning(self, line):
        """Log a warning as it was shown, once for all starts of the run."""
        with naming(f'{self.folder}/log.txt', RunError):
            logged = (self.folder / 'log.txt').read_bytes()
        if f'{line}\n'.encode(errors='backslashreplace') not in logged:
            self._log(line)

    def record_epoch(self, split: str, epoch: int, metrics: dict, lr: float):
        """Record one epoch (from 0) of one split, 'train' or 'val', and say its line."""
        self._append('metrics.jsonl', {'epoch': epoch, 'split': split, 'lr': lr, **metrics})
        with naming(str(self.folder), RunError):
            self.board.add_metrics(split, epoch, metrics, lr)
        self.say(metrics_line(split, metrics, f'epoch {epoch + 1}  lr {lr:g}'))

    def remember_masks(self, model: nn.Module):
        """Keep which weights take which value, from which the next epoch counts its flips."""
        self.masks = {name: layer_weights(conv).mask
                      for _, name, conv in convolutions(model) if binarization(conv)}

    def record_weights(self, model: nn.Module, epoch: int):
        """Record the measures of each binarized layer, see layer_measures."""
        layers = {(number, name): layer_weights(conv)
                  for number, name, conv in convolutions(model) if binarization(conv)}
        measured = {(number, name): layer_measures(layer, self.masks[name])
                    for (number, name), layer in layers.items()}
        self.masks = {name: layer.mask for (_, name), layer in layers.items()}
        for (number, name), measures in on_cpu(measured).items():
            means = {key: values.mean().item() for key, values in measures.items()}
            self._append('weights.jsonl', {'epoch': epoch, 'layer': name, **means})
            with naming(str(self.folder), RunError):
                self.board.add_layer(number, name, epoch, measures)

    def record_pictures(self, model: nn.Module, predictions: Predictions, epoch: int):
        """Record the surest mistakes of a validation, and the filters of the first convolution."""
        if self.pictures is None:
            return
        mistakes = self.pictures.mistakes(predictions)
        with naming(str(self.folder), RunError):
            self.board.add_mistakes(mistakes, epoch)
            for number, name, conv in convolutions(model)[:1]:
                weight = layer_weights(conv).weight if binarization(conv) else conv.weight
                if filters := draw_filters(weight):
                    self.board.add_filters(number, name, filters, epoch)

    def _append(self, name, row):
        path = self.folder / name
        with naming(str(path), RunError), open(path, 'a', encoding='utf-8') as file:
            print(json.dumps(row), file=file)

    def save(self, checkpoint: dict, is_best: bool):
        """Write last.pth.tar, and best.pth.tar where is_best, atomically, in a thread.

        The tensors are copied now. Raises RunError where the last call could not write.
        """
        self.finish()
        self.saving = self.thread.submit(self._write, on_cpu(checkpoint), is_best)

    def finish(self):
        """Wait until the last checkpoint is written. Raises RunError where it cannot be."""
        if self.saving:
            saving, self.saving = self.saving, None
            saving.result()

    def _write(self, checkpoint, is_best):
        last, best = self.folder / 'last.pth.tar', self.folder / 'best.pth.tar'
        with naming(str(self.folder), RunError):
            self.board.flush()
        write_checkpoint(last, checkpoint)
        self.saved = checkpoint['epoch']
        if is_best:
            with naming(str(best), RunError):
                copy_atomically(last, best)

    def __enter__(self):
        return self

    def __exit__(self, _, error, __):
        """Log why the run ends early, if it does, and close its files."""
        with interrupt.deferred():
            self.thread.shutdown()
            console.record_warnings(None)
            with contextlib.suppress(RunError):
                if error:
                    self._log(f'ended early: {reason(error)}')
            for file in self.board, self.log:
                with contextlib.suppress(OSError):      # a full disk, which has been reported
                    file.close()
            release(self.claimed)


def layer_measures(layer: LayerWeights, mask: Tensor) -> dict[str, Tensor]:
    """The measures of a binarized layer, on its device; mask: that of the last epoch.

    alpha, beta and K_over_n are per filter; relative_error is ‖W − W~‖²/‖W‖², flip_ratio the share
    of weights that changed sides.
    """
    error = (layer.projected - layer.weight).square().sum() / layer.projected.square().sum()
    return {'alpha': layer.alpha, 'beta': layer.beta,
            'K_over_n': layer.mask.flatten(1).float().mean(1),
            'relative_error': error, 'flip_ratio': (layer.mask != mask).float().mean()}


def reason(error: BaseException) -> str:
    """The message of an expected error, the traceback of any other."""
    known = explained(error)
    if isinstance(known, (InputError, KeyboardInterrupt)):
        return str(known)
    return ''.join(traceback.format_exception(error)).rstrip()


class SilentRun:
    """A Run that records nothing, for all ranks but the first."""

    saved = folder = None
    best = -1.0

    def nothing(self, *_, **__):
        pass

    say = record_epoch = remember_masks = record_weights = record_pictures = nothing
    save = finish = __exit__ = nothing

    def __enter__(self):
        return self
