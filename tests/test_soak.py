"""Mutated files give an InputError or load: a few of them here, thousands with -m soak.

The marked tests print how many files loaded and how many were refused (with pytest's -s).
"""
import contextlib
import copy
import hashlib
import io
import json
import math
import random
import struct
import time
import traceback
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch import nn

import main
import models
from models.blocks import Sign
from utils import binarize, experiment, packed
from utils.bench.timing import peak_megabytes
from utils.packed import format
from utils.source import checkpoint_source, packed_source, stored_network
from utils.system.errors import InputError

SECONDS = 10        # that no file may take
MEGABYTES = 500     # nor all together

# JSON texts; @ is the text that they replace.
JSON = [
    'null', 'true', 'false', '0', '1', '-1', '2', '3', '5000', '1.5', '-0.0', 'NaN', 'Infinity',
    '-Infinity', '1e999', '-1e999', '1e308', '9' * 30, '9' * 5000, '18446744073709551616', '""',
    '"x"', r'"\u0000"', r'"a\nb"', r'"\ud800"', '"١"', '"ﬀ\u202e🙂"', '"2"', '"2-5,7"', '"7-2"',
    '"1-999"', '"0"', '"None"', '"bits"', '"float16"', '"float64"', '"nin"', '"sketchanetfbin"',
    '"densenet"', '"vgg"', '"cifar10"', '"doodles"', '[]', '{}', '[[]]', '[null]', '[@]', '[@,@]',
    '{"a":@}', '[1,2]', '[0.5]', '[1e999]', '[NaN]', '["a","b","c"]', r'["\u0000","a\nb","\ud800"]',
    '[1,"x",null,[],{}]', '["x","bits",[1],0]', '@,@', '@ @', '"', '[' * 50 + ']' * 50,
    '[' * 20_000 + ']' * 20_000, '[' * 20_000, '{"a":' * 300 + '1' + '}' * 300,
    '[' + ','.join(['"c"'] * 20_000) + ']', '[' + ','.join(['0.5'] * 3000) + ']']

# Python values of every type that a checkpoint can hold.
VALUES = [
    None, True, False, 0, 1, -1, 3, 10 ** 9, 10 ** 30, 0.5, -1.5, math.nan, math.inf, 1e308, '',
    'x', '\0', 'a\nb', '\ud800', '١', '2-5', '7-2', 'nin', 'dab', 'cifar10', '/', '../x',
    'bfloat16', b'x', (), (1, 2), [], [1], ['a', 'b', 'c'], [[]], {}, {'a': 1}, {1: 2},
    set(),
    torch.zeros(()),
    torch.zeros(3),
    torch.zeros(2, 2, 2, 2),
    torch.full((2, ), math.nan),
    torch.zeros(3, dtype=torch.int64),
    torch.zeros(5056, dtype=torch.uint8),
    torch.zeros(0),
    torch.zeros(3, dtype=torch.complex64),
    torch.Size([1]), torch.float16]


def tiny(nClasses, channels, inpsize, signLayers=''):
    """Two convolutions, the second with binarized inputs."""
    return nn.Sequential(nn.Conv2d(channels, 5, 3), nn.BatchNorm2d(5), Sign(),
                         nn.Conv2d(5, 7, (3, 2), bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(7, nClasses), nn.LogSoftmax(1))


@pytest.fixture(autouse=True, scope='module')
def registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models._variants, 'tiny', models.Variant(tiny, 32, 8, {'signLayers': '2'},
                                                               '2'))
        yield


# Packed models

