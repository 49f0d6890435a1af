"""The encodings of a packed model (format.py): a tensor or bits to bytes, and back."""
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NUMPY_TYPES: dict[str, np.dtype] = {'float32': np.dtype('<f4'), 'float16': np.dtype('<f2')}


class Bits(NamedTuple):
    """The mask of the weights, `shape` (out, c, kh, kw), of a binarized convolution."""
    words: Tensor       # int64 (out, kh, kw, ceil(c / 64)), as ops.pack_mask makes them
    shape: tuple[int, ...]


def encode(tensor: Tensor | Bits, encoding: str) -> bytes:
    """The bytes of a tensor in the payload."""
    if isinstance(tensor, Bits):
        octets = tensor.words.numpy().astype('<i8').view(np.uint8)
        bits = np.unpackbits(octets, axis=-1, count=tensor.shape[1], bitorder='little')
        return np.packbits(bits, bitorder='little').tobytes()
    return tensor.numpy().astype(NUMPY_TYPES[encoding]).tobytes()


def decode(data: bytes | memoryview, encoding: str, shape: list[int]) -> Tensor | Bits:
    """The tensor of this shape, float32 or Bits, of its bytes in the payload."""
    if encoding != 'bits':
        values = np.frombuffer(data, NUMPY_TYPES[encoding])
        return torch.from_numpy(values.astype(np.float32).reshape(shape))
    out, channels, *window = shape
    octets = np.frombuffer(data, np.uint8)
    if channels % 8:
        bits = np.unpackbits(octets, count=math.prod(shape), bitorder='little')
        octets = np.packbits(bits.reshape(-1, channels), axis=1, bitorder='little')
    positions = math.prod(shape) // channels
    words = np.zeros((positions, 8 * math.ceil(channels / 64)), np.uint8)
    words[:, :math.ceil(channels / 8)] = octets.reshape(positions, -1)
    words = words.view('<i8').astype(np.int64, copy=False)
    return Bits(torch.from_numpy(words.reshape(out, *window, -1)), tuple(shape))


def encoded_size(encoding: str, shape: list[int]) -> int:
    """The bytes that a tensor needs in the payload."""
    count = math.prod(shape)
    return math.ceil(count / 8) if encoding == 'bits' else count * NUMPY_TYPES[encoding].itemsize


def choose_encoding(name: str, tensor: Tensor | Bits, half: bool) -> str:
    """The encoding of a tensor; half: float16 where it is allowed and can hold the values."""
    if isinstance(tensor, Bits):
        return 'bits'
    is_scale = name.endswith(('.alpha', '.beta'))
    return 'float16' if half and not is_scale and tensor.half().isfinite().all() else 'float32'
