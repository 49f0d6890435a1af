"""The steps of the optimizer in one epoch: after how many batches, on which gradients."""
import contextlib
from collections.abc import Callable, Iterator, Sized

import torch
from torch import Tensor, nn

from utils.binarize import binarization, binarized, forget_projections

from . import parallel
from .optim import latent_weights


def changed_by_forward(model: nn.Module) -> list[Tensor]:
    """The latent weights and the buffers of methods, which a training forward changes."""
    methods = [binarization(conv).method for _, conv in binarized(model)]
    return [*latent_weights(model), *(buffer for method in methods for buffer in method.buffers())]


class Updates:
    """A step after every `accumulate` batches, on the mean of their gradients.

    The last group of an epoch takes the mean over what it has. clipGrad: the largest norm of all
    gradients together, to which a longer one is shortened (Pascanu et al., ICML 2013); 0 for none.
    All batches of a group see the binarized weights that the first one sees: a training forward
    projects latent weights in place, and the projection of a projection can differ, as can what
    methods observe of it.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer,
                 scaler: torch.amp.GradScaler, loader: Sized, accumulate: int = 1,
                 clipGrad: float = 0.0):
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        self.accumulate, self.clipGrad = accumulate, clipGrad
        forget_projections(model)
        if accumulate > 1:
            self.batches = len(loader)
            self.changed = changed_by_forward(model)

    @contextlib.contextmanager
    def batch(self, number: int) -> Iterator[Callable[[Tensor], None]]:
        """The forward pass of batch `number`, from 0, and the call of its yielded backward(loss).

        Zeroes the gradients before the first batch of a group, and steps after the last.
        """
        if self.accumulate == 1:
            self.optimizer.zero_grad(set_to_none=True)
            yield lambda loss: self.scaler.scale(loss).backward()
            self._step()
            return
        first = number - number % self.accumulate       # of the group
        size = min(self.accumulate, self.batches - first)
        if number == first:
            self.optimizer.zero_grad(set_to_none=True)
            self.before = [tensor.detach().clone() for tensor in self.changed]
        else:
            for tensor, before in zip(self.changed, self.before):
                tensor.detach().copy_(before)
        is_last = number == first + size - 1
        with contextlib.nullcontext() if is_last else parallel.no_sync(self.model):
            yield lambda loss: self.scaler.scale(loss / size).backward()
        if is_last:
            self._step()

    def _step(self):
        if self.clipGrad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clipGrad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
