"""A trained network as tensors and bits, and networks that compute with these bits."""
import warnings
from collections.abc import Callable
from os import PathLike

import torch
from torch import Tensor, nn

import models
from models.blocks import Sign, SignConv2d, SignFunction
from models.resnet import BasicBlock
from utils.system.devices import channels_first, channels_last

from .. import binarize
from ..native import digest, functions_of
from . import format, ops
from .format import Bits, Description
from .modules import BinaryUnit, ExpandedConv2d, PooledConv2d, ResidualBlock, TwoValued

LAYERS = SignFunction, Sign, SignConv2d, BasicBlock     # computed in another way on bits
WRITTEN_FOR = 'a75cd10095a775d2'    # the digest of their functions, see on_bits
# What they round to depends on the order of memory.
ORDERED = nn.Conv2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d


@torch.no_grad()
def pack(model: nn.Module) -> dict[str, torch.Tensor | Bits]:
    """{name: float32 tensor or Bits} of a trained network, as format.write takes them.

    A filter whose weights are all equal has that value as both alpha and beta, and a mask of ones.
    """
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()
               if 'parametrizations.weight.' not in name       # latent weights, learned values
               and not name.endswith('num_batches_tracked')}
    for name, conv in binarize.binarized(model):
        layer = binarize.layer_weights(conv)
        alpha, beta, mask = layer.alpha.cpu(), layer.beta.cpu(), layer.mask.cpu()
        has_alpha, has_beta = mask.flatten(1).any(1), (~mask).flatten(1).any(1)
        alpha, beta = torch.where(has_alpha, alpha, beta), torch.where(has_beta, beta, alpha)
        mask = mask | (alpha == beta).view(-1, 1, 1, 1)
        tensors |= {f'{name}.weight': Bits(ops.pack_mask(mask), tuple(mask.shape)),
                    f'{name}.alpha': alpha, f'{name}.beta': beta}
    return tensors


def load(path: str | PathLike, build: Callable[..., nn.Module] = models.build
         ) -> tuple[Description, nn.Module]:
    """The description and the network, in evaluation mode on the CPU, of the packed model at path.

    build and errors: see format.read.
    """
    description, network, tensors = format.read(path, build)
    return description, assemble(network, tensors)


@torch.no_grad()
def on_bits(model: nn.Module) -> nn.Module:
    """A network that gives what a trained one on the CPU gives in evaluation, but sooner.

    It shares no tensor with `model`. Returns `model` itself where a sign is not part of a
    BinaryUnit, where there is no compiled kernel, and, with a warning, where a layer was edited.
    OnBits notices at the first images what the text of the layers does not show.
    """
    if not any(isinstance(module, Sign) for module in model.modules()) or not ops.has_kernel():
        return model
    if digest(functions_of(*LAYERS)) != WRITTEN_FOR:
        warn_of_other_layers()
        return model
    network, tensors = binarize.bake(model).eval(), pack(model)
    binary = {network.get_submodule(name): (tensors[f'{name}.weight'], tensors[f'{name}.alpha'],
                                            tensors[f'{name}.beta'])
              for name, _ in binarize.binarized(model)}
    for parent in network.modules():
        if isinstance(parent, nn.Sequential):
            parent._modules = fuse(parent._modules, binary)
    if any(isinstance(module, Sign) for module in network.modules()):
        return model
    return OnBits(round_alike(join_blocks(network)).requires_grad_(False), model).eval()


class OnBits(nn.Module):
    """A network on bits, used if its first outputs equal those of the model it was made from."""

    TOLERANCE = 1e-3    # of log-probabilities

    def __init__(self, network: nn.Module, model: nn.Module):
        super().__init__()
        self.network, self.unproved = network, [model]      # a list: not a part of this module

    def forward(self, images):
        if self.unproved:
            self.prove(self.unproved.pop(), images[:8])
        return self.network(images)

    def prove(self, model: nn.Module, images: Tensor):
        """Compare outputs, and signs around 0; where they differ, warn and use the model."""
        difference = (self.network(images) - model(images)).abs()
        tiny = 10.0 ** -torch.arange(0, 45)
        inputs = torch.cat([-tiny, torch.tensor([-0.0, 0.0]), tiny])
        signs = [module for module in model.modules() if isinstance(module, Sign)]
        if not ((difference.nan_to_num() < self.TOLERANCE).all()
                and all(torch.equal(sign(inputs) > 0, inputs >= 0) for sign in signs)):
            warn_of_other_layers()
            self.network = model


def warn_of_other_layers():
    warnings.warn('a layer of this network does not compute what utils/packed does for it on bits: '
                  'it is evaluated in PyTorch as it is written, which is slower')


