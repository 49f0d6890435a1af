"""The order of an image batch (N, C, H, W) in memory, with strides that state it without doubt.

Where C = 1 or H = W = 1, both orders are the same in memory and PyTorch chooses one by the strides,
in which pooling can be 20 times slower and rounding differs.
"""
import torch
from torch import Tensor


def channels_first(x: Tensor) -> Tensor:
    """x in contiguous memory, with the strides of that order for every shape."""
    _, channels, height, width = x.shape
    strides = channels * height * width, height * width, width, 1
    return x.contiguous().as_strided(x.shape, strides)


def channels_last(x: Tensor) -> Tensor:
    """x in channels_last memory, with the strides of that order for every shape."""
    _, channels, height, width = x.shape
    strides = channels * height * width, 1, channels * width, channels
    return x.contiguous(memory_format=torch.channels_last).as_strided(x.shape, strides)
