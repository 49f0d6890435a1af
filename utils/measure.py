"""How benchmarks measure: interleaved, or in a process of their own."""
import multiprocessing
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor

import torch


def interleave(baseline, ours, rounds):
    """Seconds of both functions, called in turn `rounds` times after one call to warm up: two lists."""
    times = ([], [])
    for _ in range(rounds + 1):
        for function, seconds in zip((baseline, ours), times):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
    return times[0][1:], times[1][1:]


def fresh(function, *arguments):
    """function(*arguments) in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
        return pool.submit(function, *arguments).result()


def peak_megabytes():
    """Peak resident memory of this process so far, on Linux (ru_maxrss would count the parent before the exec)."""
    with open('/proc/self/status') as status:
        return next(int(line.split()[1]) for line in status if line.startswith('VmHWM')) / 1024


def machine():
    """The processor, its cores, PyTorch's threads and version, in a line."""
    try:
        with open('/proc/cpuinfo') as file:
            name = next(line.split(': ')[1].strip() for line in file if line.startswith('model name'))
    except (OSError, StopIteration):
        name = platform.processor()
    return f'{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}'