@torch.no_grad()
def assemble(network: nn.Module, tensors: dict[str, Tensor | Bits]) -> nn.Module:
    """Give a network on the meta device its tensors, and replace its binarized convolutions.

    [MaxPool] -> [BatchNorm -> ReLU] -> BatchNorm -> Sign -> [Dropout] -> binarized convolution ->
    [ReLU], consecutive in an nn.Sequential, becomes a BinaryUnit; every other binarized convolution
    an ExpandedConv2d; the rest stays. Without a compiled kernel, all convolutions stay and get
    float32 weights. Removes the bits from `tensors`, so that they are not held twice.
    """
    real = {name: tensor for name, tensor in tensors.items() if not isinstance(tensor, Bits)}
    network.eval().load_state_dict(real, strict=False, assign=True)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked = None   # not in a packed model, nor needed in evaluation
    binary: dict = {}     # {convolution: (bits, alpha, beta)}
    for name in tensors.keys() - real.keys():
        conv = name.removesuffix('.weight')
        values = tensors.pop(name), tensors[f'{conv}.alpha'], tensors[f'{conv}.beta']
        binary[network.get_submodule(conv)] = values
    if binary and not ops.has_kernel():
        for conv, values in binary.items():
            TwoValued.give_weights(conv, *values)
        return round_alike(network).requires_grad_(False)
    for parent in list(network.modules()):
        layers: dict = parent._modules
        if isinstance(parent, nn.Sequential):
            layers = fuse(layers, binary)
        parent._modules = {
            name: ExpandedConv2d(layer, *binary.pop(layer)) if layer in binary else layer
            for name, layer in layers.items()}
    return round_alike(join_blocks(network)).requires_grad_(False)


def join_blocks(network: nn.Module) -> nn.Module:
    """Let the last binary units of residual blocks add the shortcuts."""
    for parent in list(network.modules()):
        for name, block in parent.named_children():
            if isinstance(block, BasicBlock) and ResidualBlock.supports(block.residual):
                setattr(parent, name, ResidualBlock(block.residual, block.shortcut))
    return network


def round_alike(network: nn.Module) -> nn.Module:
    """Let layers round like those of the simulated network, whose memory is contiguous."""
    for layer in network.modules():
        if isinstance(layer, ORDERED):
            layer.register_forward_pre_hook(lambda _, inputs: channels_first(inputs[0]))
            layer.register_forward_hook(lambda _, inputs, output: channels_last(output))
    return network


def fuse(layers: dict, binary: dict) -> dict:
    """The layers of a sequence with each binary unit fused; removes its convolution from `binary`.

    The sequence evaluates to the same.
    """
    fused: dict = {}
    for name, layer in layers.items():
        names = list(fused)
        types = [type(module) for module in fused.values()]
        is_relu = type(layer) is nn.ReLU
        if type(layer) in (nn.Dropout, nn.Dropout2d):
            continue
        if is_relu and types[-1:] == [BinaryUnit] and not fused[names[-1]].relu:
            fused[names[-1]].relu = True
            continue
        if is_relu and types[-1:] in ([nn.Conv2d], [nn.BatchNorm2d]):
            layer.inplace = True        # nobody else uses its input
        elif (types[-2:] == [nn.BatchNorm2d, Sign] and layer in binary
                and BinaryUnit.supports(layer)):
            layer = make_unit(fused, layer, *binary.pop(layer))
        elif type(layer) is nn.MaxPool2d and types[-3:] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]:
            conv, norm, relu = (fused[before] for before in names[-3:])
            if conv not in binary:
                # Increasing functions commute with the maximum: pool first, for fewer values.
                make_increasing(conv, norm)
                del fused[names[-3]], fused[names[-2]], fused[names[-1]]
                fused |= {names[-3]: PooledConv2d(conv, layer), names[-2]: norm, names[-1]: relu}
                continue
        fused[name] = layer
    return fused


def make_unit(fused: dict, conv: nn.Conv2d, *weights) -> BinaryUnit:
    """The unit of a convolution and of the layers before it, which it removes from `fused`."""
    fused.popitem()     # the Sign
    _, norm = fused.popitem()
    types = [type(module) for module in fused.values()]
    if types[-2:] == [nn.BatchNorm2d, nn.ReLU]:     # monotone, so part of the threshold
        (_, relu), (_, before) = fused.popitem(), fused.popitem()
        norm = nn.Sequential(before, relu, norm)
        types = types[:-2]
    pool = None
    if types[-1:] == [nn.MaxPool2d] and next(reversed(fused.values())).dilation in (1, (1, 1)):
        _, pool = fused.popitem()
    if types[-1:] == [PooledConv2d]:
        next(reversed(fused.values())).any_order = True
    return BinaryUnit(pool, norm, conv, *weights)


def make_increasing(conv: nn.Conv2d, norm: nn.BatchNorm2d):
    """Make the scales of a BatchNorm positive by negating channels, here and in the convolution.

    Outputs stay the same to the last bit.
    """
    if norm.affine:
        sign = torch.where(norm.weight < 0, -1.0, 1.0)
        for tensor in conv.weight, conv.bias, norm.weight, norm.running_mean:
            if tensor is not None:
                tensor *= sign.view(-1, *[1] * (tensor.dim() - 1))
