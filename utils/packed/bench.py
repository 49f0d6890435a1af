"""The case `packed` of utils.bench: packed networks and their convolutions against float32, on the same inputs."""
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import models
from models.blocks import Sign
from utils import binarize
from utils.measure import fresh, interleave, peak_megabytes
from utils.packed import format, network, ops
from utils.packed.profiling import profile

NETWORKS = [('sketchanetfbin', 2, 7), ('resnetfbin18', 2, 100)]     # name, binStart, binEnd
CLASSES = 250
BATCHES = 1, 16


class Pair(NamedTuple):
    name: str
    shape: tuple        # of an image
    model: nn.Module    # the float32 network, its two-valued weights plain tensors
    path: Path          # the same one packed


def pair(name, binStart, binEnd, channels, folder):
    """The Pair of an architecture, initialized at random."""
    torch.manual_seed(0)
    model = models.build(name, CLASSES, channels)
    size = models.default_inpsize(name)
    with torch.no_grad():
        for norm in (layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)):
            norm.momentum = None
        model.train()(torch.randn(4, channels, size, size))     # BatchNorm statistics of these inputs: signs that vary
    binarize.wrap(model.eval(), binStart, binEnd)
    path = Path(folder) / f'{name}.dab'
    description = format.Description(name, None, [str(label) for label in range(CLASSES)], size, channels * [0.0],
                                     channels * [1.0], 'tuberlin', False)
    format.write(path, description, network.pack(model))
    for _, conv in binarize.binarized(model):
        parametrize.remove_parametrizations(conv, 'weight')
    return Pair(name, (channels, size, size), model.requires_grad_(False), path)


def read(path):
    return network.load(path, models.build, Sign)[1]


def row(case, batch, threads, times):
    """Print the line of a case; returns its JSON object."""
    float_s, packed_s = map(statistics.median, times)
    low, _, high = statistics.quantiles([a / b for a, b in zip(*times)], n=4)
    print(f'{case:52} {batch:5} {threads:7} {float_s * 1e3:10.3f} {packed_s * 1e3:10.3f} {float_s / packed_s:8.2f}   '
          f'{low:.2f} – {high:.2f}', flush=True)
    return {'case': case, 'batch': batch, 'threads': threads, 'float_s': float_s, 'packed_s': packed_s,
            'speedup': float_s / packed_s}


def header(title):
    print(f'\n{title}\n{"case":52} {"batch":>5} {"threads":>7} {"float ms":>10} {"packed ms":>10} {"speed-up":>8}   '
          'quartiles')


def inputs(packed, sample):
    """{name of a BinaryUnit: its input} in a run on the sample."""
    found = {}
    hooks = [unit.register_forward_pre_hook(lambda _, args, name=name: found.setdefault(name, args[0]))
             for name, unit in packed.named_modules() if isinstance(unit, network.BinaryUnit)]
    packed(sample)
    for hook in hooks:
        hook.remove()
    return found


def layers(model, packed, sample):
    """[(title, unit, its input, the same convolution in float32)] of the different layers larger than 1×1."""
    found = {}
    for name, x in inputs(packed, sample).items():
        unit, conv = packed.get_submodule(name), model.get_submodule(name)
        if unit.kernel_size != (1, 1) and x.shape[2:] != unit.kernel_size:
            title = f'{unit.channels}→{len(unit.alpha)} {unit.kernel_size[0]}×{unit.kernel_size[1]}'
            title += f' at {x.shape[2]}×{x.shape[3]}' + (f' /{unit.stride[0]}' if unit.stride[0] > 1 else '')
            found.setdefault(title, (name, unit, x, conv))
    return [(f'{title} ({name})', *rest) for title, (name, *rest) in found.items()]


def repeated(function, seconds=0.005):
    """(function called as often as fills so much time, how often that is)."""
    function()
    start = time.perf_counter()
    function()
    times = max(1, round(seconds / (time.perf_counter() - start)))

    def calls():
        for _ in range(times):
            function()
    return calls, times


