"""The benchmarks `step` and `flags`: a training step with Adam on fixed random images."""
import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from utils import binarize
from utils.memory_format import channels_last
from utils.processes import call_in_new_process
from utils.training.epoch import autocast

from .cases import CLASSES, Case, chosen
from .timing import compare, interleave, peak_megabytes

FLAGS: dict[str, dict] = {      # and what make_step takes for them
    '--amp=bfloat16': {'amp': 'bfloat16'},
    '--compile': {'compiled': True},
    '--channelsLast': {'memory_format': channels_last},
}


def bench(options: argparse.Namespace) -> list[dict]:
    """The binarized step against the real one, in time and in memory."""
    bandwidth = copy_bandwidth()
    rows = []
    for case in chosen(options):
        title = f'{case.name} batch {case.batch} convolutions {case.binStart}-{case.binEnd}'
        rows.append(compare(f'step {title}', make_step(case, None),
                            make_step(case, options.binSearch), options.rounds))
        weights, _ = binarize.weight_bits(case.network('exact'))
        # Forward: latent weights read and written, W~ written. Backward: two tensors read, one
        # written.
        floor = 6 * 4 * weights / bandwidth
        real, binary = (call_in_new_process(peak_memory, case, search)
                        for search in (None, options.binSearch))
        print(f'  {weights / 1e6:.1f} M binarized weights; moving them takes at least '
              f'{floor * 1e3:.1f} ms at {bandwidth / 1e9:.1f} GB/s; peak memory {real:.0f} -> '
              f'{binary:.0f} MB, ratio {binary / real:.3f}')
        rows.append({'case': f'peak MB {title}', 'baseline_s': real, 'ours_s': binary,
                     'ratio': binary / real})
    return rows


def bench_flags(options: argparse.Namespace) -> list[dict]:
    """The binarized step under each of FLAGS against the one without."""
    return [compare(f'step {case.name} batch {case.batch} {flag}',
                    make_step(case, options.binSearch),
                    make_step(case, options.binSearch, **settings), options.rounds)
            for flag, settings in FLAGS.items() for case in chosen(options)]


def make_step(case: Case, search: str | None, amp: str | None = None,
              memory_format: Callable[[Tensor], Tensor] = Tensor.contiguous,
              compiled: bool = False) -> Callable[[], None]:
    """A function that does one training step of the network that case.network(search) returns."""
    model = case.network(search).train()
    images = memory_format(case.images(case.batch))
    target = torch.arange(case.batch) % CLASSES
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    forward = torch.compile(model) if compiled else model

    def step():
        optimizer.zero_grad(set_to_none=True)
        with autocast(torch.device('cpu'), amp):
            log_probs = forward(images).float()
        F.nll_loss(log_probs, target).backward()
        optimizer.step()
    return step


def copy_bandwidth() -> float:
    """Bytes per second that a large copy reads and writes."""
    source = torch.zeros(2 ** 25)
    target = torch.zeros_like(source)
    seconds, _ = interleave(lambda: target.copy_(source), lambda: None, rounds=9)
    return 2 * source.nbytes / statistics.median(seconds)


def peak_memory(case: Case, search: str | None) -> float:
    """Megabytes of peak resident memory of this process after three training steps."""
    step = make_step(case, search)
    for _ in range(3):
        step()
    return peak_megabytes()
