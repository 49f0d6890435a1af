"""The top of a report: what the network is, how accurate, how small and how fast."""
import math
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

import datasets
from utils import binarize, packed
from utils.record.logs import read_log
from utils.record.provenance import processor_name
from utils.source import Source
from utils.confusion import wilson_interval

from .page import Page
from .words import number

TIMED = 0.5             # seconds, for which images go through a network
IMAGES = 5, 50          # at least and at most


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
