"""The packed model (utils/packed/format.py): what is written is read, and everything else is
refused in a sentence."""
import hashlib
import itertools
import json
import os
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import models
from utils import binarize
from utils.export import size_table
from utils.packed import format, network, ops
from utils.system.errors import InputError

DESCRIPTION = dict(model_def='tiny', signLayers='2', classes=['ja', 'nein', 'où'], inpsize=8,
                   mean=[0.5, 0.25],
                   std=[0.5, 2], dataset='doodles', tenCrop=True)


def build(model_def, nClasses, channels, inpsize, signLayers):
    """A network of two convolutions, the second of which has binarized weights (7, 5, 3, 2) in the
    files here."""
    if model_def != 'tiny':
        raise InputError(f'there is no model {model_def}')
    return nn.Sequential(nn.Conv2d(channels, 5, 3), nn.BatchNorm2d(5),
                         nn.Conv2d(5, 7, (3, 2), bias=False),
                         nn.Linear(7, nClasses))


def tiny():
    """(mask, {name: tensor}) of that network with random numbers."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(tensor.shape, generator=generator)
               for name,
               tensor in build('tiny', 3, 2, 8, None).state_dict().items()
               if 'num_batches' not in name}
    tensors['1.running_var'].abs_()
    mask = tensors.pop('2.weight') > 0
    tensors |= {'2.weight': format.Bits(ops.pack_mask(mask), tuple(mask.shape)),
                '2.alpha': torch.randn(7, generator=generator),
                '2.beta': torch.randn(7, generator=generator)}
    return mask, tensors


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The bytes of a packed model."""
    path = tmp_path_factory.mktemp('packed') / 'tiny.dab'
    format.write(path, format.Description(**DESCRIPTION), tiny()[1])
    return path.read_bytes()


@pytest.mark.parametrize('name', ['0.weight', '2.alpha', '2.beta', '1.running_var'])
@pytest.mark.parametrize('half', [False, True])
def test_numbers_that_are_not_finite(tmp_path, name, half):
    tensors = tiny()[1]
    tensors[name].view(-1)[-1] = torch.nan
    format.write(tmp_path / 'nan.dab', format.Description(**DESCRIPTION), tensors, half)
    with pytest.raises(InputError, match=f'nan.dab has numbers that are not finite, in {name}'):
        format.read(tmp_path / 'nan.dab', build)


@pytest.fixture(scope='module')
def read(tmp_path_factory):
    """Reads bytes as a file."""
    path = tmp_path_factory.mktemp('read') / 'read.dab'

    def run(data):
        path.write_bytes(data)
        return format.read(path, build)
    return run


def refused(read, data, part=''):
    with pytest.raises(InputError) as error:
        read(data)
    sentence = str(error.value)
    assert 'read.dab' in sentence and part in sentence and '\n' not in sentence
    return sentence


