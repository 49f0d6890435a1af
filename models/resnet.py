"""ResNet-18: He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, CVPR 2016."""
from torch import nn
from torch.nn import functional as F

from . import register
from .blocks import Units, network, sequential


class BasicBlock(nn.Module):
    """ReLU(residual + shortcut); the shortcut has a convolution where the stride is not 1."""

    def __init__(self, unit, inplanes, planes, stride=1):
        super().__init__()
        self.residual = sequential(
            **unit(inplanes, planes, 3, stride=stride, padding=1),
            **unit(planes, planes, 3, padding=1, relu=False))
        shortcut = unit(inplanes, planes, 1, stride=stride, relu=False) if stride > 1 else {}
        self.shortcut = sequential(**shortcut)

    def forward(self, x):
        return F.relu(self.residual(x) + self.shortcut(x))


@register(inpsize=224, variants={
    'resnet18':         dict(signLayers=''),
    'resnetwbin18':     dict(signLayers=''),
    'resnetfbin18':     dict(signLayers='2-20'),
    'resnethybrid18':   dict(signLayers='2-18'),
    'resnethybridv218': dict(signLayers='2-13'),
    'resnethybridv318': dict(signLayers='2,4-8,11-13'),
})
def resnet18(nClasses, channels, inpsize, signLayers):
    unit = Units(signLayers)

    def stage(inplanes, planes, stride):
        return nn.Sequential(BasicBlock(unit, inplanes, planes, stride),
                             BasicBlock(unit, planes, planes))

    return network(
        **unit(channels, 64, 7, stride=2, padding=3),
        pool1=nn.MaxPool2d(3, stride=2, padding=1),
        stage1=stage(64, 64, stride=1),
        stage2=stage(64, 128, stride=2),
        stage3=stage(128, 256, stride=2),
        stage4=stage(256, 512, stride=2),
        avgpool=nn.AdaptiveAvgPool2d(1),
        **unit.conv(512, nClasses, 1))
