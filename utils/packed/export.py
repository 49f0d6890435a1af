"""From a trained network to the tensors and bits of its packed model."""
import torch
from torch import nn

from .. import binarize
from . import ops
from .encoding import Bits, encoded_size
from .format import TableRow


@torch.no_grad()
def pack(model: nn.Module) -> dict[str, torch.Tensor | Bits]:
    """{name: float32 tensor or Bits} of a trained network, as format.write takes them.

    Alpha, beta and bits are what the layers compute with in evaluation, whatever the binarizer. A
    filter whose weights are all equal has that value as both alpha and beta, and a mask of ones.
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


def size_table(rows: list[TableRow], network: nn.Module, file_size: int) -> str:
    """The table that an export prints: bytes by kind of layer.

    rows: what format.write returned for the exported network. file_size: in bytes.
    """
    binarized = {name.removesuffix('.weight') for name, encoding, *_ in rows if encoding == 'bits'}
    sizes: dict[str, list[int]] = {}    # bits, alpha and beta, real, all in float32
    for name, encoding, shape, _ in rows:
        layer, _, tensor = name.rpartition('.')
        kind = ('binarized convolutions' if layer in binarized
                else type(network.get_submodule(layer)).__name__)
        is_scale = tensor in ('alpha', 'beta')
        column = 0 if encoding == 'bits' else 1 if is_scale else 2
        row = sizes.setdefault(kind, [0] * 4)
        row[column] += encoded_size(encoding, shape)
        row[3] += 0 if is_scale else encoded_size('float32', shape)
    payload = sum(sum(row[:3]) for row in sizes.values())
    sizes['header, checksum'] = [0, 0, file_size - payload, 0]
    sizes['file'] = [sum(column) for column in zip(*sizes.values())]
    titles = 'bits', 'alpha, beta', 'real', 'packed', 'as float32', 'ratio'
    lines = [f'{"bytes of":24}' + ''.join(f'{title:>13}' for title in titles)]
    for kind, (*parts, in_float32) in sizes.items():
        packed = sum(parts)
        cells = ''.join(f'{cell:13,}' for cell in (*parts, packed, in_float32))
        ratio = f'{in_float32 / packed:13.1f}' if in_float32 else ''
        lines.append(f'{kind:24}{cells}{ratio}')
    return '\n'.join(lines)
