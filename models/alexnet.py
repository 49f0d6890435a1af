"""AlexNet: Krizhevsky, Sutskever, Hinton, ImageNet Classification with Deep
Convolutional Neural Networks, NeurIPS 2012.
"""
from torch import nn

from . import register
from .blocks import Units, map_size, network, sequential


@register(inpsize=224, smallest=63, variants={
    'alexnet':         dict(signLayers='',    biasLayers='1-8', dropout=0.5),
    'alexnetwbin':     dict(signLayers='',    biasLayers='1,8', dropout=0.5),
    'alexnetfbin':     dict(signLayers='2-7', biasLayers='1,8', dropout=0),
    'alexnethybrid':   dict(signLayers='2-5', biasLayers='1,8', dropout=0.1),
    'alexnethybridv2': dict(signLayers='2-6', biasLayers='1,8', dropout=0),
})
def alexnet(nClasses, channels, inpsize, signLayers, biasLayers, dropout):
    unit = Units(signLayers, biasLayers)
    features = sequential(
        **unit(channels, 96, 11, stride=4, padding=2),
        pool1=nn.MaxPool2d(3, stride=2),
        **unit(96, 256, 5, padding=2),
        pool2=nn.MaxPool2d(3, stride=2),
        **unit(256, 384, 3, padding=1),
        **unit(384, 384, 3, padding=1),
        **unit(384, 256, 3, padding=1),
        pool5=nn.MaxPool2d(3, stride=2),
        drop5=nn.Dropout2d(dropout))
    classifier = sequential(
        **unit(256, 4096, map_size(features, channels, inpsize)),
        drop6=nn.Dropout2d(dropout),
        **unit(4096, 4096, 1),
        **unit.conv(4096, nClasses, 1))
    return network(features=features, classifier=classifier)
