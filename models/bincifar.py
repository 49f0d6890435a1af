"""BinCifar, the CIFAR network of Prabhu et al., Distribution-Aware Binarization of Neural
Networks for Sketch Recognition, WACV 2018.
"""
from functools import partial

from torch import nn

from . import register
from .blocks import Units, map_size, network, sequential


@register(inpsize=32, smallest=8, variants={
    'bincifar':     dict(signLayers='',    norm8='before'),
    'bincifarfbin': dict(signLayers='2-7', norm8=None),
})
def bincifar(nClasses, channels, inpsize, signLayers, norm8):
    units = Units(signLayers, biasLayers='1-8')
    unit = partial(units, norm='before')
    features = sequential(
        **units(channels, 128, 3, padding=1),
        **unit(128, 128, 3, padding=1),
        pool2=nn.MaxPool2d(2),
        **unit(128, 256, 3, padding=1),
        **unit(256, 256, 3, padding=1),
        pool4=nn.MaxPool2d(2),
        drop4=nn.Dropout2d(0.4),
        **unit(256, 512, 3, padding=1),
        **unit(512, 512, 3, padding=1),
        pool6=nn.MaxPool2d(2),
        drop6=nn.Dropout2d(0.4))
    classifier = sequential(
        **unit(512, 1024, map_size(features, channels, inpsize)),
        **units(1024, nClasses, 1, norm=norm8, relu=False))
    return network(features=features, classifier=classifier)
