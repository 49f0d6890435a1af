"""The order of an image batch (N, C, H, W) in memory, with strides that state it without doubt.

Where C = 1 or H = W = 1, both orders are the same in memory and PyTorch chooses one by the strides,
in which pooling can be 20 times slower and rounding differs. Gradients get the same order.
"""
import torch
from torch import Tensor, nn


def channels_first(x: Tensor) -> Tensor:
    """x in contiguous memory, with the strides of that order for every shape."""
    return x.reshape(-1).view(x.shape)


def channels_last(x: Tensor) -> Tensor:
    """x in channels_last memory, with the strides of that order for every shape."""
    return channels_first(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def train_channels_last(model: nn.Module, device: torch.device):
    """Make the model compute on channels-last activations while it is in training mode.

    BatchNorm computes on contiguous ones on the CPU, where PyTorch (2.14) adds up channels-last
    inputs one by one in float32: the gradient of a network was wrong by up to 19 %.
    """
    model.register_forward_pre_hook(
        lambda model, inputs: channels_last(inputs[0]) if model.training else None)
    for layer in model.modules() if device.type == 'cpu' else ():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(
                lambda layer, inputs: channels_first(inputs[0]) if layer.training else None)
            layer.register_forward_hook(
                lambda layer, _, y: channels_last(channels_first(y)) if layer.training else None)
