"""A network in ONNX, the format of ONNX Runtime and other inference programs.

The input `images` (N, channels, side, side) is normalized as in training; N is free. The output
`log_probs` is (N, classes). The model's metadata has, as JSON: classes, mean, std (of pixels in
[0, 1]), inpsize, dataset and model_def.
"""
import contextlib
import importlib.util
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from models.blocks import SignConv2d
from utils import binarize
from utils.packed import Description
from utils.system.errors import InputError, RunError
from utils.system.files import write_atomically

INPUT, OUTPUT = 'images', 'log_probs'
METADATA = 'classes', 'mean', 'std', 'inpsize', 'dataset', 'model_def'
MAX_BYTES = 2 ** 31 - 2 ** 20      # of the weights: an ONNX file is a protobuf of at most 2 GiB


class SumOfSigns(nn.Module):
    """Compute SignConv2d in evaluation, (α − β)(e·x) + β·Σx, by ordinary operators."""

    def __init__(self, conv: SignConv2d):
        super().__init__()
        self.marked, self.total = (
            nn.Conv2d(conv.in_channels, planes, conv.kernel_size, conv.stride, conv.padding,
                      conv.dilation, bias=False, padding_mode=conv.padding_mode)
            for planes in (conv.out_channels, 1))
        weight = conv.weight.detach()
        alpha, beta = weight.amax((1, 2, 3)), weight.amin((1, 2, 3))
        with torch.no_grad():
            self.marked.weight.copy_(weight == alpha.view(-1, 1, 1, 1))
            self.total.weight.fill_(1)
        alpha, beta = (values.double().view(-1, 1, 1) for values in (alpha, beta))
        self.register_buffer('difference', alpha - beta)
        self.register_buffer('beta', beta)
        self.bias = conv.bias

    def forward(self, x):
        y = self.difference * self.marked(x).round() + self.beta * self.total(x).round()
        y = y.to(x.dtype)
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)


def check_packages(path: Path):
    """Raise InputError where PyTorch's exporter misses a package."""
    if not all(importlib.util.find_spec(name) for name in ('onnx', 'onnxscript')):
        raise InputError(f'--export={path} needs two more packages: pip install onnx onnxscript')


def write(path: Path, network: nn.Module, description: Description):
    """Write the network, in evaluation mode on the CPU, atomically to one ONNX file.

    Raises InputError for one of more than 2 GiB, RunError where PyTorch cannot export it.
    """
    plain = exportable(network)
    size = sum(tensor.nbytes for tensor in plain.state_dict().values())
    if size > MAX_BYTES:
        raise InputError(f'an ONNX file holds at most 2 GiB, and this network has {size:,} bytes')
    shape = description.channels, description.inpsize, description.inpsize
    try:
        # The exporter prints and warns about itself.
        with (torch.no_grad(), warnings.catch_warnings(action='ignore'),
              contextlib.redirect_stdout(io.StringIO())):
            program = torch.onnx.export(
                plain, (torch.zeros(2, *shape),), dynamo=True, verbose=False, input_names=[INPUT],
                output_names=[OUTPUT], dynamic_shapes=({0: torch.export.Dim('N')},))
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).partition('\n')[0]
        raise RunError(f'PyTorch cannot export this network to ONNX: {reason}') from error
    program.model.metadata_props.update(
        {name: json.dumps(getattr(description, name)) for name in METADATA})
    write_atomically(path, lambda temporary: program.save(temporary, external_data=False))


def exportable(network: nn.Module) -> nn.Module:
    """A copy with plain weights, in which convolutions of signs still sum exactly."""
    exact = {name for name, conv in binarize.binarized(network)
             if isinstance(conv, SignConv2d) and conv.groups == 1}
    plain = binarize.bake(network).eval()
    for name in exact:
        plain.set_submodule(name, SumOfSigns(plain.get_submodule(name)))
    return plain


def is_onnx(path: Path) -> bool:
    """Whether the file is an ONNX model."""
    import onnx
    try:
        return bool(onnx.load(path, load_external_data=False).graph.node)
    except Exception:       # protobuf's, of many kinds
        return False


def in_runtime(path: Path) -> Callable[[Tensor], Tensor] | None:
    """The network in the file, run by ONNX Runtime; None where that is not installed."""
    if not importlib.util.find_spec('onnxruntime'):
        return None
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])
