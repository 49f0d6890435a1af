"""Network in Network (Lin, Chen, Yan, ICLR 2014), made binary as in XNOR-Net
(Rastegari, Ordonez, Redmon, Farhadi, ECCV 2016).
"""
from functools import partial

from torch import nn

from . import register
from .blocks import Units, network, sequential

BatchNorm2d = partial(nn.BatchNorm2d, eps=1e-4)


@register(inpsize=32)
def nin(nClasses, channels, inpsize):
    unit = Units(signLayers='2-8', biasLayers='1-9', batchnorm=BatchNorm2d)
    features = sequential(
        **unit.conv(channels, 192, 5, padding=2),
        bn1=BatchNorm2d(192, affine=False),
        relu1=nn.ReLU(),
        **unit(192, 160, 1),
        **unit(160, 96, 1),
        pool3=nn.MaxPool2d(3, stride=2, padding=1),
        **unit(96, 192, 5, padding=2, dropout=0.5),
        **unit(192, 192, 1),
        **unit(192, 192, 1),
        pool6=nn.AvgPool2d(3, stride=2, padding=1),
        **unit(192, 192, 3, padding=1, dropout=0.5),
        **unit(192, 192, 1),
        bn9=BatchNorm2d(192, affine=False))
    return network(
        features=features,
        **unit(192, nClasses, 1, norm=None),
        avgpool=nn.AdaptiveAvgPool2d(1))
