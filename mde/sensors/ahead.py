"""Capturing the next frame while this one is worked on."""

import queue
import threading
from collections.abc import Generator

from mde.sensors.frame import SensorFrame, SensorStream

WAITING = 2  # frames kept ready: what is shown live is no older than that
_END = object()


class Ahead:
    """A stream's frames, captured and aligned in a thread of their own.

    The thread waits while WAITING frames are ready. A recording waits with it and loses nothing; of a camera the frames
    in between are lost, and counted by the stream. What the stream raises is raised here.
    """

    def __init__(self, stream: SensorStream):
        self._stream = stream
        self._ready: queue.Queue[object] = queue.Queue(WAITING)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._capture, name="capture", daemon=True)

    def __iter__(self) -> Generator[SensorFrame]:
        self._thread.start()
        try:
            while (item := self._ready.get()) is not _END:
                if isinstance(item, BaseException):
                    raise item
                assert isinstance(item, SensorFrame)
                yield item
        finally:
            self._stopped.set()
            self._thread.join()

    def _capture(self) -> None:
        try:
            for frame in self._stream:
                if not self._put(frame):
                    return
            self._put(_END)
        except BaseException as error:
            self._put(error)

    def _put(self, item: object) -> bool:
        """Whether somebody still takes frames."""
        while not self._stopped.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
