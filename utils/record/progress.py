"""Progress bars, or lines where there is no terminal, and the time left."""
import sys
import time

from tqdm import tqdm

from utils.system import console
from utils.training import parallel

INTERVAL = 300      # seconds between two lines


def duration(seconds: float) -> str:
    """Two units at most, as exact as an estimate: 45 s, 12 min, 3 h 20 min, 20 h, 4 d 7 h."""
    if round(seconds) < 60:
        return f'{round(seconds)} s'
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if minutes < 60:
        return f'{minutes} min'
    if minutes < 600:
        return f'{minutes // 60} h {minutes % 60} min'.removesuffix(' 0 min')
    if hours < 48:
        return f'{hours} h'
    return f'{hours // 24} d {hours % 24} h'.removesuffix(' 0 h')


class TimeLeft:
    """The time left of a run with `epochs` epochs to go, from the mean of those done until then.

    The first one, which warms up, counts only while it is the only one.
    """

    def __init__(self, epochs: int):
        self.epochs = epochs
        self.done: list[float] = []     # seconds of each
        self.began = time.monotonic()

    def after_epoch(self) -> str:
        """Call it at the end of an epoch: ', about 3 h 20 min left', '' after the last one."""
        now = time.monotonic()
        self.done.append(now - self.began)
        self.began = now
        remaining = self.epochs - len(self.done)
        return f', about {duration(remaining * self._epoch())} left' if remaining > 0 else ''

    def within_epoch(self, rest: float) -> float:
        """The seconds left of the run, in an epoch whose training or validation has `rest` left."""
        so_far = time.monotonic() - self.began
        epoch = self._epoch() if self.done else so_far + rest
        return max(epoch - so_far, rest) + (self.epochs - len(self.done) - 1) * epoch

    def _epoch(self):
        steady = self.done[1:] or self.done
        return sum(steady) / len(steady)


class Progress:
    """A progress bar over `total` batches, or lines where stderr is not a terminal.

    Call it with the batches. time_left: of the run; without it, lines give that of the batches.
    """

    def __init__(self, title: str, total: int, time_left: TimeLeft | None = None):
        self.title, self.total, self.time_left = title, total, time_left
        self.metrics = ''
        self.bar = None

    def __call__(self, batches):
        if parallel.rank() > 0:
            return batches
        if not sys.stderr.isatty():
            return self._with_lines(batches)
        self.bar = tqdm(batches, self.title, self.total, leave=False, dynamic_ncols=True)
        return self.bar

    def _with_lines(self, batches):
        began = last = time.monotonic()
        for number, batch in enumerate(batches):
            now = time.monotonic()
            if now - last >= INTERVAL and number:
                last = now
                rest = (now - began) / number * (self.total - number)
                left = self.time_left.within_epoch(rest) if self.time_left else rest
                console.say(f'{self.title}, batch {number}/{self.total}{self.metrics}, '
                            f'about {duration(left)} left')
            yield batch

    def show(self, metrics: dict):
        """Show loss and top-1 of the batches so far."""
        loss, top1 = f'loss {metrics["loss"]:.4f}', f'top-1 {metrics["top1"]:.2f}'
        self.metrics = f', {loss}, {top1}'
        if self.bar is not None:
            self.bar.set_postfix_str(f'{loss}  {top1}')
