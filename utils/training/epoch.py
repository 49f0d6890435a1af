"""One epoch of training and one validation.

Nothing in a step waits for the device, except every printfreq-th and the gradient scaler of
float16.
"""
import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from models.blocks import has_signs
from utils.system import devices, interrupt
from utils.system.errors import RunError
from utils.system.processes import out_of_reach

from .predictions import true_class_ranks
from .sums import Sums
from .updates import Updates

Part = Callable[[str], contextlib.AbstractContextManager]


class Diverged(RunError, FloatingPointError):
    """A loss or a weight that is not a finite number."""


class Meter:
    """Sums of the loss and of the top-1 and top-5 hits over images."""

    def __init__(self, device: torch.device):
        self.sums = Sums(3, device)
        self.start = time.perf_counter()
        self.data_time = 0.0

    def update(self, log_probs: Tensor, loss: Tensor, target: Tensor):
        """Add a batch: log_probs (N, classes), mean loss in nats, target (N,), class numbers."""
        ranks = true_class_ranks(log_probs.detach(), target)
        hits = [(ranks < top).sum().to(loss.dtype) for top in (1, 5)]
        self.sums.add(torch.stack([loss.detach(), *hits]), (len(target), 1, 1), len(target))

    def read(self) -> dict[str, float]:
        """Over all processes; waits for them and for the device.

        Loss in nats, top1 and top5 in percent, times in seconds.
        """
        sums, images = self.sums.read()
        loss, top1, top5 = (value / max(images, 1) for value in sums)
        return {'loss': loss, 'top1': 100 * top1, 'top5': 100 * top5, 'images': images,
                'time': time.perf_counter() - self.start, 'data_time': self.data_time}


def batches_on(device: torch.device, loader, meter: Meter | None = None,
               part: Part = contextlib.nullcontext) -> Iterator[tuple[Tensor, Tensor]]:
    """(images, targets) on the device; meter.data_time grows by the time spent waiting for them.

    part: that of loop.Observer, which waiting is the part 'data' of.
    """
    requested, loaded = time.perf_counter(), None
    while True:
        with part('data'):
            if loaded is None:
                with interrupt.deferred(), out_of_reach():
                    loaded = iter(loader)
            batch = next(loaded, None)
            if batch is None:
                return
            images, target = (devices.moved(tensor, device) for tensor in batch)
        interrupt.check()
        if meter:
            meter.data_time += time.perf_counter() - requested
        yield images, target
        requested = time.perf_counter()


def check_finite(loss: float):
    if not math.isfinite(loss):
        value = 'NaN' if math.isnan(loss) else loss
        raise Diverged(f'the loss became {value}: a lower --maxlr may help')


def autocast(device: torch.device, amp: str):
    """The context of --amp: autocast in the dtype of that name, none for 'off'."""
    dtype = torch.bfloat16 if amp == 'off' else getattr(torch, amp)
    return torch.autocast(device.type, dtype, enabled=amp != 'off')


def validation_amp(model: nn.Module, amp: str) -> str:
    """The --amp that a network is validated under: 'off' where it has binarized inputs.

    Rounding to fewer digits flips signs, so that accuracies under autocast would be those of
    another network than every export, which computes in float32.
    """
    return 'off' if has_signs(model) else amp


