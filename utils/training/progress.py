"""The progress bar of an epoch."""
import sys

from tqdm import tqdm

from . import parallel


class Progress:
    """A progress bar over `total` batches, hidden when stderr is not a terminal.

    Called on the iterable of the batches.
    """

    def __init__(self, title: str, total: int):
        self.title, self.total = title, total

    def __call__(self, batches):
        hidden = parallel.rank() > 0 or not sys.stderr.isatty()
        self.bar = tqdm(batches, self.title, self.total, leave=False, dynamic_ncols=True,
                        disable=hidden)
        return self.bar

    def show(self, metrics: dict):
        self.bar.set_postfix_str(f'loss {metrics["loss"]:.4f}  top-1 {metrics["top1"]:.2f}')
