"""The validation images of a report: which are measured, what the network takes them for."""
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

import datasets
from utils import packed
from utils.record.progress import Progress
from utils.record.describe import device_name
from utils.system import devices
from utils.training import epoch
from utils.training.predictions import Predictions


class Measured(NamedTuple):
    """Predictions of the network, a row per image in all tensors."""
    images: Subset
    target: Tensor
    likeliest: Tensor           # class numbers, the likeliest first
    probabilities: Tensor       # of those
    metrics: dict               # see epoch.Meter.read
    arithmetic: str             # device and kind, for the reader


def measure(model: nn.Module, flags: dict, images: Subset) -> Measured:
    """Classify the images as validation in training does, on a GPU if there is one.

    flags: those of the run; its --amp counts on a GPU only, since many CPUs are slow in it. Images
    are items (tensor, label); a tensor is an image or its ten crops.
    """
    device = devices.choose()
    amp = epoch.validation_amp(model, flags['amp']) if device.type == 'cuda' else 'off'
    on_bits = device.type == 'cpu' and packed.on_bits(model) is not model
    loader = DataLoader(images, flags['testbatchsize'])
    predictions = Predictions()
    metrics = epoch.validate(model.to(device), loader, device,
                             Progress('validation images', len(loader)), amp, predictions.observe)
    model.cpu()
    arithmetic = 'on bits' if on_bits else 'float32' if amp == 'off' else amp
    return Measured(images, *predictions.gather(), metrics,
                    f'{device_name(device)}, {arithmetic}')


def evenly_spaced(images, count: int) -> Subset:
    """Up to `count` of the images, evenly spaced, so that every class has its share."""
    places = torch.linspace(0, len(images) - 1, min(count, len(images)))
    return Subset(images, places.long().tolist())


class Centers(Dataset):
    """The items of images with the center crop alone."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image, label = self.images[index]
        return datasets.center(image), label
