"""DenseNet-BC: Huang, Liu, van der Maaten, Weinberger, Densely Connected Convolutional
Networks, CVPR 2017.
"""
import torch
from torch import nn

from . import register
from .blocks import Units, network, sequential

GROWTH = 12
BOTTLENECK = 4 * GROWTH
LAYERS = 4  # of a dense block: (depth 32 - 4) / 3 blocks / 2 convolutions


def preact(unit, inplanes, planes, kernel_size, **options):
    """BatchNorm -> ReLU -> Conv -> Dropout."""
    return sequential(bn=nn.BatchNorm2d(inplanes), relu=nn.ReLU(),
                      **unit.conv(inplanes, planes, kernel_size, **options), drop=nn.Dropout(0.2))


class DenseLayer(nn.Module):
    """Appends GROWTH channels to its input."""

    def __init__(self, unit, inplanes):
        super().__init__()
        self.bottleneck = preact(unit, inplanes, BOTTLENECK, 1)
        self.growth = preact(unit, BOTTLENECK, GROWTH, 3, padding=1)

    def forward(self, x):
        return torch.cat([x, self.growth(self.bottleneck(x))], dim=1)


@register(inpsize=32, smallest=4)
def densenet(nClasses, channels, inpsize):
    unit = Units()
    planes = 2 * GROWTH
    features = unit.conv(channels, planes, 3, padding=1)
    for block in 1, 2, 3:
        layers = [DenseLayer(unit, planes + i * GROWTH) for i in range(LAYERS)]
        features[f'block{block}'] = nn.Sequential(*layers)
        planes += LAYERS * GROWTH
        if block < 3:
            features[f'transition{block}'] = preact(unit, planes, planes // 2, 1)
            features[f'pool{block}'] = nn.AvgPool2d(2)
            planes //= 2
    return network(
        features=sequential(**features, bn=nn.BatchNorm2d(planes), relu=nn.ReLU()),
        avgpool=nn.AdaptiveAvgPool2d(1),
        classifier=nn.Sequential(nn.Flatten(), nn.Linear(planes, nClasses)))
