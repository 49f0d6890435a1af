"""MobileNet: Howard et al., MobileNets: Efficient CNNs for Mobile Vision Applications,
arXiv 1704.04861, 2017.
"""
from torch import nn

from . import register
from .blocks import Units, network, sequential

# channels and stride of the 13 pairs of a depthwise 3x3 and a 1x1 convolution
PAIRS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
         (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1)]


@register(inpsize=224)
def mobilenet(nClasses, channels, inpsize):
    unit = Units()
    features = unit(channels, 32, 3, stride=2, padding=1)
    inplanes = 32
    for planes, stride in PAIRS:
        features |= unit(inplanes, inplanes, 3, stride=stride, padding=1, groups=inplanes)
        features |= unit(inplanes, planes, 1)
        inplanes = planes
    return network(
        features=sequential(**features),
        avgpool=nn.AdaptiveAvgPool2d(1),
        classifier=nn.Sequential(nn.Flatten(), nn.Linear(1024, nClasses)))
