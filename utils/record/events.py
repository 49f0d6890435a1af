"""TensorBoard's files of events, written at once.

tensorboardX's SummaryWriter hands events to a thread, which a full disk ends in silence; the queue
in front of it then blocks training for ever.
"""
import io
import time
from pathlib import Path

from numpy import ndarray
from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import make_histogram

SPLITS = 'train', 'val'


class Events:
    """A new events.out.tfevents.* file in each of folder/train and folder/val.

    TensorBoard draws curves with one tag and several folders into one chart. done: the finished
    epochs of a resumed run; what TensorBoard has read of later ones is void. An `epoch` counts from
    0, and its step from 1, as in the log. Every start is marked, since TensorBoard takes the first
    mark for that of a new run. Methods raise OSError.
    """

    def __init__(self, folder: Path, done: int = 0):
        self.writers = {split: self._open(folder / split, done) for split in SPLITS}

    def _open(self, folder, done):
        folder.mkdir(exist_ok=True)
        writer = EventsWriter(str(folder / 'events'), f'.{time.monotonic_ns()}')
        writer.write_event(Event(step=done + 1, file_version='brain.Event:2'))
        writer.write_event(Event(step=done + 1, session_log=SessionLog(status=SessionLog.START)))
        return writer

    def add_scalar(self, split: str, tag: str, value: float, epoch: int):
        self._add(split, epoch, Summary.Value(tag=tag, simple_value=value))

    def add_histogram(self, split: str, tag: str, values: ndarray, epoch: int):
        self._add(split, epoch, Summary.Value(tag=tag, histo=make_histogram(values, bins=30)))

    def add_picture(self, split: str, tag: str, picture: Image.Image, epoch: int):
        file = io.BytesIO()
        picture.save(file, 'PNG', optimize=True)
        image = Summary.Image(width=picture.width, height=picture.height,
                              colorspace=len(picture.getbands()),
                              encoded_image_string=file.getvalue())
        self._add(split, epoch, Summary.Value(tag=tag, image=image))

    def _add(self, split, epoch, value):
        event = Event(wall_time=time.time(), step=epoch + 1, summary=Summary(value=[value]))
        self.writers[split].write_event(event)

    def flush(self):
        for writer in self.writers.values():
            writer.flush()

    def close(self):
        for writer in self.writers.values():
            writer.close()
