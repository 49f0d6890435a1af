"""Looking at what enters the layers of a network while it runs."""
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from torch import Tensor, nn

Key = TypeVar('Key')


@contextlib.contextmanager
def watching_inputs(layers: Mapping[Key, nn.Module],
                    watch: Callable[[Key, Tensor], object]) -> Iterator[None]:
    """While the block runs, each call of a layer first calls watch(its key in `layers`, input)."""
    def make_hook(key):
        def hook(layer, inputs):
            watch(key, inputs[0])       # its result must not replace the input
        return hook

    handles = [layer.register_forward_pre_hook(make_hook(key)) for key, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