def convolutions(pairs, threads, rounds):
    header('Binary convolutions, with packing of the input, against torch.nn.functional.conv2d on the same tensors;\n'
           'in every round each is repeated for 5 ms')
    rows = []
    for name, shape, model, path in pairs:
        packed = read(path)
        for batch in BATCHES:
            for title, unit, x, conv in layers(model, packed, torch.randn(batch, *shape)):
                real_x, x = x.contiguous(), network.channels_last(x)    # as in either network
                for number in threads:
                    torch.set_num_threads(number)
                    real, real_times = repeated(lambda: F.conv2d(real_x, conv.weight, None, conv.stride, conv.padding))
                    ours, our_times = repeated(lambda: unit(x))
                    times = interleave(real, ours, rounds)
                    rows.append(row(f'conv {name} {title}', batch, number, [
                        [seconds / calls for seconds in kind]
                        for kind, calls in zip(times, (real_times, our_times))]))
    for batch in BATCHES:
        for number in threads:
            speedups = [row['speedup'] for row in rows if (row['batch'], row['threads']) == (batch, number)] or [1]
            print(f'batch {batch}, {number} threads: geometric mean {statistics.geometric_mean(speedups):.2f}, '
                  f'least {min(speedups):.2f}')
    return rows


def whole(pairs, threads, rounds):
    header('Whole networks, image in to classes out')
    rows = []
    for name, shape, model, path in pairs:
        packed = read(path)
        for batch in BATCHES:
            images = torch.randn(batch, *shape)
            for number in threads:
                torch.set_num_threads(number)
                rows.append(row(f'network {name}', batch, number,
                                interleave(lambda: model(images), lambda: packed(images), rounds)))
    return rows


def resident(load, path, name, shape):
    """Megabytes of peak resident memory before (PyTorch and oneDNN loaded) and after three inferences of one image."""
    torch.set_num_threads(1)
    F.conv2d(torch.zeros(2, 16, 16, 16), torch.zeros(16, 16, 5, 5))
    ops.load()
    with torch.device('meta'):
        nn.init.kaiming_normal_(nn.Conv2d(1, 1, 1).weight)
    before = peak_megabytes()
    with torch.no_grad():
        model, image = load(path, name, shape[0]), torch.randn(1, *shape)
        for _ in range(3):
            model(image)
    return before, peak_megabytes()


def load_float(path, name, channels):
    with torch.device('meta'):
        model = models.build(name, CLASSES, channels)
    model.load_state_dict(torch.load(path, weights_only=True), assign=True)
    return model.eval()


def load_packed(path, name, channels):
    return read(path)


def memory(pairs, processes=5):
    print(f'\nPeak resident memory, MB, of a fresh process that reads the network and classifies one image: medians of '
          f'{processes} processes,\nand the range of the increase over PyTorch and the kernel alone\n'
          f'{"network":20} {"alone":>7} {"float32":>8} {"packed":>7}   increase: {"float32":>20} {"packed":>20} '
          f'{"ratio":>6}')
    for name, shape, model, path in pairs:
        state = path.with_suffix('.pth')
        torch.save(model.state_dict(), state)
        kinds = []
        for load, file in (load_float, state), (load_packed, path):
            found = [fresh(resident, load, file, name, shape) for _ in range(processes)]
            increases = [end - start for start, end in found]
            kinds.append((*map(statistics.median, (*zip(*found), increases)), min(increases), max(increases)))
        (alone, real_peak, real, *_), (_, packed_peak, packed, *_) = kinds
        spread = ''.join(f'{middle:8.1f} ({low:4.1f}–{high:4.1f})' for *_, middle, low, high in kinds)
        print(f'{name:20} {alone:7.0f} {real_peak:8.0f} {packed_peak:7.0f}             {spread} {packed / real:6.3f}',
              flush=True)


@torch.no_grad()
def bench(options):
    """All tables; returns a list of {case, batch, threads, float_s, packed_s, speedup}."""
    print(f'instructions: {", ".join(ops.instruction_sets())}')
    chosen = [(name, options.binStart, options.binEnd) for name in options.model_def or ()] or NETWORKS
    with tempfile.TemporaryDirectory() as folder:
        pairs = [pair(*case, options.channels, folder) for case in chosen]
        rows = convolutions(pairs, options.threads, options.rounds)
        rows += whole(pairs, options.threads, options.rounds)
        memory(pairs)
        profile({name: (read(path), torch.randn(1, *shape)) for name, shape, _, path in pairs}, options.rounds)
    return rows
