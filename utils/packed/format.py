"""The packed model, NAME.dab: a trained network with one bit for every binarized weight.

All numbers are little-endian. A file is

    offset   bytes   content
    0        8       89 44 41 42 0D 0A 1A 0A ("DAB" between bytes that a transfer as text would damage)
    8        4       version of the format, unsigned: 1
    12       4       H, length of the header, unsigned
    16       H       header: a JSON object in UTF-8
    16 + H   P       payload: the tensors of the header's table, in its order, without gaps
    end-32   32      SHA-256 of all that precedes

The header has exactly these keys:

    model_def    name of the architecture (models.names())
    signLayers   its convolutions with binarized inputs where they are not the architecture's own, '2-5,7'; else null
    classes      names, in the order of the network's outputs
    inpsize      side of an input image in pixels
    mean, std    normalization of pixels in [0, 1], a number for each channel of an image
    dataset      the kind of images (datasets.names())
    tenCrop      whether the network was validated on ten crops of an image
    tensors      table: [name, type, shape, offset in the payload], sorted by name

The names are those of the architecture's state_dict (without num_batches_tracked). Types:

    float32, float16   values in row-major order; float16 only where --exportHalf was given and can hold the values
    bits               weights (out, c, kh, kw) of a binarized convolution: in the order (out, kh, kw, c), row-major, a
                       bit each, from the lowest bit of the first byte on; zeros fill the last byte. A bit chooses the
                       value of its weight: 1 is alpha, 0 is beta, two more tensors (out,), always in float32, of the
                       convolution that has the weight.
"""
import hashlib
import json
import math
import re
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from ..checkpoint import write_whole

MAGIC = b'\x89DAB\r\n\x1a\n'
VERSION = 1
PREFIX = struct.Struct('<8sII')
CHECKSUM = 32
LONGEST_HEADER = 2 ** 24
LARGEST_INPSIZE = 2 ** 12
LAYERS = re.compile(r'(\d{1,3}(-\d{1,3})?(,\d{1,3}(-\d{1,3})?){0,99})?', re.ASCII)
NUMPY = {'float32': np.dtype('<f4'), 'float16': np.dtype('<f2')}


@dataclass(frozen=True)
class Description:
    """What the header says of the network; see above."""
    model_def: str
    signLayers: str | None
    classes: list
    inpsize: int
    mean: list
    std: list
    dataset: str
    tenCrop: bool

    def __post_init__(self):
        checks = {
            'model_def': isinstance(self.model_def, str),
            'signLayers': self.signLayers is None or isinstance(self.signLayers, str) and LAYERS.fullmatch(
                self.signLayers),
            'classes': isinstance(self.classes, list) and self.classes and all(
                isinstance(name, str) for name in self.classes),
            'inpsize': type(self.inpsize) is int and 1 <= self.inpsize <= LARGEST_INPSIZE,
            'mean': numbers(self.mean),
            'std': numbers(self.std) and min(self.std) > 0 and len(self.std) == len(self.mean),
            'dataset': isinstance(self.dataset, str),
            'tenCrop': isinstance(self.tenCrop, bool)}
        if wrong := [key for key, fine in checks.items() if not fine]:
            raise ValueError(f'a packed model cannot have this {wrong[0]}')

    @property
    def channels(self):
        return len(self.mean)


def numbers(values):
    return isinstance(values, list) and values and all(
        type(value) in (int, float) and abs(value) < 1e6 for value in values)


class Bits(NamedTuple):
    """The weights (out, c, kh, kw) = shape of a binarized convolution; words as ops.pack_mask makes them."""
    words: torch.Tensor     # int64 (out, kh, kw, ceil(c / 64))
    shape: tuple


def to_bytes(tensor, kind):
    if kind != 'bits':
        return tensor.numpy().astype(NUMPY[kind]).tobytes()
    words = tensor.words.numpy().astype('<i8')
    return np.packbits(np.unpackbits(words.view(np.uint8), axis=-1, count=tensor.shape[1], bitorder='little'),
                       bitorder='little').tobytes()


