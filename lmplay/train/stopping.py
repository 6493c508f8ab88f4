"""How a run ends before its time: a signal, or a reason of its own."""

import contextlib
import signal
import threading
from collections.abc import Iterator

from ..cli import Terminated
from .console import ConsoleReporter

STOPPING = 'Stopping after this step; signal again to stop at once.'


class StopTraining(Exception):
    """The run ends here, its state saved; the reason is the message."""


class Interrupted(StopTraining):
    """It ends because of a signal."""


class StopSignal:
    """SIGINT and SIGTERM: the first lets the current step finish and saves, a second stops immediately.

    Before the first step, when there is none to wait for, the first stops immediately. Outside the main
    thread, where Python allows no signal handlers, signals do what they do without it.
    """

    def __init__(self, console: ConsoleReporter):
        self.console = console
        self.number: int | None = None
        self.agreed: int | None = None  # of several ranks, the signal that all of them know of; 0 for none
        self.stepping = False
        self.told = True

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        signals = (
            (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        )
        handlers = {s: signal.signal(s, self._on_signal) for s in signals}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def waits_for_the_step(self) -> Iterator[None]:
        """Inside it, a first signal waits for the step at hand; still so after an error,
        while the state is saved."""
        self.stepping = True
        yield
        self.stepping = False

    def check(self) -> None:
        """Raises StopTraining after a signal."""
        if not self.told:
            self.told = True
            self.console.line(STOPPING)
        if self.number is not None if self.agreed is None else self.agreed:
            raise Interrupted('interrupted')

    def agree(self, number: int) -> None:
        """Lets all ranks heed a signal, or none (0), so that they end after the same step."""
        self.agreed = number
        self.number = self.number or number or None

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after SIGTERM; 1 where there was no signal."""
        return 1 if self.number is None else 128 + self.number

    def _on_signal(self, number, _frame) -> None:
        again, self.number = self.number is not None, int(number)
        if again or not self.stepping:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        self.told = self.console.urgent(STOPPING)
