"""The signals that ask a run to stop, noted until it is where it can be taken up again."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

# Ctrl-C, the end of a job, and what Slurm is told to send some time before that (sbatch --signal=USR1@120).
_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")


class Interruption:
    """While it is entered, ``signal`` names the signal that has asked the process to stop; empty if none has.

    Ctrl-C a second time does not wait: it raises KeyboardInterrupt. Outside the main thread, where Python lets nobody
    handle signals, nothing is noted.
    """

    def __init__(self) -> None:
        self.signal = ""
        self._before: dict[int, Any] = {}

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
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name
