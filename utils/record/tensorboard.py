"""TensorBoard's event files of a run, written at once.

tensorboardX's SummaryWriter hands events to a thread, which a full disk ends silently; the queue
in front of it then blocks training for ever. TensorBoard sorts the names and opens the first two
groups: accuracy and loss, a chart each.
"""
import io
import time
from pathlib import Path

from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import make_histogram
from torch import Tensor

SPLITS = 'train', 'val'
CURVES = {'accuracy': 'top1', 'loss': 'loss', 'top-5 accuracy': 'top5'}
OF_LAYER = {'alpha': 'alpha', 'beta': 'beta', 'K_over_n': 'K/n', 'relative_error': 'relative error',
            'flip_ratio': 'flip ratio'}


class TensorBoard:
    """A new events.out.tfevents.* file in each of folder/train and folder/val.

    TensorBoard draws curves with one tag and several folders into one chart. done: the finished
    epochs of a resumed run; TensorBoard discards what it has read of later ones. An `epoch` counts
    from 0, and its step from 1, as in the log. Every start is marked, since TensorBoard takes the
    first mark for that of a new run. Methods raise OSError.
    """

    def __init__(self, folder: Path, done: int = 0):
        self.writers = {split: self._open(folder / split, done) for split in SPLITS}

    def _open(self, folder, done):
        folder.mkdir(exist_ok=True)
        writer = EventsWriter(str(folder / 'events'), f'.{time.monotonic_ns()}')
        writer.write_event(Event(step=done + 1, file_version='brain.Event:2'))
        writer.write_event(Event(step=done + 1, session_log=SessionLog(status=SessionLog.START)))
        return writer

    def add_metrics(self, split: str, epoch: int, metrics: dict, lr: float):
        """Add Meter.read() of one split, 'train' or 'val'."""
        for tag, key in CURVES.items():
            self._add(split, epoch, tag, simple_value=metrics[key])
        if split == 'train':
            self._add(split, epoch, 'optimizer/learning rate', simple_value=lr)

    def add_layer(self, number: int, name: str, epoch: int, measures: dict[str, Tensor]):
        """Add the measures of a binarized layer: means, and histograms of those per filter."""
        for key, values in measures.items():
            tag = f'{layer_group(number, name)}/{OF_LAYER[key]}'
            self._add('train', epoch, tag, simple_value=values.mean().item())
            if values.dim():
                histogram = make_histogram(values.numpy(), bins=30)
                self._add('train', epoch, f'{tag} by filter', histo=histogram)

    def add_mistakes(self, pictures: list[Image.Image], epoch: int):
        for number, picture in enumerate(pictures, 1):
            self._add('val', epoch, f'misclassified/{number}', image=as_png(picture))

    def add_filters(self, number: int, name: str, picture: Image.Image, epoch: int):
        self._add('train', epoch, f'{layer_group(number, name)}/filters', image=as_png(picture))

    def _add(self, split, epoch, tag, **value):
        summary = Summary(value=[Summary.Value(tag=tag, **value)])
        self.writers[split].write_event(
            Event(wall_time=time.time(), step=epoch + 1, summary=summary))

    def flush(self):
        for writer in self.writers.values():
            writer.flush()

    def close(self):
        for writer in self.writers.values():
            writer.close()


def layer_group(number: int, name: str) -> str:
    """The group of a convolution, numbered as in the table that a run prints."""
    return f'weights {number} {name}'


def as_png(picture: Image.Image) -> Summary.Image:
    file = io.BytesIO()
    picture.save(file, 'PNG', optimize=True)
    return Summary.Image(width=picture.width, height=picture.height,
                         colorspace=len(picture.getbands()), encoded_image_string=file.getvalue())
