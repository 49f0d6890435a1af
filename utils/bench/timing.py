"""How benchmarks measure, and the line that they print for two things measured in turn."""
import os
import statistics
import time
from collections.abc import Callable

import torch

from utils.errors import naming
from utils.provenance import git_commit, processor_name


def interleave(baseline: Callable, ours: Callable, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of both functions, called in turn `rounds` times after one call to warm up."""
    times: tuple = [], []
    for _ in range(rounds + 1):
        for function, seconds in zip((baseline, ours), times):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
    return times[0][1:], times[1][1:]


def print_header():
    print(f'{"case":44} {"baseline ms":>10} {"ours ms":>10} {"ratio":>8}   quartiles')


def compare(case: str, baseline: Callable, ours: Callable, rounds: int) -> dict:
    """Measure both functions and print the line of the case; returns its JSON object."""
    times = interleave(baseline, ours, rounds)
    low, _, high = statistics.quantiles([b / a for a, b in zip(*times)], n=4)
    baseline_s, ours_s = map(statistics.median, times)
    ratio = ours_s / baseline_s
    print(f'{case:44} {baseline_s * 1e3:10.2f} {ours_s * 1e3:10.2f} {ratio:8.3f}   '
          f'{low:.3f} – {high:.3f}', flush=True)
    return {'case': case, 'baseline_s': baseline_s, 'ours_s': ours_s, 'ratio': ratio}


def peak_megabytes() -> float:
    """Peak resident memory of this process so far, on Linux.

    Not ru_maxrss, which would count the parent before the exec.
    """
    with naming('peak memory'), open('/proc/self/status') as status:
        return next(int(line.split()[1]) for line in status if line.startswith('VmHWM')) / 1024


def machine() -> str:
    """The processor, its cores, PyTorch's threads and version, and the commit, in a line."""
    return (f'{processor_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, '
            f'torch {torch.__version__}, commit {git_commit()}')
