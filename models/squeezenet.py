"""SqueezeNet 1.0: Iandola et al., SqueezeNet: AlexNet-level accuracy with 50x fewer
parameters and <0.5MB model size, arXiv 1602.07360, 2016.
"""
import torch
from torch import nn

from . import register
from .blocks import Units, network, sequential


class Fire(nn.Module):
    """A 1x1 convolution squeezes the channels; a 1x1 and a 3x3, concatenated, expand them."""

    def __init__(self, unit, inplanes, squeeze, expand):
        super().__init__()
        self.squeeze = sequential(**unit(inplanes, squeeze, 1))
        self.expand1x1 = sequential(**unit(squeeze, expand, 1))
        self.expand3x3 = sequential(**unit(squeeze, expand, 3, padding=1))

    def forward(self, x):
        x = self.squeeze(x)
        return torch.cat([self.expand1x1(x), self.expand3x3(x)], dim=1)


EXPANDS = '6,7,9,10,12,13,15,16,18,19,21,22'


@register(inpsize=224, smallest=21, variants={
    'squeezenet':         dict(signLayers='',      biasLayers='1-26'),
    'squeezenetwbin':     dict(signLayers='',      biasLayers='1,26'),
    'squeezenetfbin':     dict(signLayers='2-25',  biasLayers='1,26'),
    'squeezenethybrid':   dict(signLayers='5-25',  biasLayers='1-4,26'),
    'squeezenethybridv2': dict(signLayers='5-22',  biasLayers='1-4,26'),
    'squeezenethybridv3': dict(signLayers=EXPANDS, biasLayers='1-4,26'),
})
def squeezenet(nClasses, channels, inpsize, signLayers, biasLayers):
    unit = Units(signLayers, biasLayers)
    return network(
        **unit(channels, 96, 7, stride=2),
        pool1=nn.MaxPool2d(3, stride=2, ceil_mode=True),
        fire2=Fire(unit, 96, 16, 64),
        fire3=Fire(unit, 128, 16, 64),
        fire4=Fire(unit, 128, 32, 128),
        pool4=nn.MaxPool2d(3, stride=2, ceil_mode=True),
        fire5=Fire(unit, 256, 32, 128),
        fire6=Fire(unit, 256, 48, 192),
        fire7=Fire(unit, 384, 48, 192),
        fire8=Fire(unit, 384, 64, 256),
        pool8=nn.MaxPool2d(3, stride=2, ceil_mode=True),
        fire9=Fire(unit, 512, 64, 256),
        dropout=nn.Dropout(0.2),
        **unit(512, nClasses, 1, norm=None),
        avgpool=nn.AdaptiveAvgPool2d(1))