def train_epoch(model: nn.Module, loader, optimizer, device: torch.device, progress, printfreq: int,
                amp: str = 'off', scaler=None, accumulate: int = 1, clipGrad: float = 0.0,
                labelSmoothing: float = 0.0,
                part: Part = contextlib.nullcontext) -> dict[str, float]:
    """Train one epoch; returns Meter.read().

    loader yields (images (N, C, H, W), class numbers (N,)); progress is a Progress. amp: the name
    of autocast's dtype or 'off'; scaler: a GradScaler, which float16 needs. accumulate, clipGrad:
    see Updates; labelSmoothing: see smoothed_loss, which is the loss that is measured; part: see
    batches_on. Raises Diverged for a loss or a weight that is not finite.
    """
    scaler = scaler or torch.amp.GradScaler(device.type, enabled=False)
    updates = Updates(model, optimizer, scaler, loader, accumulate, clipGrad)
    model.train()
    meter = Meter(device)
    for number, (images, target) in enumerate(progress(batches_on(device, loader, meter, part))):
        with updates.batch(number) as backward:
            with autocast(device, amp):
                log_probs = model(images).float()
            loss = smoothed_loss(log_probs, target, labelSmoothing)
            backward(loss)
        meter.update(log_probs, loss, target)
        if (number + 1) % printfreq == 0:
            metrics = meter.read()
            check_finite(metrics['loss'])
            progress.show(metrics)
    metrics = meter.read()
    check_finite(metrics['loss'])
    finite = [tensor.isfinite().all() for tensor in model.state_dict().values()]
    if not torch.stack(finite).all():
        raise Diverged('a weight became NaN or infinite, which sign layers can hide from the loss')
    return metrics


def smoothed_loss(log_probs: Tensor, target: Tensor, labelSmoothing: float) -> Tensor:
    """Mean of −(1 − s)·log p(target) − s·mean of log p over all classes, in nats, for s >= 0.

    log_probs: (N, classes); target: (N,). Source: Szegedy et al., "Rethinking the Inception
    Architecture for Computer Vision", CVPR 2016, §7.
    """
    loss = F.nll_loss(log_probs, target)
    if labelSmoothing == 0:
        return loss
    return (1 - labelSmoothing) * loss - labelSmoothing * log_probs.mean()


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Log-probabilities (N, classes) of images (N, C, H, W), or of ten crops (N, 10, C, H, W).

    The log-probabilities of the crops are averaged.
    """
    if images.dim() == 4:
        return model(images)
    crops = images.size(1)
    return model(images.flatten(0, 1)).unflatten(0, (-1, crops)).mean(1)


@torch.no_grad()
def predictions(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device,
                amp: str = 'off') -> Iterator[tuple[Tensor, Tensor]]:
    """(float32 log-probabilities, class numbers) of each batch, in evaluation mode.

    Each weight is binarized once for all batches. Networks with binarized inputs compute what their
    exports do, without autocast (see validation_amp): on the CPU on bits, elsewhere by the exact
    sums of SignConv2d. The arguments are those of validate.
    """
    network, amp = model.eval(), validation_amp(model, amp)
    if device.type == 'cpu' and has_signs(model):
        from utils import packed
        network = packed.on_bits(model)
    with parametrize.cached():
        for images, target in batches:
            with autocast(device, amp):
                log_probs = predict(network, images)
            yield log_probs.float(), target


def validate(model: nn.Module, loader, device: torch.device, progress, amp: str = 'off',
             observe: Callable[[Tensor, Tensor], None] | None = None) -> dict[str, float]:
    """Meter.read() of a pass in evaluation mode.

    The arguments are those of train_epoch; loader may also yield ten crops (N, 10, C, H, W).
    observe is called with the log-probabilities and the class numbers of every batch. Raises
    Diverged where an output is NaN.
    """
    meter = Meter(device)
    batches = progress(batches_on(device, loader, meter))
    for log_probs, target in predictions(model, batches, device, amp):
        meter.update(log_probs, F.nll_loss(log_probs, target), target)
        if observe:
            observe(log_probs, target)
    metrics = meter.read()
    if math.isnan(metrics['loss']):
        raise Diverged('the network gives NaN instead of probabilities')
    return metrics


def metrics_line(split: str, metrics: dict, prefix: str = '') -> str:
    """The line of one split: times in seconds, loss in nats, accuracies in percent."""
    hits = round(metrics['top1'] * metrics['images'] / 100)
    return (f'{split.capitalize() + ":":6} {prefix}  time {metrics["time"]:.1f} s  '
            f'data {metrics["data_time"]:.1f} s  loss {metrics["loss"]:.4f}  '
            f'accuracy {hits}/{metrics["images"]}  '
            f'top-1 {metrics["top1"]:.2f}  top-5 {metrics["top5"]:.2f}')
