"""One epoch of training and one validation. Nothing in a step waits for the device (but float16's scaler)."""
import math
import time

import torch
from torch.nn import functional as F
from torch.nn.utils import parametrize

from . import interrupt, parallel


class Meter:
    """Sums of the loss and of the top-1 and top-5 hits over images, kept on the device."""

    def __init__(self, device):
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)
        self.images = 0
        self.start = time.perf_counter()
        self.data_time = 0.0

    def update(self, log_probs, loss, target):
        """Add a batch: log_probs (N, classes), its mean loss (a scalar, in nats), target (N,), class numbers."""
        likeliest = log_probs.topk(min(5, log_probs.size(1)), dim=1).indices
        hits = likeliest == target.unsqueeze(1)
        self.sums += torch.stack([loss.detach().double() * len(target), hits[:, 0].sum(), hits.sum()])
        self.images += len(target)

    def read(self):
        """Over all processes; waits for them and for the device. Loss in nats, top1 and top5 in
        percent, times in seconds.
        """
        *sums, images = parallel.sum_(torch.cat([self.sums, self.sums.new_tensor([self.images])])).tolist()
        loss, top1, top5 = (value / max(images, 1) for value in sums)
        return {'loss': loss, 'top1': 100 * top1, 'top5': 100 * top5, 'images': int(images),
                'time': time.perf_counter() - self.start, 'data_time': self.data_time}


def batches(loader, meter, device):
    """(images, targets) on the device; what it waits for the data is added to meter.data_time."""
    asked = time.perf_counter()
    with interrupt.postponed():
        loaded = iter(loader)
    for images, target in loaded:
        interrupt.check()
        meter.data_time += time.perf_counter() - asked
        yield images.to(device, non_blocking=True), target.to(device, non_blocking=True)
        asked = time.perf_counter()


def check_finite(loss):
    if not math.isfinite(loss):
        raise FloatingPointError(f'the loss became {"NaN" if math.isnan(loss) else loss}: a lower --maxlr may help')


def autocast(device, amp):
    """The context of --amp: autocast in the dtype of that name, or none for None."""
    return torch.autocast(device.type, getattr(torch, amp or 'bfloat16'), enabled=amp is not None)


def train_epoch(model, loader, optimizer, device, progress, printfreq, amp=None, scaler=None):
    """Train one epoch; returns Meter.read().

    amp: the name of autocast's dtype or None; scaler: a GradScaler, which float16 needs. Raises
    FloatingPointError for a loss or a weight that is no number.
    """
    scaler = scaler or torch.amp.GradScaler(device.type, enabled=False)
    model.train()
    meter = Meter(device)
    for step, (images, target) in enumerate(progress(batches(loader, meter, device)), start=1):
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, amp):
            log_probs = model(images).float()
        loss = F.nll_loss(log_probs, target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        meter.update(log_probs, loss, target)
        if step % printfreq == 0:
            metrics = meter.read()
            check_finite(metrics['loss'])
            progress.show(metrics)
    metrics = meter.read()
    check_finite(metrics['loss'])
    if not all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values()):
        raise FloatingPointError('a weight became NaN or infinite, which sign layers can hide from the loss')
    return metrics


def predict(model, images):
    """Log-probabilities (N, classes) of images (N, C, H, W), or of ten crops (N, 10, C, H, W).

    The log-probabilities of the crops are averaged.
    """
    if images.dim() == 4:
        return model(images)
    crops = images.size(1)
    return model(images.flatten(0, 1)).unflatten(0, (-1, crops)).mean(1)


@torch.no_grad()
def validate(model, loader, device, progress, amp=None):
    """Meter.read() of a pass in evaluation mode, each weight binarized once for all batches. amp: see train_epoch."""
    model.eval()
    meter = Meter(device)
    with parametrize.cached():
        for images, target in progress(batches(loader, meter, device)):
            with autocast(device, amp):
                log_probs = predict(model, images).float()
            meter.update(log_probs, F.nll_loss(log_probs, target), target)
    return meter.read()


def sign_losses(x):
    """What sign(x) loses of x: (RMSE, RMSE over the root mean square of x, mean |1 − clamp(x)²|)."""
    squared_error = torch.where(x >= 0, x - 1, x + 1).square().mean()
    return torch.stack([squared_error.sqrt(), (squared_error / x.square().mean()).sqrt(),
                        (1 - x.clamp(-1, 1).square()).abs().mean()])


@torch.no_grad()
def binarization_losses(model, sign_type, loader, device, progress):
    """{name: [RMSE, normalized RMSE, one-minus-square]} of the input of every sign layer.

    WACV 2018, §4: measured in evaluation mode on each validation batch, averaged by images.
    """
    model.eval()
    sums = {name: torch.zeros(4, dtype=torch.float64, device=device)
            for name, module in model.named_modules() if isinstance(module, sign_type)}

    def measure(name):
        def hook(module, inputs):
            losses = sign_losses(inputs[0].float())
            sums[name] += torch.cat([losses, losses.new_ones(1)]) * images.size(0)
        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(measure(name)) for name in sums]
    meter = Meter(device)
    try:
        with parametrize.cached():
            for images, _ in progress(batches(loader, meter, device)):
                predict(model, images)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (parallel.sum_(total)[:3] / total[3]).tolist() for name, total in sums.items()}
