"""The packed model, NAME.dab: a trained network with one bit for every binarized weight.

All numbers are little-endian. A file is

    offset   bytes   content
    0        8       89 44 41 42 0D 0A 1A 0A (a magic number; transfer as text would damage it)
    8        4       version of the format, unsigned: 1
    12       4       H, length of the header, unsigned
    16       H       header: a JSON object in UTF-8
    16 + H   P       payload: the tensors of the header's table, in its order, without gaps
    end-32   32      SHA-256 of everything before it

The header has exactly these keys:

    model_def    name of the architecture (models.names())
    signLayers   its convolutions with binarized inputs, '2-5,7'; null for the architecture's own
    classes      names, in the order of the network's outputs
    inpsize      side of an input image in pixels
    mean, std    normalization of pixels in [0, 1], one number per channel of an image
    dataset      the kind of images: a name of datasets.names(), or 'folder:NAME' for a user's own
                 data NAME, whose images are transformed as sketches (1 channel) or as photographs
                 (3 channels; the length of mean) and normalized by mean and std
    tenCrop      whether the network was validated on ten crops of an image
    tensors      table: [name, encoding, shape, offset in the payload], sorted by name

The names are those of the architecture's state_dict (without num_batches_tracked). Encodings:

    float32, float16   values in row-major order; float16 only on request and where it can hold
                       all values
    bits               weights (out, c, kh, kw) of a binarized convolution: in the order
                       (out, kh, kw, c), row-major, one bit each, from the lowest bit of the first
                       byte on; zeros fill the last byte. A bit chooses the value of its weight:
                       1 is alpha, 0 is beta, two more tensors (out,), always in float32, named
                       after the same convolution
"""
import hashlib
import json
import math
import re
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import models
from utils.system.errors import InputError, naming
from utils.system.files import are_class_names, check_file, check_numbers, write_atomically

MAGIC = b'\x89DAB\r\n\x1a\n'
ZIP_MAGIC = b'PK\3\4'    # of a checkpoint
VERSION = 1
PREFIX = struct.Struct('<8sII')
CHECKSUM_BYTES = 32
MAX_HEADER_BYTES = 2 ** 24
SIGN_LAYERS = re.compile(r'(\d{1,3}(-\d{1,3})?(,\d{1,3}(-\d{1,3})?){0,99})?', re.ASCII)

TableRow = list     # [name, encoding, shape, offset in the payload]
NUMPY_TYPES = {'float32': np.dtype('<f4'), 'float16': np.dtype('<f2')}


class Bits(NamedTuple):
    """The mask of the weights, `shape` (out, c, kh, kw), of a binarized convolution."""
    words: Tensor       # int64 (out, kh, kw, ceil(c / 64)), as ops.pack_mask makes them
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Description:
    """The header without its table: see the top of this file. Raises InputError if invalid."""
    model_def: str
    signLayers: str | None
    classes: list[str]
    inpsize: int
    mean: list[float]
    std: list[float]
    dataset: str
    tenCrop: bool

    def __post_init__(self):
        signs, side = self.signLayers, self.inpsize
        is_valid = {
            'model_def': isinstance(self.model_def, str),
            'signLayers': signs is None or isinstance(signs, str) and SIGN_LAYERS.fullmatch(signs),
            'classes': are_class_names(self.classes),
            'inpsize': type(side) is int and 1 <= side <= models.MAX_INPSIZE,
            'mean': are_numbers(self.mean),
            'std': (are_numbers(self.std) and min(self.std) > 0
                    and are_numbers(self.mean) and len(self.std) == len(self.mean)),
            'dataset': isinstance(self.dataset, str) and self.dataset.isprintable(),
            'tenCrop': isinstance(self.tenCrop, bool)}
        for key, valid in is_valid.items():
            if not valid:
                raise InputError(f'the {key} is not valid for a packed model')

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return len(self.mean)


def are_numbers(values: object) -> bool:
    """Whether `values` is a list of one or more numbers of a sensible size."""
    return isinstance(values, list) and len(values) > 0 and all(
        type(value) in (int, float) and abs(value) < 1e6 for value in values)


def tensor_table(encodings: dict[str, str], shapes: dict) -> tuple[list[TableRow], int]:
    """The header's table of the tensors in {name: encoding}, and the length of the payload."""
    rows, offset = [], 0
    for name in sorted(encodings):
        rows.append([name, encodings[name], list(shapes[name]), offset])
        offset += encoded_size(encodings[name], shapes[name])
    return rows, offset


