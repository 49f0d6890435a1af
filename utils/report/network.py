"""The top of a report: how accurate, small and fast the network is, and how it was trained."""
import math
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

import datasets
from utils import binarize, packed
from utils.record.describe import convolution_rows
from utils.record.logs import read_log
from utils.record.describe import processor_name
from utils.source import Source
from utils.evaluate import wilson_interval

from .page import Page
from .words import number

TIMED = 0.5             # seconds, for which images go through a network
IMAGES = 5, 50          # at least and at most
SCHEDULES = {       # what becomes of the learning rate
    'decayschedular': 'divided by {decaylevel:g} every {decayinterval} epochs down to {minlr:g}',
    'cosine': 'falling as a cosine to {minlr:g} in epoch {epochs}',
    'linear': 'falling linearly to {minlr:g} in epoch {epochs}',
    'constant': 'constant',
}


def add_summary(page: Page, source: Source, model: nn.Module):
    """Sentences and tiles; the network is written to a temporary file and runs on some images."""
    flags, metrics = source.flags, source.checkpoint['metrics']
    page.text(what(source))
    images, classes = metrics['images'], len(source.classes)
    low, high = wilson_interval(round(images * metrics['top1'] / 100), images)
    crops = ', ten crops each' if flags['tenCrop'] else ''
    chosen = (', on which its epoch was chosen as the best, so a little optimistic'
              if Path(source.path).name == 'best.pth.tar' else '')
    top5 = f'; top-5 {metrics["top5"]:.1f} %' if classes > 5 else ''
    tiles = [(f'{metrics["top1"]:.1f} %', 'top-1 accuracy',
              f'95 % interval {100 * low:.1f} to {100 * high:.1f} % (Wilson) on {images:,} '
              f'validation images{crops}{chosen}{top5}; chance: '
              f'{100 / classes:.1f} %'),
             *size(source, model), speed(source, model)]
    page.tiles(tiles)


def what(source: Source) -> str:
    """One sentence."""
    flags, path = source.flags, Path(source.path)
    method = binarize.METHODS[flags['binarizer']].title
    starts = read_log(path.parent / 'history.jsonl', set())
    date = f', last started on {str(starts[-1].get("date"))[:10]}' if starts else ''
    side = flags['inpsize']
    return (f'{flags["model_def"]}, for images of {side} × {side} pixels, was trained for '
            f'{epochs(source.checkpoint["epoch"])} on {datasets.data_name(flags["dataset"])} '
            f'({len(source.classes)} classes) with {method}. Run: '
            f'{flags["name"]}{date}; checkpoint: {path.name}.')


def epochs(count: int) -> str:
    return f'{count} epoch{"s" if count != 1 else ""}'


def size(source: Source, model: nn.Module) -> list[tuple[str, str, str]]:
    """The tiles of the bits of a weight and of the file that --export=NAME.dab would write."""
    flags = source.flags
    weights, bits = binarize.weight_bits(model)
    mean, std = datasets.normalization(source.spec)
    description = packed.Description(flags['model_def'], flags['signLayers'], source.classes,
                                     flags['inpsize'], mean, std, flags['dataset'],
                                     flags['tenCrop'])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'model.dab')
        rows = packed.write(path, description, packed.pack(model))
        in_file = path.stat().st_size
    is_bits = {name.removesuffix('.weight') for name, encoding, *_ in rows if encoding == 'bits'}
    in_float32 = 4 * sum(math.prod(shape) for name, _, shape, _ in rows if not (
        name.endswith(('.alpha', '.beta')) and name.rpartition('.')[0] in is_bits))
    return [(f'{bits / weights:.2f} bits', 'a binarized weight',
             f'{weights:,} of {in_float32 // 4:,} numbers are binarized: 1 bit each, and two '
             'numbers in float32 a filter'),
            (f'{in_file / 1e6:.3g} MB', 'as a file',
             f'by --export=NAME.dab; {in_float32 / 1e6:.3g} MB in float32, '
             f'{in_float32 / in_file:.1f} times as much')]


