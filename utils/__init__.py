"""How the process keeps threads and memory.

OpenMP and PyTorch read this when torch is loaded, so a command imports utils first.
"""
import signal
import sys

if sys.argv[:1] == ['-m']:  # python3 -m datasets.prepare, at its first import of ours
    signal.signal(signal.SIGINT, signal.SIG_DFL)    # as interrupt.end_silently()

import contextlib
import ctypes
import os

# PyTorch's warnings in C++ are lines with stacks, such as of a signal while a process waits for
# another; what goes wrong raises an exception.
os.environ.setdefault('TORCH_CPP_LOG_LEVEL', 'ERROR')
# Waiting threads must not spin for long: beside loading workers that makes a step up to 10 times
# slower. A tenth of a millisecond (GCC's OpenMP counts turns) spares small layers the waking of
# threads, which takes as long.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
os.environ.setdefault('GOMP_SPINCOUNT', '10000')
# A step frees and allocates the same large tensors again and again. In huge pages that stay with
# the process it avoids millions of page faults (M_MMAP_MAX = 0, M_TRIM_THRESHOLD = -1; glibc only).
os.environ.setdefault('THP_MEM_ALLOC_ENABLE', '1')
with contextlib.suppress(AttributeError, OSError, TypeError):
    for parameter, value in ((-4, 0), (-1, -1)):
        ctypes.CDLL(None).mallopt(parameter, value)
