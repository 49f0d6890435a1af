"""The runs of utils.compare.gain: networks that are measured while they train."""
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from utils import binarize, devices, experiment
from utils.errors import RunError, begin, naming
from utils.files import write_text
from utils.layer_errors import PART, Layer, measure_layers
from utils.training import loop
from utils.training.layers import flipped, masks

from . import gain_tables, output
from .shared import binarization_flags

PROGRAM = 'utils.compare.gain'


@dataclass(frozen=True)
class Training:
    """One run."""

    network: str
    method: str
    folder: Path        # of all runs

    @property
    def name(self) -> str:
        return f'{self.network}-{self.method}'

    @property
    def last(self) -> Path:
        return self.folder / self.name / 'last.pth.tar'

    @property
    def measures(self) -> Path:
        return self.folder / self.name / 'gain.csv'

    def arguments(self, common: Sequence[str]) -> list[str]:
        """The flags of this run, those that all runs share included."""
        return [*common, f'--model_def={self.network}', *binarization_flags(self.method),
                f'--name={self.name}', f'--logdir={self.folder}']


def train(training: Training, arguments: list[str], measure_at: list[int], command: str):
    """Train one network, in a process of its own, and write its measures."""
    begin(PROGRAM)

    def train_measured(flags, model, loaders, run, device, facts, checkpoint=None):
        measuring = MeasuringRun(run, training, {*measure_at, flags.epochs})
        measuring.start(model, checkpoint['epoch'] if checkpoint else 0)
        hook = register_optimizer_step_post_hook(
            lambda optimizer, *_: measuring.count_flips(model, optimizer))
        try:
            loop.train(flags, model, loaders, measuring, device, facts, checkpoint)
        finally:
            hook.remove()
    experiment.from_command(arguments).train(command, train_measured)


class MeasuringRun:
    """The Run of a training, which is told the weights after each epoch; it measures them too."""

    def __init__(self, run, training: Training, measure_at: set[int]):
        self.run, self.training, self.measure_at = run, training, measure_at
        self.rows: list[dict] = []
        self.masks: dict[str, Tensor] = {}      # after the last step, of every convolution
        self.flips: dict[str, list[Tensor]] = {}    # the shares of its weights, of every step

    def __getattr__(self, name):
        return getattr(self.run, name)

    def start(self, model: nn.Module, epochs: int):
        """Before the first step, or after the epochs that a resumed run has."""
        if epochs:
            self.rows = [row for row in gain_tables.read_rows(self.training.measures)
                         if row['epoch'] <= epochs]
        else:
            self.measure(model, 0)
        self.begin_epoch(model, epochs)

    def record_weights(self, model: nn.Module, epoch: int):
        self.run.record_weights(model, epoch)
        self.measure(model, epoch + 1)
        self.begin_epoch(model, epoch + 1)

    def begin_epoch(self, model: nn.Module, epochs: int):
        """Count flips from here on, if the epoch after so many is measured."""
        self.flips.clear()
        self.masks = masks(model) if epochs + 1 in self.measure_at else {}

    def count_flips(self, model: nn.Module, optimizer: torch.optim.Optimizer):
        """After a step of an optimizer, of the model or (resuming tries one) of something else."""
        stepped = [parameter for group in optimizer.param_groups for parameter in group['params']]
        if self.masks and any(parameter is next(model.parameters()) for parameter in stepped):
            before, self.masks = self.masks, masks(model)
            for name, mask in self.masks.items():
                self.flips.setdefault(name, []).append(flipped(before[name], mask))

    def measure(self, model: nn.Module, epochs: int):
        if epochs not in self.measure_at:
            return
        where = {'network': self.training.network, 'method': self.training.method,
                 'epoch': epochs}
        rows = [where | row | {'flips': self.mean_flips(row['name'])} for row in measures(model)]
        self.rows += rows
        with naming(str(self.training.measures), RunError):
            write_text(self.training.measures, output.csv_table(self.rows))
        share = gain_tables.percent(gain_tables.network_gain(rows))
        self.run.say(f'gain of dab over xnor after epoch {epochs}: {share} % of the squared error')

    def mean_flips(self, name: str) -> float:
        shares = self.flips.get(name, [])
        return torch.stack(shares).mean().item() if shares else 0.0


@torch.no_grad()
def measures(model: nn.Module) -> list[dict]:
    """A row of gain_tables.COLUMNS, but for where it is from, of every binarized convolution."""
    if not devices.has_float64(next(model.parameters()).device):
        model = copy.deepcopy(model).cpu()
    return [layer_measures(layer) for layer in measure_layers(model)]


def layer_measures(layer: Layer) -> dict:
    shares = dab_shares(layer.projected)
    errors = {f'error_{method}': layer.relative_error(method)
              for method in ('dab', 'xnor', 'adabin')}
    return {'number': layer.number, 'name': layer.name, 'filters': len(shares),
            'n': layer.projected[0].numel(), 'K_over_n': shares.mean().item(),
            'K_over_n_sd': shares.std(correction=0).item(),
            'asymmetry': (shares - 0.5).abs().mean().item(), **errors,
            'gain': gain_tables.gain(errors['error_dab'], errors['error_xnor']),
            'squared_norm': layer.norms.sum().item()}


def dab_shares(weight: Tensor) -> Tensor:
    """K/n of every filter of weight (out, c, kh, kw) as dab splits it: (out,), in float64."""
    masks = (binarize.split(part.double(), 'dab')[2] for part in weight.split(PART))
    return torch.cat([mask.flatten(1).double().mean(1) for mask in masks])
