"""BatchNorm and sign as one comparison of float32 numbers."""
import torch
from torch import Tensor, nn

LARGEST = torch.tensor(torch.finfo(torch.float32).max).view(torch.int32).item()


def sign_threshold(norm: nn.Module, channels: int) -> tuple[Tensor, Tensor]:
    """threshold, float32 (channels,), and flip, bool (channels,), of a BatchNorm in evaluation
    mode, or of a sequence of such and ReLUs.

    For every finite x, norm(x) >= 0 if and only if (x >= threshold) != flip. Such a norm is
    monotone in x, also as float32 rounds it: bisection over all float32 numbers with PyTorch's own
    BatchNorm finds the one at which the sign changes. Where it never changes, as for a scale of 0,
    the threshold is -inf.
    """
    def is_positive(order):
        return (norm(float_from_order(order).view(1, -1, 1, 1)) >= 0).flatten()

    low, high = (torch.full((channels,), end) for end in (-LARGEST, LARGEST))
    first, last = is_positive(low), is_positive(high)
    while (high - low > 1).any():
        middle = (low + high) // 2
        is_beyond = is_positive(middle) == last
        low, high = torch.where(is_beyond, low, middle), torch.where(is_beyond, middle, high)
    return torch.where(first == last, -torch.inf, float_from_order(high)), ~last


def float_from_order(order: Tensor) -> Tensor:
    """The float32 numbers at these positions (int64) when all are sorted; 0 is at position 0."""
    return order.abs().to(torch.int32).view(torch.float32) * order.sign()