def speed(source: Source, model: nn.Module) -> tuple[str, str, str]:
    """The tile of the time of one image, on bits where inputs are binarized."""
    image = torch.zeros(1, source.channels, source.flags['inpsize'], source.flags['inpsize'])
    floats, bits = binarize.bake(model).eval(), packed.on_bits(model)
    seconds = seconds_an_image(floats, image)
    threads = torch.get_num_threads()
    where = (f'median of single images on {threads} thread{"s" if threads > 1 else ""} of this '
             f'machine ({processor_name()})')
    if bits is model:
        return f'{number(1e3 * seconds)} ms', 'an image, in float32', where
    on_bits = seconds_an_image(bits, image)
    return (f'{number(1e3 * on_bits)} ms', 'an image, on bits',
            f'{where}; {number(1e3 * seconds)} ms in float32, {seconds / on_bits:.1f} times as '
            'long')


@torch.inference_mode()
def seconds_an_image(network: nn.Module, image: Tensor) -> float:
    """The median of some passes after one to warm up."""
    fewest, most = IMAGES
    network(image)
    times: list[float] = []
    while len(times) < fewest or (sum(times) < TIMED and len(times) < most):
        start = time.perf_counter()
        network(image)
        times.append(time.perf_counter() - start)
    return median(times)


def add_network(page: Page, source: Source, model: nn.Module):
    flags = source.flags
    method = binarize.METHODS[flags['binarizer']]
    formula = f': {method.formula}' if method.formula else ''
    page.text('Binarization gives every filter of a convolution two numbers, α and β, and replaces '
              'each of its weights by one of them, so that a weight takes 1 bit instead of 32. '
              f'This network was trained with {method.title}{formula}.')
    page.table([], facts(source, len(binarize.convolutions(model))))
    image = torch.zeros(1, source.channels, flags['inpsize'], flags['inpsize'])
    header, *rows = convolution_rows(model, image)
    with page.folded(f'Its {len(rows)} convolutions, numbered as everywhere on this page'):
        page.table(('convolution', *header[1:]), rows)
    centred = 'centred over the input channels, if there are several, and '
    page.text('The weights on this page are the latent ones that training keeps, projected as the '
              f'network does before it binarizes them: {centred if flags["centring"] else ""}'
              'clamped to ±1. n is the number of weights of a filter, K how many of them become α. '
              'Weights and errors have no unit.')


def facts(source: Source, count: int) -> list[tuple[str, str]]:
    """The rows of the table about the run; count: how many convolutions the network has."""
    flags = source.flags
    side, channels = flags['inpsize'], source.channels
    return [
        ('run', flags['name']),
        ('checkpoint', f'{source.path}, after {epochs(source.checkpoint["epoch"])}'),
        ('network', f'{flags["model_def"]}, for images of {side} × {side} pixels and '
                    f'{channels} channel{"s" if channels > 1 else ""}'),
        ('data', data(source)),
        ('binarizer', f'{flags["binarizer"]}{"" if flags["centring"] else ", not centred"}, '
                      f'convolutions {flags["binStart"]} to {min(flags["binEnd"], count)}'),
        ('training', training(flags))]


def training(flags: dict) -> str:
    """Optimizer, learning rate and what else decides the steps, as far as it is in use."""
    parts = {
        '{optimType}, learning rate {maxlr:g}': True,
        'reached after a warm-up of {warmup} epochs': flags['warmup'] > 0,
        SCHEDULES[flags['learningratescheduler']]: True,
        'batches of {batch_size}': True,
        '{accumulate} of them in a step': flags['accumulate'] > 1,
        'weight decay {weightDecay:g}': True,
        'but none of {noDecay}': flags['weightDecay'] > 0 and flags['noDecay'],
        'gradients clipped at the norm {clipGrad:g}': flags['clipGrad'] > 0,
        'label smoothing {labelSmoothing:g}': flags['labelSmoothing'] > 0,
        'crops of at least {minCrop:g} of an image': flags['minCrop'] != datasets.MIN_CROP,
        'seed {manualSeed}': True,
    }
    return ', '.join(part.format_map(flags) for part, is_used in parts.items() if is_used)


def data(source: Source) -> str:
    name = datasets.data_name(source.flags['dataset'])
    own = (f', own images normalized by mean {source.flags["mean"]} and std {source.flags["std"]}'
           if datasets.is_own(source.flags['dataset']) else '')
    return f'{name}, {len(source.classes)} classes{own}'
