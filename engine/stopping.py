"""What ends a run: a sentence and a status, or a signal from outside."""

import os
import signal
import threading
import time
from contextlib import contextmanager, suppress

import psutil
from accelerate import PartialState
from accelerate.utils import gather_object

from engine.screen import print_main

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LAUNCHED = {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & set(os.environ)  # by a launcher
LAUNCHER = psutil.Process().parent() if LAUNCHED else None
# Schedulers signal every process, and launchers pass theirs on: one signal may arrive twice.
ONE_SIGNAL = 2.0  # seconds in which two signals count as one


def exit_with(sentence: str, status: int = 2) -> None:
    """End this process; the main one says why.

    status 2: what was asked for cannot be done; 1: anything else."""
    print_main(sentence, "stderr")
    raise SystemExit(status)


@contextmanager
def sentences(*errors: type[Exception]):
    """A SystemExit with a sentence, or one of these errors, ends the command with status 2."""
    try:
        yield
    except KeyboardInterrupt:
        exit_with("stopped: the same command goes on from what is on disk", 130)
    except (SystemExit, *errors) as error:
        # One with a status has said its sentence.
        if isinstance(error, SystemExit) and not isinstance(error.code, str):
            raise
        exit_with(str(error))


class Stop:
    """What stops a run from outside: Ctrl-C (SIGINT), schedulers (SIGTERM), the launcher's end.

    SIGTERM ends `accelerate launch` at once and does not reach the run. The first signal sets
    `event`, for whoever waits, and is kept for `reason`; a second one stops the process at once."""

    def __init__(self, event: threading.Event):
        self.event = event
        self.signal = ""  # the name of the first one
        self.first = 0.0  # the time of the first one
        for number in SIGNALS:
            signal.signal(number, self.handle)

    def handle(self, number: int, frame) -> None:
        if not self.signal:
            self.signal = signal.Signals(number).name
            self.first = time.monotonic()
            self.event.set()
            self.announce()
        elif time.monotonic() - self.first > ONE_SIGNAL:
            self.end()
            signal.raise_signal(number)

    def announce(self) -> None:
        """The main process says that the run will stop."""
        if PartialState().is_main_process:
            how = f"a second one stops at once (kill {os.getpid()})"
            with suppress(OSError):  # print is not safe in a handler
                os.write(2, f"\n{self.signal}: stopping after this step; {how}\n".encode())

    def end(self) -> None:
        """From here on a signal stops the process at once."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    def reason(self) -> str | None:
        """What asks any of the processes to stop, the same on all of them; None: nothing."""
        problem = self.signal
        # Orphans get another parent (on Windows none).
        if not problem and LAUNCHER and psutil.Process().parent() != LAUNCHER:
            problem = "the end of its launcher"
        return any_of(problem or None)


def any_of(problem: str | None) -> str | None:
    """What the first process with a problem says, on all processes alike."""
    problems = [said for said in gather_object([problem]) if said]
    return problems[0] if problems else None