def write(path: str | PathLike, description: Description, tensors: dict[str, Tensor | Bits],
          half: bool = False, overwrite: bool = False) -> list[TableRow]:
    """Write the packed model atomically and return its table.

    tensors: {name: float32 tensor or Bits}, as pack returns them. half: real tensors in float16,
    except alpha, beta and those that float16 cannot hold. Raises InputError for a path that exists,
    unless `overwrite`, and where the file cannot be written.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise InputError(f'{path} exists already: give another name, or overwrite it')
    if not path.parent.is_dir():
        raise InputError(f'there is no folder {path.parent} to write {path.name} to')
    encodings = {name: choose_encoding(name, tensor, half) for name, tensor in tensors.items()}
    rows, _ = tensor_table(encodings, {name: tensor.shape for name, tensor in tensors.items()})
    header = json.dumps(asdict(description) | {'tensors': rows}, separators=(',', ':')).encode()
    payload = b''.join(encode(tensors[name], encoding) for name, encoding, *_ in rows)
    data = PREFIX.pack(MAGIC, VERSION, len(header)) + header + payload
    data += hashlib.sha256(data).digest()
    with naming(str(path)):
        write_atomically(path, lambda temporary: temporary.write_bytes(data))
    return rows


def is_packed(path: str | PathLike) -> bool:
    """Whether there is a file at path that begins with the magic number of a packed model."""
    path = Path(path)
    with naming(str(path)):
        if not path.is_file():
            return False
        with open(path, 'rb') as file:
            return file.read(len(MAGIC)) == MAGIC


def read(path: str | PathLike, build: Callable[..., nn.Module] = models.build
         ) -> tuple[Description, nn.Module, dict[str, Tensor | Bits]]:
    """The description, the network on the meta device, and {name: float32 tensor or Bits}.

    build(model_def, nClasses, channels, inpsize, signLayers) makes networks that are not in the
    registry of models, and raises InputError for an unknown model_def. No code in the file is run,
    and the memory needed is that of the architecture and the file. Raises InputError for any file
    but a complete packed model.
    """
    path = Path(path)
    check_file(path, 'packed model')
    with naming(str(path)):
        data = memoryview(path.read_bytes())
    try:
        header, payload = split_file(data)
        rows = header.pop('tensors')
        description = Description(**header)
        network = build_on_meta(description, build)
        expected, length = expected_table(rows, network)
        if rows != expected or length != len(payload):
            raise InputError('its tensors are not those of its architecture')
    except InputError as error:
        raise InputError(f'{path} is not a packed model that can be read: {error}') from None
    tensors = {}
    for name, encoding, shape, offset in expected:
        end = offset + encoded_size(encoding, shape)
        tensors[name] = decode(payload[offset:end], encoding, shape)
    check_numbers({name: tensor for name, tensor in tensors.items()
                   if not isinstance(tensor, Bits)}, path)
    return description, network, tensors


def split_file(data: memoryview) -> tuple[dict, memoryview]:
    """The header, with the right keys, and the payload of the bytes of a file."""
    if data[:len(ZIP_MAGIC)] == ZIP_MAGIC:
        raise InputError('it looks like a checkpoint, which --resume takes')
    if len(data) < PREFIX.size + CHECKSUM_BYTES:
        raise InputError('it is truncated or not a packed model')
    magic, version, length = PREFIX.unpack(data[:PREFIX.size])
    if magic != MAGIC:
        raise InputError('wrong magic number')
    if version != VERSION:
        raise InputError(f'it has version {version} of the format, and this program reads '
                         f'version {VERSION}')
    if length > min(MAX_HEADER_BYTES, len(data) - PREFIX.size - CHECKSUM_BYTES):
        raise InputError('it is truncated or damaged')
    content, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if hashlib.sha256(content).digest() != checksum:
        raise InputError('it is truncated or damaged (wrong checksum)')
    end = PREFIX.size + length
    try:
        header = json.loads(bytes(content[PREFIX.size:end]))
    except (ValueError, RecursionError):
        raise InputError('its header is not JSON') from None
    keys = {*Description.__dataclass_fields__, 'tensors'}
    if not isinstance(header, dict) or header.keys() != keys:
        raise InputError(f'its header must have the keys {", ".join(sorted(keys))}')
    return header, content[end:]


def build_on_meta(description: Description,
                  build: Callable[..., nn.Module] = models.build) -> nn.Module:
    """The described network on the meta device: it has shapes and no numbers."""
    try:
        with torch.device('meta'):
            return build(description.model_def, len(description.classes), description.channels,
                         description.inpsize, description.signLayers)
    except RuntimeError:    # PyTorch's for impossible shapes
        raise InputError(f'there is no {description.model_def} of this shape') from None


def expected_table(rows: object, network: nn.Module) -> tuple[list[TableRow], int]:
    """The valid table for this network with the encodings in `rows`, and its payload's length.

    `rows` come from a file and can be anything. Raises InputError for an unknown encoding.
    """
    stated = {}
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, list) and len(row) == 4 and isinstance(row[0], str):
            stated[row[0]] = row[1]
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()
              if not name.endswith('num_batches_tracked')}
    weights = {f'{name}.weight' for name, module in network.named_modules()
               if isinstance(module, nn.Conv2d)}
    encodings: dict[str, str] = {}
    for name in list(shapes):
        encodings[name] = stated.get(name, '')
        if encodings[name] == 'bits' and name in weights:
            for scale in 'alpha', 'beta':
                scale = f'{name.removesuffix("weight")}{scale}'
                encodings[scale], shapes[scale] = 'float32', shapes[name][:1]
        elif encodings[name] not in ('float32', 'float16'):
            raise InputError(f'it has no {name} in a known encoding')
    return tensor_table(encodings, shapes)


def encode(tensor: Tensor | Bits, encoding: str) -> bytes:
    """The bytes of a tensor in the payload."""
    if isinstance(tensor, Bits):
        octets = tensor.words.numpy().astype('<i8').view(np.uint8)
        bits = np.unpackbits(octets, axis=-1, count=tensor.shape[1], bitorder='little')
        return np.packbits(bits, bitorder='little').tobytes()
    return tensor.numpy().astype(NUMPY_TYPES[encoding]).tobytes()


def decode(data: bytes | memoryview, encoding: str, shape: list[int]) -> Tensor | Bits:
    """The inverse of encode: a float32 tensor of this shape, or Bits."""
    if encoding != 'bits':
        values = np.frombuffer(data, NUMPY_TYPES[encoding])
        return torch.from_numpy(values.astype(np.float32).reshape(shape))
    out, channels, *window = shape
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=math.prod(shape), bitorder='little')
    bits = np.pad(bits.reshape(-1, channels), ((0, 0), (0, -channels % 64)))
    words = np.packbits(bits, axis=1, bitorder='little').view('<i8').astype(np.int64, copy=False)
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
