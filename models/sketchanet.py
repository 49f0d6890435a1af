"""Sketch-A-Net: Yu, Yang, Song, Xiang, Hospedales, Sketch-a-Net that Beats Humans, BMVC 2015."""
from torch import nn

from . import register
from .blocks import Units, map_size, network, sequential


@register(inpsize=225, smallest=81, variants={
    'sketchanet':         dict(signLayers='',    biasLayers='1-8', dropout=0.1),
    'sketchanetwbin':     dict(signLayers='',    biasLayers='1,8', dropout=0.1),
    'sketchanetfbin':     dict(signLayers='2-7', biasLayers='1,8', dropout=0.2),
    'sketchanethybrid':   dict(signLayers='2-5', biasLayers='1,8', dropout=0.2),
    'sketchanethybridv2': dict(signLayers='2-6', biasLayers='1,8', dropout=0.2),
})
def sketchanet(nClasses, channels, inpsize, signLayers, biasLayers, dropout):
    unit = Units(signLayers, biasLayers)
    features = sequential(
        **unit(channels, 64, 15, stride=3),
        pool1=nn.MaxPool2d(3, stride=2),
        **unit(64, 128, 5),
        pool2=nn.MaxPool2d(3, stride=2),
        **unit(128, 256, 3, padding=1),
        **unit(256, 256, 3, padding=1),
        **unit(256, 256, 3, padding=1),
        pool5=nn.MaxPool2d(3, stride=2))
    classifier = sequential(
        **unit(256, 512, map_size(features, channels, inpsize)),
        drop6=nn.Dropout2d(dropout),
        **unit(512, 512, 1),
        drop7=nn.Dropout2d(dropout),
        **unit.conv(512, nClasses, 1))
    return network(features=features, classifier=classifier)