def from_bytes(data, kind, shape):
    if kind != 'bits':
        return torch.from_numpy(np.frombuffer(data, NUMPY[kind]).astype(np.float32).reshape(shape))
    out, channels, *window = shape
    octets = np.frombuffer(data, np.uint8)
    if channels % 8:
        bits = np.unpackbits(octets, count=math.prod(shape), bitorder='little')
        octets = np.packbits(bits.reshape(-1, channels), axis=1, bitorder='little')
    words = np.zeros((math.prod(shape) // channels, 8 * math.ceil(channels / 64)), np.uint8)
    words[:, :math.ceil(channels / 8)] = octets.reshape(len(words), -1)
    words = words.view('<i8').astype(np.int64, copy=False)
    return Bits(torch.from_numpy(words.reshape(out, *window, -1)), tuple(shape))


def nbytes(kind, shape):
    return math.ceil(math.prod(shape) / 8) if kind == 'bits' else math.prod(shape) * NUMPY[kind].itemsize


def table(kinds, shapes):
    """The header's table of the tensors in {name: type} and {name: shape}, and the length of the payload."""
    rows, offset = [], 0
    for name in sorted(kinds):
        rows.append([name, kinds[name], list(shapes[name]), offset])
        offset += nbytes(kinds[name], shapes[name])
    return rows, offset


def kind_of(name, tensor, half):
    if isinstance(tensor, Bits):
        return 'bits'
    fits = half and not name.endswith(('.alpha', '.beta')) and tensor.half().isfinite().all()
    return 'float16' if fits else 'float32'


def write(path, description, tensors, half=False, overwrite=False):
    """Write the packed model whole or not at all; returns the rows of its table.

    tensors: {name: float32 tensor or Bits}. half: real tensors in float16, but for alpha, beta and what float16
    cannot hold. Raises FileExistsError for a path that exists, unless `overwrite`; OSError where it cannot be written.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f'{path} exists already: give another name, or --overwrite it')
    if not path.parent.is_dir():
        raise FileNotFoundError(f'there is no folder {path.parent} to write {path.name} to')
    rows, _ = table({name: kind_of(name, tensor, half) for name, tensor in tensors.items()},
                    {name: tensor.shape for name, tensor in tensors.items()})
    header = json.dumps(asdict(description) | {'tensors': rows}, ensure_ascii=False, separators=(',', ':')).encode()
    data = PREFIX.pack(MAGIC, VERSION, len(header)) + header + b''.join(
        to_bytes(tensors[name], kind) for name, kind, *_ in rows)
    write_whole(path, lambda temporary: temporary.write_bytes(data + hashlib.sha256(data).digest()))
    return rows


def read(path, build):
    """(Description, its network on the meta device, {name: float32 tensor or Bits}) of the packed model at path.

    build(model_def, nClasses, channels, inpsize, signLayers) makes the network. Nothing in the file is run, and nothing
    is allocated that the architecture does not need and the file does not hold. Raises ValueError, in a sentence, for
    every other file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f'there is no packed model {str(path)!r}')
    data = memoryview(path.read_bytes())
    try:
        header, payload = parts(data)
        rows = header.pop('tensors')
        description = Description(**header)
        network = skeleton(description, build)
        expected, length = fitting(rows, network)
        if rows != expected or length != len(payload):
            raise ValueError('its tensors are not those of its architecture')
    except ValueError as error:
        raise ValueError(f'{path} is no packed model that can be read: {error}') from None
    return description, network, {
        name: from_bytes(payload[offset:offset + nbytes(kind, shape)], kind, shape)
        for name, kind, shape, offset in expected}


def parts(data):
    """(header as a dict with the right keys, payload) of the bytes of a file."""
    if len(data) < PREFIX.size + CHECKSUM:
        raise ValueError('it is truncated, or no packed model')
    magic, version, length = PREFIX.unpack(data[:PREFIX.size])
    if magic != MAGIC:
        raise ValueError('it does not begin like one')
    if version != VERSION:
        raise ValueError(f'it has version {version} of the format, and this program reads version {VERSION}')
    if length > min(LONGEST_HEADER, len(data) - PREFIX.size - CHECKSUM):
        raise ValueError('it is truncated or damaged')
    if hashlib.sha256(data[:-CHECKSUM]).digest() != data[-CHECKSUM:]:
        raise ValueError('it is truncated or damaged, its checksum is wrong')
    end = PREFIX.size + length
    try:
        header = json.loads(bytes(data[PREFIX.size:end]))
    except (ValueError, RecursionError):
        raise ValueError('its header is no JSON') from None
    keys = {*Description.__dataclass_fields__, 'tensors'}
    if not isinstance(header, dict) or header.keys() != keys:
        raise ValueError(f'its header must have the keys {", ".join(sorted(keys))}')
    return header, data[end:-CHECKSUM]


def skeleton(description, build):
    """The described network on the meta device: shapes, no numbers."""
    try:
        with torch.device('meta'):
            return build(description.model_def, len(description.classes), description.channels, description.inpsize,
                         description.signLayers)
    except RuntimeError:    # torch's own word for shapes that cannot be
        raise ValueError(f'there is no {description.model_def} of this shape') from None


def fitting(rows, network):
    """The table of this network if its types are those that `rows`, of any content, state; and its payload's length."""
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()
              if not name.endswith('num_batches_tracked')}
    convolutions = {f'{name}.weight' for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    stated = {row[0]: row[1] for row in rows if isinstance(row, list) and len(row) == 4 and isinstance(row[0], str)
              } if isinstance(rows, list) else {}
    kinds = {}
    for name in list(shapes):
        kinds[name] = stated.get(name)
        if kinds[name] == 'bits' and name in convolutions:
            for value in 'alpha', 'beta':
                value = f'{name.removesuffix("weight")}{value}'
                kinds[value], shapes[value] = 'float32', shapes[name][:1]
        elif kinds[name] not in ('float32', 'float16'):
            raise ValueError(f'it has no {name} of a known type')
    return table(kinds, shapes)