def paths(value, path=()):
    """The path of every value in nested dicts and lists, the outermost included."""
    yield path
    items = value.items() if isinstance(
        value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, inner in items:
        yield from paths(inner, (*path, key))


def at(value, path):
    for key in path:
        value = value[key]
    return value


def replaced(value, path, other):
    """A copy in which `other` is at the path."""
    if not path:
        return other
    value = copy.copy(value)
    if isinstance(value, tuple):
        value = list(value)
    value[path[0]] = replaced(value[path[0]], path[1:], other)
    return value


def sealed(header, payload):
    """A file with the right length of the header and the right checksum."""
    data = struct.pack('<8sII', format.MAGIC, format.VERSION, len(header)) + header + payload
    return data + hashlib.sha256(data).digest()


def packed_mutants(whole, count, generator):
    """`count` changed packed models: mostly their headers, under right checksums."""
    length, = struct.unpack('<I', whole[12:16])
    header, payload = json.loads(whole[16:16 + length]), whole[16 + length:-32]
    places = list(paths(header))
    every = [(path, text) for path in places for text in JSON]
    generator.shuffle(every)
    for number in range(count):
        kind = generator.choice(['value'] * 5 + ['values', 'key', 'bytes', 'payload', 'damaged'])
        text = json.dumps(header)
        if kind in ('value', 'values'):
            mutated = header
            chosen = [every[number %
                            len(every)]] if kind == 'value' else generator.choices(every, k=3)
            for index, (path, _) in enumerate(chosen):
                try:
                    mutated = replaced(mutated, path, f'@{index}@')
                except (KeyError, IndexError, TypeError):   # inside of what has been replaced
                    continue
            text = json.dumps(mutated)
            for index, (path, other) in enumerate(chosen):
                text = text.replace(f'"@{index}@"', other.replace('@', json.dumps(at(header,
                                                                                     path))))
        elif kind == 'key':
            path = generator.choice([path for path in places if path and isinstance(path[-1], str)])
            key, other = json.dumps(path[-1]), generator.choice(JSON).replace('@', 'null')
            text = generator.choice([
                text.replace('{', f'{{{key}:{other},', 1), f'{text[:-1]},{key}:{other}}}',
                text.replace(key, '"other"'),
                text.replace(key, '""'),
                text.replace(f'{key}:', f'{other}:')])
        content = text.encode('utf-8', 'surrogatepass')
        if kind == 'bytes':
            content = scrambled(content, generator)
        elif kind == 'payload':
            yield sealed(content, scrambled(payload, generator))
            continue
        elif kind == 'damaged':
            yield scrambled(whole, generator)
            continue
        yield sealed(content, payload)


def scrambled(data, generator):
    """The bytes with some of them changed, cut out, doubled, or with an end missing."""
    data = bytearray(data)
    for _ in range(generator.randint(1, 4)):
        start = generator.randrange(len(data) + 1)
        end = min(len(data), start + generator.choice([1, 1, 1, 4, 100]))
        change = generator.choice(['flip', 'random', 'cut', 'double', 'truncate'])
        if change == 'flip' and start < end:
            data[start] ^= 1 << generator.randrange(8)
        elif change == 'random':
            data[start:end] = generator.randbytes(end - start)
        elif change == 'cut':
            del data[start:end]
        elif change == 'double':
            data[start:start] = data[start:end]
        elif change == 'truncate' and generator.random() < 0.3:
            del data[start:]
    return bytes(data)


@pytest.fixture(scope='module', params=[('tiny', 2, 32), ('sketchanetfbin', 7, 81)],
                ids=lambda param: param[0])
def packed_file(request, tmp_path_factory):
    name, binEnd, side = request.param
    path = tmp_path_factory.mktemp('packed') / 'model.dab'
    torch.manual_seed(0)
    network = binarize.wrap(models.build(name, 3, 1, side), 2, binEnd, 'xnor').eval()
    description = format.Description(name, None, ['ja', 'nein', 'où'], side, [0.06], [0.93],
                                     'doodles', False)
    packed.write(path, description, packed.pack(network))
    experiment.load(path).network(torch.zeros(
        1, 1, side, side))  # builds the kernel, which takes longer than any file
    return path


def soak(function, mutants, path):
    """Call function() with each mutant at path: an InputError or nothing, fast, in little memory.

    mutants: pairs (what was changed, bytes or what torch.save takes).
    """
    results, failures, before = Counter(), {}, peak_megabytes()
    for what, mutant in mutants:
        path.write_bytes(mutant) if isinstance(mutant, bytes) else torch.save(mutant, path)
        start = time.monotonic()
        try:
            function()
            results['loaded'] += 1
        except InputError as error:
            assert str(error).strip()
            results['refused'] += 1
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT)][-1]
            place = f'{Path(ours.filename).relative_to(ROOT)}:{ours.lineno} {ours.name}'
            kind = f'{type(error).__name__} in {place}'
            failures.setdefault(kind, []).append(f'{what}: {str(error)[:80]}')
        if time.monotonic() - start > SECONDS:
            failures.setdefault('slow', []).append(what)
    print(dict(results), f'{peak_megabytes() - before:.0f} MB')
    assert not failures, '\n'.join(f'{len(all_of)} × {kind}, as of {all_of[0]}'
                                   for kind, all_of in failures.items())
    assert peak_megabytes() < before + MEGABYTES and results['loaded'] and results['refused']


