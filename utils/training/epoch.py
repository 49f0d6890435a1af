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

from .optim import Steps
from .predictions import Meter

Part = Callable[[str], contextlib.AbstractContextManager]


class Diverged(RunError, FloatingPointError):
    """A loss or a weight that is not a finite number."""


def batches_on(device: torch.device, loader, meter: Meter | None = None,
               part: Part = contextlib.nullcontext) -> Iterator[tuple[Tensor, Tensor]]:
    """(images, targets) on the device; meter.data_time grows by the time spent waiting for them.

    part: that of loop.Observer, which waiting is the part 'data' of.
    """
    requested, loaded = time.perf_counter(), None
    while True:
        with part('data'):
            if loaded is None:
                with interrupt.deferred(), interrupt.out_of_reach():
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
    see optim.Steps; labelSmoothing: that of F.cross_entropy, which is also measured; part: see
    batches_on. Raises Diverged for a loss or a weight that is not finite.
    """
    scaler = scaler or torch.amp.GradScaler(device.type, enabled=False)
    steps = Steps(model, optimizer, scaler, loader, accumulate, clipGrad)
    model.train()
    meter = Meter(device)
    for number, (images, target) in enumerate(progress(batches_on(device, loader, meter, part))):
        with steps.batch(number) as backward:
            with autocast(device, amp):
                log_probs = model(images).float()
            if labelSmoothing:      # log_softmax leaves log-probabilities as they are
                loss = F.cross_entropy(log_probs, target, label_smoothing=labelSmoothing)
            else:
                loss = F.nll_loss(log_probs, target)
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
