"""What sign layers lose of their inputs: the measures of WACV 2018, §4."""
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from models.blocks import Sign
from utils.describe import watching_inputs

from .training.epoch import batches_on, predict
from .training.predictions import Sums

MEASURES = 'RMSE', 'normalized RMSE', 'one-minus-square'


def sign_losses(x: Tensor) -> Tensor:
    """The three MEASURES of one input x of any shape.

    RMSE of sign(x) − x; the same over the root mean square of x; mean |1 − clamp(x, −1, 1)²|.
    """
    squared_error = torch.where(x >= 0, x - 1, x + 1).square().mean()
    return torch.stack([squared_error.sqrt(), (squared_error / x.square().mean()).sqrt(),
                        (1 - x.clamp(-1, 1).square()).abs().mean()])


@torch.no_grad()
def binarization_losses(model: nn.Module, loader, device: torch.device,
                        progress) -> dict[str, list[float]]:
    """{name of a sign layer: its MEASURES}, in evaluation mode, the mean of batches by images.

    They have roots of means over a batch, so they depend a little on its size. loader yields
    (images, labels), one image or ten crops each; progress is a Progress.
    """
    model.eval()
    signs = {name: module for name, module in model.named_modules() if isinstance(module, Sign)}
    sums = {name: Sums(len(MEASURES), device) for name in signs}

    def add(name, x):
        sums[name].add(sign_losses(x.float()) * len(images), [1] * len(MEASURES), len(images))

    with parametrize.cached(), watching_inputs(signs, add):
        for images, _ in progress(batches_on(device, loader)):
            predict(model, images)
    totals = {name: of_layer.total() for name, of_layer in sums.items()}
    return {name: [value / count for value in values] for name, (values, count) in totals.items()}


def loss_table(losses: dict[str, list[float]]) -> str:
    """The table of --calculateBinarizationLosses."""
    rows = [f'{"sign layer":32} {"RMSE":>10} {"normalized":>10} {"1-square":>10}']
    for name, values in losses.items():
        rows.append(f'{name:32} ' + ' '.join(f'{value:10.4f}' for value in values))
    return '\n'.join(rows)
