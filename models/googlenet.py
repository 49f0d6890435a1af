"""GoogLeNet: Szegedy et al., Going Deeper with Convolutions, CVPR 2015."""
import torch
from torch import nn

from . import register
from .blocks import Units, network, sequential


class Inception(nn.Module):
    """Four branches side by side, concatenated: 1x1, 1x1 -> 3x3, 1x1 -> 5x5, max pool -> 1x1."""

    def __init__(self, unit, inplanes, planes1, reduce3, planes3, reduce5, planes5, planes_pool):
        super().__init__()
        self.branch1 = sequential(**unit(inplanes, planes1, 1))
        self.branch2 = sequential(
            **unit(inplanes, reduce3, 1),
            **unit(reduce3, planes3, 3, padding=1))
        self.branch3 = sequential(
            **unit(inplanes, reduce5, 1),
            **unit(reduce5, planes5, 5, padding=2))
        self.branch4 = sequential(
            pool=nn.MaxPool2d(3, stride=1, padding=1),
            **unit(inplanes, planes_pool, 1))

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.children()], dim=1)


@register(inpsize=224, smallest=17, variants={
    'googlenet':     dict(signLayers='',     biasLayers='1-57', dropout=0),
    'googlenetwbin': dict(signLayers='',     biasLayers='1',    dropout=0),
    'googlenetfbin': dict(signLayers='2-57', biasLayers='1',    dropout=0.4),
})
def googlenet(nClasses, channels, inpsize, signLayers, biasLayers, dropout):
    unit = Units(signLayers, biasLayers)
    return network(
        **unit(channels, 64, 7, stride=2, padding=3),
        pool1=nn.MaxPool2d(3, stride=2, padding=1),
        **unit(64, 64, 1, norm=None),
        **unit(64, 192, 3, padding=1, norm=None),
        pool3=nn.MaxPool2d(3, stride=2, padding=1),
        inception3a=Inception(unit, 192, 64, 96, 128, 16, 32, 32),
        inception3b=Inception(unit, 256, 128, 128, 192, 32, 96, 64),
        pool3b=nn.MaxPool2d(3, stride=2),
        inception4a=Inception(unit, 480, 192, 96, 204, 16, 48, 64),
        inception4b=Inception(unit, 508, 160, 112, 224, 24, 64, 64),
        inception4c=Inception(unit, 512, 128, 128, 256, 24, 64, 64),
        inception4d=Inception(unit, 512, 112, 144, 288, 32, 64, 64),
        inception4e=Inception(unit, 528, 256, 160, 320, 32, 128, 128),
        pool4e=nn.MaxPool2d(3, stride=2, padding=1),
        inception5a=Inception(unit, 832, 256, 160, 320, 48, 128, 128),
        inception5b=Inception(unit, 832, 384, 192, 384, 48, 128, 128),
        avgpool=nn.AdaptiveAvgPool2d(1),
        classifier=nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(1024, nClasses)))
