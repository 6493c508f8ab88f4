"""What all commands have in common: how options are read, how a command ends, what may reach a terminal."""

import argparse
import contextlib
import errno
import json
import os
import re
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from typing import Any

from . import __version__
from .errors import UserError, nearest

# What a terminal obeys instead of showing it: control characters but tab and line feed, and marks that change
# the direction of text. Surrogates are what no encoding takes.
COMMANDS = r'\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff'
UNSAFE, UNSAFE_BUT_RETURN = re.compile(f'[\r{COMMANDS}]'), re.compile(f'[{COMMANDS}]')
LINE_BREAKS = re.compile('[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029\t]')


def plain(text: str) -> str:
    """Text without anything that a terminal obeys; line feeds and tabs stay."""
    return UNSAFE.sub('?', text)


def plain_line(text: object) -> str:
    """`plain`, in one line."""
    return plain(LINE_BREAKS.sub(' ', str(text)))


def cell(text: object):
    """`plain_line` for rich, which reads a bare string as markup."""
    from rich.text import Text

    return Text(plain_line(text))


def json_line(value: Any) -> str:
    """A value as one line of JSON that is safe to show: what a terminal obeys is escaped."""
    return UNSAFE.sub(lambda c: f'\\u{ord(c[0]):04x}', json.dumps(value, ensure_ascii=False))


class PlainStream:
    """A text stream that shows what is written to it, as `plain` does.

    A return passes: progress bars start with it. rich writes to the stream itself.
    """

    def __init__(self, stream):
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        self.rich_proxied_file.write(UNSAFE_BUT_RETURN.sub('?', text))
        return len(text)

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str):
        return getattr(self.rich_proxied_file, name)


@contextlib.contextmanager
def plain_streams() -> Iterator[None]:
    """Inside it, nothing that is printed or logged can command the terminal."""
    before = sys.stdout, sys.stderr
    # a process that is started with one closed has None there
    sys.stdout, sys.stderr = (PlainStream(stream or open(os.devnull, 'w')) for stream in before)  # noqa: SIM115
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def console():
    """A rich console for standard output; where that is no terminal, as wide as COLUMNS says, else 160."""
    from rich.console import Console

    out = Console()
    if not out.is_terminal and 'COLUMNS' not in os.environ:
        out.width = 160
    return out


EXIT_CODES = """\
exit codes: 0 done; 2 a mistake in what was given, in a sentence; 130 Ctrl-C; 143 SIGTERM; 1 anything else"""


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Fills paragraphs, and leaves lines as they are where there are several."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        raw = super()._fill_text(text, width, indent)
        return raw if '\n' in text else argparse.HelpFormatter._fill_text(self, text, width, indent)


class _PrintCompletion(argparse.Action):
    """Prints the completion of a command for a shell, and exits."""

    def __call__(self, parser, namespace, values, option_string=None):
        import shtab

        print(shtab.complete(parser, str(values)))
        parser.exit()


class CommandParser(argparse.ArgumentParser):
    """A parser that raises a mistake as a UserError of one sentence and never guesses abbreviated flags.

    examples: lines for the end of its help.
    """

    def __init__(self, prog: str, *, description: str, examples: str):
        epilog = f'examples:\n{textwrap.indent(textwrap.dedent(examples).strip(), "  ")}\n\n{EXIT_CODES}'
        super().__init__(
            prog, allow_abbrev=False, description=description, epilog=epilog, formatter_class=_HelpFormatter
        )
        self.add_argument('--version', action='version', version=f'{prog} (lmplay {__version__})')
        self.add_argument(
            '--print-completion',
            choices=('bash', 'zsh', 'fish'),
            action=_PrintCompletion,
            dest=argparse.SUPPRESS,
            default=argparse.SUPPRESS,
            help='print the completion of this command for a shell, and exit',
        )

    def add_exp(self) -> None:
        """--exp, of commands that read a checkpoint."""
        self.add_argument(
            '--exp',
            metavar='NAME',
            help='the experiment, if it has been renamed or moved: a name, or the path of a versions.py',
        )

    def add_device(self) -> None:
        """--device and --amp, of commands that pass text through a trained model."""
        self.add_argument(
            '--device',
            default='auto',
            metavar='NAME',
            help='cpu, cuda, cuda:1, mps (default: the best available)',
        )
        amp = 'compute in bf16 (fp16 where the device has none)'
        self.add_argument('--amp', action='store_true', help=amp)

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


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does, with an exit code of its own."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Inside it, SIGTERM raises Terminated; not outside the main thread, nor where SIGTERM is ignored."""

    def terminate(number, frame):
        raise Terminated

    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    if not main or before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def run_command(prog: str, command: Callable[[], int | None], *, stopped: str = 'stopped.') -> int:
    """The command's exit code (None is 0).

    2 after a mistake, 130 after Ctrl-C, 143 after SIGTERM, 141 after a closed pipe.
    """
    with plain_streams(), terminable():
        return _run(prog, command, stopped)


def _run(prog: str, command: Callable[[], int | None], stopped: str) -> int:
    try:
        return command() or 0
    except UserError as error:
        _tell(f'{prog}: {plain_line(error)}')
        return 2
    except KeyboardInterrupt as interruption:
        _tell(f'\n{prog}: {stopped}')  # not on the line that Ctrl-C interrupts
        return 128 + (signal.SIGTERM if isinstance(interruption, Terminated) else signal.SIGINT)
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        words = of_the_system(error)
        if words is None:
            raise
        if getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT):  # what is buffered would fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _tell(f'{prog}: {plain_line(words)}.')
        return 2


def of_the_system(error: Exception) -> str | None:
    """What the system says of a path or of memory that can't be had, without a full stop; None for any other
    error, which is a fault of the program."""
    text = ' '.join(str(error).split()).rstrip('.')
    if isinstance(error, OSError):  # a full disk, a directory in place of a file, ...
        return f'{error.strerror}{f": {error.filename}" if error.filename else ""}' if error.errno else text
    if isinstance(error, UnicodeEncodeError):
        return f'{ascii(error.object[error.start : error.end])} is not a character, in a name or a text'
    if isinstance(error, ValueError):
        return 'A path holds a null character' if text.startswith('embedded null') else None
    if text == 'Could not determine home directory':
        return 'A path begins with ~ and the name of a user that this system does not know'
    if not isinstance(error, MemoryError) and 'torch' not in sys.modules:
        return None
    from .device import is_out_of_memory

    return f'There is not enough memory ({text or "out of memory"})' if is_out_of_memory(error) else None


def _tell(line: str) -> None:
    """To standard error, where that is open."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(line, file=sys.stderr)


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
