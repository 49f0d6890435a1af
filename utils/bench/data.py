"""The benchmark `data`: --images training sketches, in batches against one by one."""
import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch.utils.data import DataLoader

import datasets
from datasets.items import DeviceLoader
from datasets.items import Transformed
from datasets.transforms import sketches
from utils.system.devices import choose, moved
from utils.system.errors import naming

from .timing import compare, peak_megabytes, print_header

BATCH = 32


def bench(options: argparse.Namespace) -> list[dict]:
    """torchvision's transforms in one process against --dataOn=device, and against two workers."""
    with naming('--data_dir'):
        images, ours = (datasets.load('tuberlin', options.data_dir, options.inpsize,
                                      plain=plain).train for plain in (True, False))
    plain = Transformed(images.images, of_torchvision(options.inpsize), seed=0)
    generator = torch.Generator().manual_seed(0)
    indices = torch.randperm(len(plain), generator=generator)[:options.images].tolist()
    device = choose(options.device)
    baseline = partial(read, DataLoader(plain, BATCH, sampler=indices), device)
    print_header()
    rows = []
    for name, loader in (('on the device', DeviceLoader(ours, BATCH, indices, device)),
                         ('2 workers', DataLoader(ours, BATCH, sampler=indices, num_workers=2))):
        row = compare(f'data {len(indices)} sketches at {options.inpsize}, {name}', baseline,
                      partial(read, loader, device), options.rounds)
        before, after = (len(indices) / row[key] for key in ('baseline_s', 'ours_s'))
        print(f'  {before:.0f} -> {after:.0f} images/s')
        rows.append(row)
    print(f'peak memory of this process, the mapped file included: {peak_megabytes():.0f} MB')
    return rows


def of_torchvision(inpsize: int) -> Callable:
    """The training transforms of TU-Berlin, one after the other."""
    from torchvision.transforms import v2
    return v2.Compose([
        *sketches(inpsize).before_crop, v2.RandomResizedCrop(inpsize), v2.RandomHorizontalFlip(),
        v2.RandomRotation(10, v2.InterpolationMode.BILINEAR), v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(*datasets.normalization('tuberlin'))])


def read(loader, device: torch.device):
    """One epoch, until the last image is on the device."""
    for images, _ in loader:
        images = moved(images, device)
    images[-1, 0, 0, 0].item()
