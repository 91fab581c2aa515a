"""The signals that ask a run to stop, noted until it is where it can be taken up again."""

from __future__ import annotations

import math
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

# Ctrl-C, the end of a job, and what Slurm is told to send some time before that (sbatch --signal=USR1@120).
_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")


class Interruption:
    """While it is entered, ``signal`` names what has asked the process to stop; empty if nothing has.

    Ctrl-C a second time does not wait: it raises KeyboardInterrupt. Outside the main thread, where Python lets nobody
    handle signals, nothing is noted.
    """

    def __init__(self, seconds: float | None = None) -> None:
        """Ask to stop after this time, too."""
        self._signal = ""
        self._deadline = math.inf if seconds is None else time.monotonic() + seconds
        self._before: dict[int, Any] = {}

    @property
    def signal(self) -> str:
        """The name of the signal, or that of the time limit."""
        return self._signal or ("the time limit" if time.monotonic() > self._deadline else "")

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]  # Windows has no SIGUSR1
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = signal.Signals(number).name
