"""What all commands have in common: how options are read, and how a command ends."""

import argparse
import errno
import os
import sys
from collections.abc import Callable

from .errors import UserError, nearest


class CommandParser(argparse.ArgumentParser):
    """A parser that raises a mistake as a UserError of one sentence and never guesses abbreviated flags."""

    def __init__(self, prog: str, **settings):
        super().__init__(prog, allow_abbrev=False, **settings)

    def parse_args(self, args=None, namespace=None):
        namespace, rest = self.parse_known_args(args, namespace)
        if rest:
            raise UserError(self.unknown(rest[0], self._option_string_actions))
        return namespace

    def unknown(self, given: str, allowed) -> str:
        """The sentence for an argument that is not among the allowed ones."""
        kind = 'option' if given.startswith('-') else 'argument'
        return f"Unknown {kind} '{given}'.{nearest(given, allowed)} See {self.prog} --help."

    def error(self, message: str):
        raise UserError(f'{message[0].upper()}{message[1:].rstrip(".")}. See {self.prog} --help.')


def run_command(prog: str, command: Callable[[], int | None], *, stopped: str = 'stopped.') -> int:
    """The command's exit code (None is 0); 2 after a mistake, 130 after Ctrl-C, 141 after a closed pipe."""
    try:
        return command() or 0
    except UserError as error:
        print(f'{prog}: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f'\n{prog}: {stopped}', file=sys.stderr)  # not on the line that Ctrl-C interrupts
        return 130
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f'{prog}: {error.strerror}{f": {error.filename}" if error.filename else ""}.', file=sys.stderr)
        return 2


def duration(seconds: float) -> str:
    """3723 -> '1:02:03'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'


def count(n: float) -> str:
    """1234567 -> '1.23 M'."""
    for size, unit in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if n >= size:
            return f'{n / size:.3g} {unit}'
    return f'{n:.3g}'
