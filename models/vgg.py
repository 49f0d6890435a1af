"""VGG-16 with BatchNorm, sized for CIFAR: Simonyan, Zisserman, Very Deep Convolutional
Networks for Large-Scale Image Recognition, ICLR 2015.
"""
from torch import nn

from . import register
from .blocks import Units, network, sequential

STAGES = [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]  # channels, number of convolutions


@register(inpsize=32, smallest=32)
def vgg16_bncifar(nClasses, channels, inpsize):
    unit = Units(biasLayers='1-13')
    features = {}
    inplanes = channels
    for planes, depth in STAGES:
        for index in range(1, depth + 1):
            features |= unit(inplanes, planes, 3, padding=1)
            inplanes = planes
            if unit.number > 2 and index < depth:
                features[f'drop{unit.number}'] = nn.Dropout2d(0.3)
        features[f'pool{unit.number}'] = nn.MaxPool2d(2)
    return network(
        features=sequential(**features),
        avgpool=nn.AdaptiveAvgPool2d(1),
        classifier=nn.Sequential(nn.Flatten(), nn.Dropout(0.4), nn.Linear(512, nClasses)))
