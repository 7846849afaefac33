"""What ends a run: a sentence and a status, or a signal from outside."""

import os
import signal
import threading
import time
from contextlib import suppress

import psutil
from accelerate import PartialState
from accelerate.utils import gather_object

from engine.screen import print_main

LAUNCHED = {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & set(os.environ)  # accelerate launch, torchrun
LAUNCHER = psutil.Process().parent() if LAUNCHED else None
ONE_SIGNAL = 2.0  # seconds: schedulers signal every process, and launchers pass theirs on, so one may arrive twice


def exit_with(sentence: str, status: int) -> None:
    """End this process; the main one says why. status 2: what was asked for cannot be done; 1: anything else."""
    print_main(sentence, "stderr")
    raise SystemExit(status)


class Stop:
    """What stops a run from outside: SIGINT (Ctrl-C), SIGTERM (schedulers), or the end of its launcher, because SIGTERM
    ends `accelerate launch` at once and does not reach the run. The first signal sets `event`, for whoever waits, and
    is kept for `reason`; a second one stops the process at once."""

    def __init__(self, event: threading.Event):
        self.event, self.signal, self.first = event, "", 0.0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle)

    def handle(self, number: int, frame) -> None:
        if not self.signal:
            self.signal, self.first = signal.Signals(number).name, time.monotonic()
            self.event.set()
            text = f"\n{self.signal}: stopping after this step; a second one stops at once (kill {os.getpid()})\n"
            with suppress(OSError):  # os.write: print is not safe in a handler
                os.write(2, text.encode() if PartialState().is_main_process else b"")
        elif time.monotonic() - self.first > ONE_SIGNAL:
            self.end()
            signal.raise_signal(number)

    def end(self) -> None:
        """From here on a signal stops the process at once."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)

    def reason(self) -> str | None:
        """What asks any of the processes to stop, the same on all of them; None: nothing."""
        gone = LAUNCHER and psutil.Process().parent() != LAUNCHER  # orphans get another parent (on Windows none)
        return any_of(self.signal or ("the end of its launcher" if gone else None))


def any_of(problem: str | None) -> str | None:
    """What the first process with a problem says, on all processes alike."""
    return next(filter(None, gather_object([problem])), None)
