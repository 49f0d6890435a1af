"""The benchmarks `step` and `flags`: a training step with Adam on fixed random images."""
import argparse
import gc
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils import binarize
from utils.devices import choose
from utils.memory_format import channels_last
from utils.processes import call_in_new_process
from utils.training.epoch import autocast

from .cases import CLASSES, Case, chosen
from .timing import CALLS, compare, interleave, kind, peak_megabytes

FLAGS: dict[str, dict] = {      # and what make_step takes for them
    '--amp=bfloat16': {'amp': 'bfloat16'},
    '--compile': {'compiled': True},
    '--channelsLast': {'memory_format': channels_last},
    '--clipGrad=1': {'clipGrad': 1.0},
}


def bench(options: argparse.Namespace) -> list[dict]:
    """The binarized step against the real one, in time and in memory."""
    device, rows = choose(options.device), []
    bandwidth = copy_bandwidth(device)
    for case in chosen(options, device):
        rows += compare_step(case, device, options.binSearch, options.rounds)
        weights, _ = binarize.weight_bits(case.network('exact', device))
        # Forward: latent weights read and written, W~ written. Backward: two tensors read, one
        # written.
        floor = 6 * 4 * weights / bandwidth
        real, binary = (in_fresh_memory(peak_memory, case, device, search)
                        for search in (None, options.binSearch))
        print(f'  {weights / 1e6:.1f} M binarized weights; moving them takes at least '
              f'{floor * 1e3:.2f} ms at {bandwidth / 1e9:.1f} GB/s; peak memory {real:.0f} -> '
              f'{binary:.0f} MB, ratio {binary / real:.3f}')
        rows.append({'case': f'peak MB {case}', 'baseline_s': real, 'ours_s': binary,
                     'ratio': binary / real})
    return rows


def bench_flags(options: argparse.Namespace) -> list[dict]:
    """The binarized step under each of FLAGS against the one without."""
    device = choose(options.device)
    rows = [compare_flag(case, device, flag, options.binSearch, options.rounds)
            for flag in FLAGS for case in chosen(options, device)]
    return sum(rows, [])


def compare_step(case: Case, device: torch.device, search: str, rounds: int,
                 amp: str | None = None) -> list[dict]:
    """The row of the binarized step against the real one."""
    real, binary = (make_step(case, device, chosen_search, amp) for chosen_search in (None, search))
    title = f'step {case}' + (f' --amp={amp}' if amp else '')
    return [compare(title, real, binary, rounds, CALLS[kind(device)])]


def compare_flag(case: Case, device: torch.device, flag: str, search: str,
                 rounds: int) -> list[dict]:
    """The row of the binarized step under a flag of FLAGS against the one without."""
    plain, ours = (make_step(case, device, search, **settings) for settings in ({}, FLAGS[flag]))
    return [compare(f'step {case} {flag}', plain, ours, rounds, CALLS[kind(device)])]


def make_step(case: Case, device: torch.device, search: str | None, amp: str | None = None,
              memory_format: Callable[[Tensor], Tensor] = Tensor.contiguous,
              compiled: bool = False, clipGrad: float = 0.0) -> Callable[[], None]:
    """A function that does one training step of the network that case.network(search) returns."""
    model = case.network(search, device).train()
    images = memory_format(case.images(device, case.batch))
    target = torch.arange(case.batch, device=device) % CLASSES
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    forward = torch.compile(model) if compiled else model

    def step():
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, amp):
            log_probs = forward(images).float()
        F.nll_loss(log_probs, target).backward()
        if clipGrad:
            nn.utils.clip_grad_norm_(model.parameters(), clipGrad)
        optimizer.step()
    return step


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second that a large copy reads and writes."""
    source = torch.zeros(2 ** 25, device=device)
    target = torch.zeros_like(source)
    seconds, _ = interleave(lambda: target.copy_(source), lambda: None, rounds=9,
                            calls=CALLS[kind(device)])
    return 2 * source.nbytes / statistics.median(seconds)


def in_fresh_memory(function: Callable, case: Case, device: torch.device, search: str | None):
    """function(case, device, search), on the CPU in a process that has allocated nothing yet."""
    call = call_in_new_process if device.type == 'cpu' else lambda function, *rest: function(*rest)
    return call(function, case, device, search)


def peak_memory(case: Case, device: torch.device, search: str | None) -> float:
    """Megabytes at the peak of three training steps, of the GPU or resident in this process."""
    if device.type == 'cuda':
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
    step = make_step(case, device, search)
    for _ in range(3):
        step()
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated() / 2 ** 20
    return peak_megabytes()
