"""The benchmark `data`: --images training sketches, in batches against one by one."""
import argparse
from functools import partial

import torch
from torch.utils.data import DataLoader

import datasets
from datasets.resident import DeviceLoader
from utils.devices import choose, moved
from utils.errors import naming

from .timing import compare, peak_megabytes, print_header

BATCH = 32


def bench(options: argparse.Namespace) -> list[dict]:
    """torchvision's transforms in one process against --dataOn=device, and against two workers."""
    with naming('--data_dir'):
        plain, ours = (datasets.load('tuberlin', options.data_dir, options.inpsize,
                                     plain=plain).train for plain in (True, False))
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


def read(loader, device: torch.device):
    """One epoch, until the last image is on the device."""
    for images, _ in loader:
        images = moved(images, device)
    images[-1, 0, 0, 0].item()
