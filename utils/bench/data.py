"""The benchmark `data`: the fused transform of cached training sketches against the plain one."""
import argparse

import torch

import datasets
from utils.errors import naming

from .timing import compare


def bench(options: argparse.Namespace) -> list[dict]:
    """Reading --images training sketches in one process."""
    with naming('--data_dir'):
        plain, ours = (datasets.load('tuberlin', options.data_dir, options.inpsize,
                                     plain=plain).train for plain in (True, False))
    generator = torch.Generator().manual_seed(0)
    indices = torch.randperm(len(plain), generator=generator)[:options.images].tolist()

    def reader(images):
        return lambda: [images[index] for index in indices]

    torch.set_num_threads(1)    # as in a loading worker
    row = compare(f'data {len(indices)} sketches at {options.inpsize}, one process', reader(plain),
                  reader(ours), options.rounds)
    before, after = (len(indices) / row[key] for key in ('baseline_s', 'ours_s'))
    print(f'  {before:.0f} -> {after:.0f} images/s')
    return [row]