def sealed(header, payload, version=1):
    """A file with a right checksum, whatever is in it."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    data = format.MAGIC + struct.pack('<II', version, len(header)) + header + payload
    return data + hashlib.sha256(data).digest()


def opened(data):
    length, = struct.unpack('<I', data[12:16])
    return json.loads(data[16:16 + length]), data[16 + length:-32]


def same(tensors, others):
    def values(tensor):
        return tensor.words if isinstance(tensor, format.Bits) else tensor
    return tensors.keys() == others.keys() and all(
        values(tensors[name]).equal(values(others[name]))
        and tensors[name].shape == others[name].shape
        for name in tensors)


def test_round_trip(whole, read):
    description, skeleton, tensors = read(whole)
    assert description == format.Description(**DESCRIPTION) and description.channels == 2
    assert same(tensors, tiny()[1])
    assert all(tensor.is_meta for tensor in skeleton.state_dict().values())


@pytest.mark.parametrize('channels', [1, 3, 8, 24, 63, 64, 65, 100, 128, 508])
def test_bits_of_any_number_of_channels(channels):
    mask = torch.rand(5, channels, 2, 3) < 0.4
    bits = format.Bits(ops.pack_mask(mask), tuple(mask.shape))
    data = format.encode(bits, 'bits')
    assert len(data) == -(-mask.numel() // 8)
    again = format.decode(data, 'bits', list(mask.shape))
    assert again.words.equal(bits.words) and again.shape == bits.shape


def test_the_file_is_what_its_documentation_says(whole):
    mask, tensors = tiny()
    assert whole[:12] == bytes.fromhex('89 44 41 42 0D 0A 1A 0A 01 00 00 00')
    assert whole[-32:] == hashlib.sha256(whole[:-32]).digest()
    header, payload = opened(whole)
    rows = header.pop('tensors')
    assert header == DESCRIPTION and [row[0] for row in rows] == sorted(tensors)
    end = 0
    for name, kind, shape, offset in rows:
        assert offset == end
        if kind == 'bits':
            end += -(-mask.numel() // 8)
            places = itertools.product(*map(range, (7, 3, 2, 5)))
            for number, (o, y, x, c) in enumerate(places):
                assert payload[offset + number // 8] >> number % 8 & 1 == mask[o, c, y, x]
        else:
            count = int(np.prod(shape))
            end += 4 * count
            assert kind == 'float32' and list(tensors[name].shape) == shape
            assert list(struct.unpack(f'<{count}f',
                                      payload[offset:end])) == tensors[name].flatten().tolist()
    assert end == len(payload)


def test_half(tmp_path):
    _, tensors = tiny()
    tensors['0.weight'][0, 0, 0, 0] = 1e5   # beyond float16
    path = tmp_path / 'half.dab'
    kinds = {name: kind
             for name, kind,
             *_ in format.write(path, format.Description(**DESCRIPTION), tensors, half=True)}
    assert {name for name, kind in kinds.items() if kind == 'float32'} == {'0.weight', '2.alpha',
                                                                           '2.beta'}
    _, _, again = format.read(path, build)
    for name, kind in kinds.items():
        if kind == 'float16':
            assert again[name].dtype == torch.float32
            assert again[name].equal(tensors[name].half().float())
    assert again['0.weight'].equal(tensors['0.weight'])


def test_every_damaged_byte_is_found(whole, read):
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        refused(read, bytes(damaged))


def test_every_truncation_is_found(whole, read):
    for length in range(len(whole)):
        refused(read, whole[:length])
    refused(read, whole + b'\0')


def test_versions_and_other_files(whole, read):
    assert 'version 2' in refused(read, whole[:8] + b'\2' + whole[9:])
    refused(read, b'PNG' + whole, 'wrong magic number')
    refused(read, b'PK\3\4' + whole, 'checkpoint, which --resume takes')
    refused(read, b'', 'truncated')


def changed(whole, **keys):
    header, payload = opened(whole)
    return sealed(header | keys, payload)


@pytest.mark.parametrize('keys, part', [
    ({'model_def': 'sketchanetgbin'}, 'there is no model sketchanetgbin'),
    ({'model_def': ['tiny']}, 'model_def'),
    ({'signLayers': '1-99999999999'}, 'signLayers'), ({'signLayers': 2}, 'signLayers'),
    ({'classes': []}, 'classes'),
    ({'classes': ['a', 'b', 3]}, 'classes'), ({'classes': ['a', 'b', 'a']}, 'classes'),
    ({'classes': ['a', 'b']}, 'architecture'), ({'inpsize': 0}, 'inpsize'),
    ({'inpsize': True}, 'inpsize'), ({'inpsize': 10 ** 9}, 'inpsize'), ({'mean': [0.5]}, 'std'),
    ({'std': [1, 0]}, 'std'),
    ({'mean': [0.5, float('nan')]}, 'mean'), ({'std': [1, float('inf')]}, 'std'),
    ({'dataset': None}, 'dataset'),
    ({'mean': [0, 0, 0], 'std': [1, 1, 1]}, 'architecture'), ({'tenCrop': 'yes'}, 'tenCrop'),
    ({'more': 1}, 'keys'),
    ({'tensors': {}}, 'encoding'), ({'tensors': [[['x'], 1, 2, 3], 'y']}, 'encoding')])
def test_a_header_that_is_wrong(whole, read, keys, part):
    refused(read, changed(whole, **keys), part)


@pytest.mark.parametrize('header',
                         [b'', b'{', b'[]', b'3', b'"\xff"', b'[' * 100_000, b'{"model_def": 1}'])
def test_a_header_that_is_none(read, header):
    refused(read, sealed(header, b''), 'header')


def test_tables_that_do_not_fit(whole, read):
    header, payload = opened(whole)
    rows = header['tensors']
    for number, (name, kind, shape, offset) in enumerate(rows):
        for row in ([name, 'bits' if kind != 'bits' else 'float32', shape, offset],
                    [name, kind, shape, offset + 1],
                    [name, kind, [2 ** 60], offset], [name, kind, [-1, *shape], offset],
                    [name, kind, shape, -offset - 4],
                    [name + 'x', kind, shape, offset], [name, 'float64', shape, offset],
                    [name, [], shape, offset]):
            refused(read, changed(whole, tensors=rows[:number] + [row] + rows[number + 1:]))
        refused(read, changed(whole, tensors=rows[:number] + rows[number + 1:]))
    for tables in rows[::-1], rows + rows[:1], rows + [['more', 'float32', [1], 0]]:
        refused(read, changed(whole, tensors=tables))
    for other in payload[:-1], payload + b'\0', b'':
        refused(read, sealed(header, other), 'tensors')


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.binary(max_size=200), prefix=st.booleans())
def test_random_bytes(whole, read, data, prefix):
    refused(read, whole[:12] + data if prefix else data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=8)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_mutations_under_a_right_checksum(whole, read, data):
    """Whatever stands in the file: an InputError, or tensors of the right shapes."""
    header, payload = opened(whole)
    if data.draw(st.booleans()):
        content = bytearray(json.dumps(header).encode() + payload)
        split = len(content) - len(payload)
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        mutated = sealed(bytes(content[:split]), bytes(content[split:]))
    else:
        places = [(header, key) for key in header] + [(header['tensors'], i)
                                                      for i in range(len(header['tensors']))] + [
            (row, i) for row in header['tensors'] for i in range(4)]
        holder, key = data.draw(st.sampled_from(places))
        holder[key] = data.draw(json_values)
        mutated = sealed(header, payload)
    try:
        description, skeleton, tensors = read(mutated)
    except InputError as error:
        assert 'read.dab' in str(error) and '\n' not in str(error)
    else:
        assert isinstance(description, format.Description)
        assert all(tensors[name].shape == tensor.shape
                   for name, tensor in skeleton.state_dict().items()
                   if 'num_batches' not in name)


def test_an_existing_file_is_kept(tmp_path, monkeypatch):
    path = tmp_path / 'model.dab'
    path.write_bytes(b'precious')
    arguments = path, format.Description(**DESCRIPTION), tiny()[1]
    with pytest.raises(InputError, match='exists already: .* overwrite it'):
        format.write(*arguments)
    monkeypatch.setattr('utils.system.files.os.replace',
                        lambda *_: (_ for _ in ()).throw(OSError('no space left')))
    with pytest.raises(InputError, match='no space'):
        format.write(*arguments, overwrite=True)
    assert path.read_bytes() == b'precious' and list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    format.write(*arguments, overwrite=True)
    assert same(format.read(path, build)[2], arguments[2])


def test_places_that_cannot_be(tmp_path):
    with pytest.raises(InputError, match='there is no packed model'):
        format.read(tmp_path / 'no.dab', build)
    with pytest.raises(InputError, match='folder, not a packed model'):
        format.read(tmp_path, build)
    with pytest.raises(InputError, match='File name too long'):
        format.read(tmp_path / ('x' * 300), build)
    with pytest.raises(InputError, match='File name too long'):
        format.is_packed(tmp_path / ('x' * 300))
    with pytest.raises(InputError, match='there is no folder'):
        format.write(tmp_path / 'no' / 'model.dab', format.Description(**DESCRIPTION), tiny()[1])


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_a_file_without_permission(whole, tmp_path):
    path = tmp_path / 'secret.dab'
    path.write_bytes(whole)
    path.chmod(0)
    with pytest.raises(InputError, match='secret.dab: Permission denied'):
        format.read(path, build)


def test_names_of_classes_that_are_not_unicode(tmp_path):
    classes = ['ja\n', 'nein\0', os.fsdecode(b'o\xf9')]     # as a folder can be named
    path = tmp_path / 'model.dab'
    format.write(path, format.Description(**DESCRIPTION | {'classes': classes}), tiny()[1])
    assert format.read(path, build)[0].classes == classes


@pytest.mark.parametrize('name, binEnd, ratio',
                         [('resnetwbin18', 100, 28), ('sketchanetwbin', 7, 20)])
def test_sizes(tmp_path, name, binEnd, ratio):
    model = models.build(name, 250, channels=1)
    floats = 4 * sum(tensor.numel()
                     for key, tensor in model.state_dict().items() if 'num_batches' not in key)
    binarize.wrap(model, 2, binEnd, 'xnor')     # the fastest to split, and as large
    classes = [f'a class with a name of 32 letters {number:03}' for number in range(250)]
    description = format.Description(name, None, classes, models.default_inpsize(name), [0], [1],
                                     'tuberlin', True)
    path = tmp_path / 'model.dab'
    rows = format.write(path, description, network.pack(model))
    assert floats / path.stat().st_size >= ratio
    last = size_table(rows, model, path.stat().st_size).splitlines()[-1].split()
    assert last[0] == 'file' and int(last[4].replace(',', '')) == path.stat().st_size
    assert int(last[5].replace(',', '')) == floats and float(last[6]) >= ratio
