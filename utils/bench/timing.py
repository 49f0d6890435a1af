"""How benchmarks measure, and the line that they print for two things measured in turn."""
import math
import os
import statistics
import time
from collections.abc import Callable
from contextlib import suppress

import torch

from utils.record.describe import git_commit, processor_name
from utils.system.devices import float32_in


def synchronize():
    """Wait until the GPU, where there is one, has done what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def interleave(baseline: Callable, ours: Callable,
               rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of both functions, measured in turn `rounds` times after one turn to warm up."""
    times: tuple = [], []
    for _ in range(rounds + 1):
        for function, seconds in zip((baseline, ours), times):
            synchronize()
            start = time.perf_counter()
            function()
            synchronize()
            seconds.append(time.perf_counter() - start)
    return times[0][1:], times[1][1:]


def print_header(width: int = 44):
    print(f'{"case":{width}} {"baseline ms":>11} {"ours ms":>11} {"ratio":>8}   quartiles')


def compare(case: str, baseline: Callable, ours: Callable, rounds: int, width: int = 44,
            calls: tuple[int, int] = (1, 1)) -> dict:
    """Measure both functions and print the line of the case; returns its JSON object.

    width: of the case, see print_header. calls: how many of what is timed either function makes.
    """
    times = interleave(baseline, ours, rounds)
    times = [[seconds / number for seconds in some] for some, number in zip(times, calls)]
    low, _, high = statistics.quantiles([b / a for a, b in zip(*times)], n=4)
    baseline_s, ours_s = map(statistics.median, times)
    ratio = ours_s / baseline_s
    print(f'{case:{width}} {baseline_s * 1e3:11.2f} {ours_s * 1e3:11.2f} {ratio:8.3f}   '
          f'{low:.3f} – {high:.3f}', flush=True)
    return {'case': case, 'baseline_s': baseline_s, 'ours_s': ours_s, 'ratio': ratio}


def peak_megabytes() -> float:
    """Peak resident memory of this process so far, on Linux; elsewhere NaN.

    Not ru_maxrss, which would count the parent before the exec.
    """
    with suppress(OSError), open('/proc/self/status', encoding='utf-8') as status:
        return next(int(line.split()[1]) for line in status if line.startswith('VmHWM')) / 1024
    return math.nan


def machine() -> str:
    """Describe the machine in a line: processor, GPU and its arithmetic, versions."""
    gpu = ''
    if torch.cuda.is_available():
        used = ', '.join(f'{what} in {dtype}' for what, dtype in
                         float32_in(torch.device('cuda')).items())
        gpu = (f'{torch.cuda.get_device_name()} ({used}, cudnn.benchmark '
               f'{torch.backends.cudnn.benchmark}), ')
    return (f'{gpu}{processor_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, '
            f'torch {torch.__version__}, commit {git_commit()}')
