"""Signals that ask a run to stop, recorded until the run can be saved."""

from __future__ import annotations

import math
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

# Ctrl-C, the end of a job, and Slurm's warning some time before that (sbatch --signal=USR1@120).
_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")


class Interruption:
    """A context in which ``signal`` is the name of the signal that asked the process to stop; empty if none has.

    A second signal that is Ctrl-C raises KeyboardInterrupt at once. Outside the main thread Python allows no signal
    handlers, and no signal is recorded.
    """

    def __init__(self, seconds: float | None = None) -> None:
        """Also ask to stop after this time."""
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
