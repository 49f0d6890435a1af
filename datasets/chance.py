"""Random numbers that are a function of (seed, epoch, index of the image) and of nothing else.

So neither the batch size nor the number of processes or workers changes an image, and a GPU gets
the numbers of the CPU.
"""
from collections.abc import Sequence

import numpy as np

GOLDEN = 0x9e3779b97f4a7c15


def uniform(seed: int, epoch: int, indices: Sequence[int], count: int) -> np.ndarray:
    """(len(indices), count) float64 numbers in [0, 1), of each index its own stream.

    SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014), whose
    state is a hash of seed, epoch and index.
    """
    state = np.zeros(1, np.uint64)
    for value in seed, epoch, indices:
        state = _mix((state + GOLDEN) ^ np.asarray(value, np.uint64))
    steps = GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
    return (_mix(state[:, None] + steps) >> 11) * 2.0 ** -53


def _mix(z):
    """SplitMix64's bijective finalizer, modulo 2^64."""
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb
    return z ^ (z >> 31)