def soak_packed(whole, folder, count):
    path = folder / 'mutant.dab'

    def load():
        source = packed_source(path)
        network = stored_network(source)
        side = source.flags['inpsize']
        if side <= 256:
            with torch.no_grad():
                assert network(torch.zeros(1, source.channels, side,
                                           side)).shape == (1, len(source.classes))
    soak(load, enumerate(packed_mutants(whole, count, random.Random(0))), path)


def test_mutated_packed_models(packed_file, tmp_path):
    soak_packed(packed_file.read_bytes(), tmp_path, 50)


@pytest.mark.soak
def test_10000_mutated_packed_models_of_each(packed_file, tmp_path):
    soak_packed(packed_file.read_bytes(), tmp_path, 10_000)


# Checkpoints

TRAIN = ['--dataset=tuberlin', '--workers=0', '--batch-size=12', '--no-compile']


@pytest.fixture(scope='module')
def checkpoint_file(sketch_folder, tmp_path_factory):
    logs = tmp_path_factory.mktemp('trained')
    main.main([
        *TRAIN, '--model_def=tiny', '--inpsize=32', '--binaryWeight', '--binEnd=2', '--epochs=1',
        '--name=run', f'--data_dir={sketch_folder}', f'--logdir={logs}'])
    return logs / 'run/last.pth.tar'


def checkpoint_mutants(whole, checkpoint, count, generator):
    """`count` pairs: what was changed, and a checkpoint or its file with that change."""
    every = [(path, value) for path in paths(checkpoint) for value in VALUES]
    generator.shuffle(every)
    for number in range(count):
        kind = generator.choice(['value'] * 6 + ['missing', 'file'])
        path, value = every[number % len(every)]
        if kind == 'file':
            yield f'file {number}', scrambled(whole, generator)
        elif kind == 'missing' and path and isinstance(at(checkpoint, path[:-1]), dict):
            holder = at(checkpoint, path[:-1])
            yield f'{path} missing', replaced(
                checkpoint, path[:-1], {key: holder[key] for key in holder if key != path[-1]})
        else:
            yield f'{path} = {value!r:.40}', replaced(checkpoint, path, value)


def soak_checkpoints(file, folder, count, function):
    checkpoint = torch.load(file, weights_only=True)
    soak(function, checkpoint_mutants(file.read_bytes(), checkpoint, count, random.Random(1)),
         folder / 'mutant.pth.tar')


def soak_loading(file, folder, count):
    def load():
        source = checkpoint_source(folder / 'mutant.pth.tar')
        side = source.flags['inpsize']
        with torch.no_grad():
            images = torch.zeros(1, source.channels, side, side)
            assert stored_network(source).eval()(images).shape == (1, len(source.classes))
    soak_checkpoints(file, folder, count, load)


def soak_resuming(file, folder, count, data_dir):
    def resume():
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main.main([
                    *TRAIN, f'--resume={folder}/mutant.pth.tar', '--epochs=2', '--name=run',
                    '--overwrite', f'--data_dir={data_dir}', f'--logdir={folder}/logs'])
        except SystemExit as stop:
            sentences = [line for line in err.getvalue().splitlines() if 'warning: ' not in line]
            assert stop.code in (1, 2) and len(sentences) == 1 and sentences[0].startswith(
                'main.py: error: '), sentences
            raise InputError(sentences[0]) from None
    soak_checkpoints(file, folder, count, resume)




def test_mutated_checkpoints_load_or_are_refused(checkpoint_file, tmp_path):
    soak_loading(checkpoint_file, tmp_path, 100)


def test_mutated_checkpoints_resume_or_are_refused(checkpoint_file, tmp_path, sketch_folder):
    soak_resuming(checkpoint_file, tmp_path, 20, sketch_folder)


@pytest.mark.soak
def test_1000_mutated_checkpoints_load_or_are_refused(checkpoint_file, tmp_path):
    soak_loading(checkpoint_file, tmp_path, 1000)


@pytest.mark.soak
def test_1000_mutated_checkpoints_resume_or_are_refused(checkpoint_file, tmp_path, sketch_folder):
    soak_resuming(checkpoint_file, tmp_path, 1000, sketch_folder)
