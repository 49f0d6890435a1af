"""TensorBoard's file of events, written at once.

tensorboardX's SummaryWriter hands events to a thread, which a full disk ends in silence; the queue
in front of it then blocks training for ever.
"""
import time
from pathlib import Path

from numpy import ndarray
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog


class Events:
    """A new events.out.tfevents.* file in the folder. Methods raise OSError.

    What TensorBoard has read of epochs from `resumed_from` on is void; None: there is none.
    """

    def __init__(self, folder: Path, resumed_from: int | None = None):
        self.writer = EventsWriter(str(folder / 'events'), f'.{time.monotonic_ns()}')
        if resumed_from is not None:
            restart = SessionLog(status=SessionLog.START)
            self.writer.write_event(Event(step=resumed_from, file_version='brain.Event:2'))
            self.writer.write_event(Event(step=resumed_from, session_log=restart))

    def add_scalar(self, tag: str, value: float, epoch: int):
        self._add(summary.scalar(tag, value), epoch)

    def add_histogram(self, tag: str, values: ndarray, epoch: int):
        self._add(summary.histogram(tag, values, bins=30), epoch)

    def _add(self, value, epoch):
        self.writer.write_event(Event(wall_time=time.time(), step=epoch, summary=value))

    def flush(self):
        self.writer.flush()

    def close(self):
        self.writer.close()
