"""Which part of a program every moment belongs to."""
import time
from itertools import pairwise

import torch

FOLD = 4096     # marks that are summed up at once


class Timeline:
    """Divides the time between two calls of read() into parts, without a gap.

    Where parts are entered within others, the innermost one counts. With CUDA time is that of the
    current stream: marks are its events, and nothing waits for them before read(). A moment in
    which the device waits for the host belongs to the part that the host is in. On other devices
    time is that of the host.
    """

    def __init__(self, device: torch.device, outermost: str):
        self.is_cuda = device.type == 'cuda'
        self.parts = [outermost]    # those that are entered and not left
        self.seconds: dict[str, float] = {}
        self.marks: list[tuple] = []    # (moment, the part that begins)
        self._mark()

    def enter(self, part: str):
        self.parts.append(part)
        self._mark()

    def leave(self):
        self.parts.pop()
        self._mark()

    def read(self) -> dict[str, float]:
        """Seconds of each part since the last call."""
        self._mark()
        self._fold(len(self.marks) - 1)
        seconds, self.seconds = self.seconds, {}
        return seconds

    def _mark(self):
        if self.is_cuda:
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        else:
            moment = time.perf_counter()
        self.marks.append((moment, self.parts[-1]))
        if len(self.marks) > 2 * FOLD:
            self._fold(FOLD)

    def _fold(self, count):
        """Sum up the parts before mark number `count`, and forget them."""
        if self.is_cuda:
            self.marks[count][0].synchronize()
        for (start, part), (end, _) in pairwise(self.marks[:count + 1]):
            spent = start.elapsed_time(end) / 1e3 if self.is_cuda else end - start
            self.seconds[part] = self.seconds.get(part, 0.0) + spent
        del self.marks[:count]
