"""Registry of experiments: `expose_runner` registers, `list_experiments` lists, `find_runner` finds by name.

Experiments are found by importing the `versions` modules of lmplay.exp and of installed packages (entry
points of the group `lmplay.experiments`), each once per process. One that raises is listed with its error and
hides no other.
"""

import contextlib
import functools
import importlib
import importlib.machinery
import importlib.util
import inspect
import operator
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..errors import ExperimentError, UserError, unknown
from ..files import user_path

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINT_GROUP = 'lmplay.experiments'
USER_PACKAGE = 'lmplay_user_'  # the folder of a file given by its path is imported as a package of this name
NO_RUNNER = "exposes no runner: decorate a function with @expose_runner('NAME')"


@dataclass(frozen=True)
class Entry:
    """A row of the list: an experiment version, or something that is broken (`error` is then set)."""

    name: str
    description: str
    module: str  # dotted name, or path of a file
    file: str
    line: int = 0
    parameters: dict = field(default_factory=dict)  # name -> default as the version sets it
    error: str | None = None

    @property
    def where(self) -> str:
        return f'{self.file}:{self.line}' if self.line else self.file


@dataclass(frozen=True)
class Registered:
    """A runner function with its name, its description, and the place of its declaration."""

    name: str
    description: str
    function: Callable
    module: str  # dotted name, or path of a file
    file: Path
    line: int

    @property
    def where(self) -> str:
        return f'{self.file}:{self.line}'


MODEL_RUNNERS: dict[str, Registered] = {}  # what is registered so far
_registered = MODEL_RUNNERS
_imported: set[Path] = set()  # versions files, broken ones included
_broken: dict[str, Entry] = {}  # by file or entry point
_importing = False


def expose_runner(name: str, *, description: str = '') -> Callable:
    """Registers the decorated function, which returns a `BasicModelRunner`, as experiment version `name`.

    Raises ExperimentError where another function has the name already. Importing a module again, or defining
    a runner again in a notebook, replaces it.
    """
    if not isinstance(name, str) or not name:
        raise ExperimentError(f'expose_runner needs a name, a non-empty string; given: {name!r}.')

    def register(function: Callable) -> Callable:
        module, file, line = _place(function, inspect.currentframe())
        known = _registered.get(name)
        if known is not None and not _same(known, function, module, file, line):
            error = (
                f"Two experiments are named '{name}': one at {known.where}, one at {file}:{line}. Rename one"
            )
            if not _importing or module == str(file):
                raise ExperimentError(f'{error}.')
            _broken[f'{file}:{name}'] = Entry(name, description, module, str(file), line, error=error)
            return function

        @functools.wraps(function)
        def checked(*args, **kwargs):
            from .base_model import BasicModelRunner  # imports torch

            runner = function(*args, **kwargs)
            if not isinstance(runner, BasicModelRunner):
                raise ExperimentError(
                    f"The runner of experiment '{name}' ({file}:{line}) must return a BasicModelRunner; "
                    f'given: {type(runner).__name__}.'
                )
            return runner

        _registered[name] = Registered(name, description, checked, module, file, line)
        return function

    return register


def _same(known: Registered, function: Callable, module: str, file: Path, line: int) -> bool:
    """Whether a runner is imported again, or defined again in a notebook."""
    again = module == known.module == '__main__' and function.__name__ == known.function.__name__
    return again or (file, line) == (known.file, known.line)


def _place(function: Callable, frame: FrameType | None) -> tuple[str, Path, int]:
    """Module, file and line of a declaration: in `versions`, even where a helper elsewhere defines it."""
    code = inspect.unwrap(function).__code__
    module, file, line = function.__module__, code.co_filename, code.co_firstlineno
    if _importing:
        while frame is not None and frame.f_code.co_name != '<module>':
            frame = frame.f_back
        if frame is not None and frame.f_code.co_filename != file:
            module, file, line = frame.f_globals['__name__'], frame.f_code.co_filename, frame.f_lineno
    path = Path(file).resolve()
    return str(path) if module.startswith(USER_PACKAGE) else module, path, line


def list_experiments() -> list[Entry]:
    """All experiment versions of lmplay, installed packages and this program, by name; then broken ones."""
    return [e for e in _entries() if not e.module.endswith('.py')]


def find_entry(name: str, *, written_in: str | None = None) -> Entry:
    """The entry of an experiment: its name, the path of its versions.py or of the folder, or PATH:NAME.

    A path alone means the first version in the file. written_in: the file that names it, whose word runs no
    code; a path then has to be of a file that was named to this process already. Raises ExperimentError for
    what is unknown, broken, or not named.
    """
    entries = _entries()
    declared = [e for e in entries if e.name == name and e.line]
    match = declared[-1] if declared else None  # a clash comes last
    if match is None and (path := _as_path(name)):
        if written_in is not None:
            _require_named(path[0], name, written_in)
        match = _find_in_file(*path, given=name)
    # a broken file hides its names; its folder or entry point usually bears one of them
    if match is None:
        match = next((e for e in entries if e.error and name in (e.name, Path(e.file).parent.name)), None)
    if match is None:
        broken = ', '.join(e.name for e in entries if e.error)
        hint = f' Broken: {broken} (lmp_trainer --exp list says why).' if broken else ''
        raise ExperimentError(unknown('experiment', name, (e.name for e in entries if not e.error)) + hint)
    if match.error:
        raise ExperimentError(f"Experiment '{match.name}' is broken: {match.error}.")
    return match


def find_runner(name: str, *, written_in: str | None = None) -> Registered:
    """The runner of an experiment; names and errors as for find_entry."""
    return _registered[find_entry(name, written_in=written_in).name]


def saved_runner(state: Mapping, where: Path) -> Registered:
    """The runner of the checkpoint at `where`, by its state.json: installed, or of a file named by the user.

    Raises ExperimentError for a file that nobody named, whatever the checkpoint says.
    """
    name, file = state['exp'], state['exp_file']
    if not file:
        return find_runner(name, written_in=f"The checkpoint '{where}'")
    known = _registered.get(name)
    if known is not None and known.module.endswith('.py'):  # the user named it, here or at another place
        return known
    return find_runner(file, written_in=f"The checkpoint '{where}'")


def _require_named(file: Path, name: str, written_in: str) -> None:
    if file.resolve() in _imported:
        return
    found = '' if file.is_file() else ', which is not here'
    raise ExperimentError(
        f"{written_in} wants the experiment file '{file}'{found}. Code runs only where you name it yourself: "
        f"with --exp '{name}', or as an installed entry point of the group {ENTRY_POINT_GROUP}."
    )


def _entries() -> list[Entry]:
    """All that is known: what is installed, and files given by their paths in this process."""
    for name, module, file in _shipped():
        _load(name, module, file)
    for entry_point in _entry_points():
        _load_entry_point(entry_point)
    entries = [*(_entry(r) for r in _registered.values()), *_broken.values()]
    return sorted(entries, key=lambda e: (e.error is not None, e.name))


def _as_path(name: str) -> tuple[Path, str] | None:
    """(versions file, version or '') where the name is a path."""
    spellings = ((name, ''), name.rpartition(':')[::2])
    for path, version in spellings:
        if path.endswith('.py'):
            return user_path(path), version
    for path, version in spellings:
        if path and (user_path(path) / 'versions.py').is_file():
            return user_path(path) / 'versions.py', version
    return (user_path(name) / 'versions.py', '') if os.sep in name else None


def _find_in_file(file: Path, version: str, *, given: str) -> Entry:
    if not file.is_file():
        raise ExperimentError(
            f"No file '{file}' for --exp: give an experiment's name, or the path of its folder or "
            f'versions.py.'
        )
    file = file.resolve()
    _load(file.parent.name, str(file), file)
    if str(file) in _broken:
        return _broken[str(file)]
    own = {e.name: e for e in _declared_in(file)}
    if version and version not in own:
        raise ExperimentError(unknown('experiment', version, own, given))
    return own[version] if version else next(iter(own.values()))


def _registered_in(file: Path) -> list[Registered]:
    return [r for r in _registered.values() if r.file == file]


def _declared_in(file: Path) -> list[Entry]:
    """The experiments that a file declares, in its order, those included whose names are taken."""
    clashes = [e for e in _broken.values() if e.file == str(file) and e.line]
    return sorted([*map(_entry, _registered_in(file)), *clashes], key=lambda e: e.line)


@functools.cache
def _entry(registered: Registered) -> Entry:
    """The row of a registered runner, which is called for its parameters."""
    r = registered
    parameters, error = _attempt(lambda: r.function().parameters, r.file.parent)
    return Entry(r.name, r.description, r.module, str(r.file), r.line, parameters or {}, error)


def _shipped() -> Iterator[tuple[str, str, Path]]:
    """(name, module, file) of the experiments in lmplay.exp; looked up each time, as lmp_new adds some."""
    root = Path(__file__).resolve().parent.parent / 'exp'
    for file in sorted(root.rglob('versions.py')):
        parts = file.relative_to(root).with_suffix('').parts
        if not any(part.startswith('.') for part in parts):
            yield file.parent.name, '.'.join(('lmplay', 'exp', *parts)), file.resolve()


@functools.cache
def _entry_points() -> list['EntryPoint']:
    from importlib.metadata import entry_points  # --help does without

    return sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda e: (e.name, e.value))


@functools.cache  # once per process
def _load_entry_point(entry_point: 'EntryPoint') -> None:
    """Imports the module of PACKAGE.versions or PACKAGE.versions:NAME, where NAME must then exist."""
    found, error = _attempt(lambda: _locate(entry_point), None)
    if found is not None:
        module, attribute, file = found
        _load(entry_point.name, module, file)
        if attribute and module in sys.modules:
            try:
                operator.attrgetter(attribute)(sys.modules[module])
            except AttributeError:
                error = f"its entry point is '{entry_point.value}', and {module} has no '{attribute}'"
    if error is not None:
        _broken[entry_point.value] = Entry(entry_point.name, '', entry_point.value, '', error=error)


def _locate(entry_point: 'EntryPoint') -> tuple[str, str, Path]:
    """(module, attribute or '', file) of an entry point.

    Imports the packages around the module. Raises ExperimentError, ModuleNotFoundError, and what they raise.
    """
    if entry_point.pattern.match(entry_point.value) is None:
        raise ExperimentError(
            f"its entry point must be PACKAGE.versions or PACKAGE.versions:NAME; given: '{entry_point.value}'"
        )
    module, attribute = entry_point.module, entry_point.attr
    spec = importlib.util.find_spec(module)
    if attribute and spec is not None and spec.submodule_search_locations is not None:
        inner = importlib.util.find_spec(f'{module}.{attribute}')
        if inner is not None:  # the attribute of the package is a module
            module, attribute, spec = inner.name, '', inner
    if spec is None or not spec.origin:
        raise ModuleNotFoundError(f"No module named '{module}'")
    return module, attribute, Path(spec.origin).resolve()


def _load(name: str, module: str, file: Path) -> None:
    """Imports a versions file unless that was done; what goes wrong becomes a broken entry called `name`."""
    global _importing
    if file in _imported or _registered_in(file):
        return
    _imported.add(file)
    before, _importing = _importing, True
    try:
        _, error = _attempt(lambda: _import(module, file), file.parent)
    except KeyboardInterrupt:
        _imported.discard(file)
        raise
    finally:
        _importing = before
    if error is None and not _declared_in(file):
        error = NO_RUNNER
    if error is not None:
        for registered in _registered_in(file):
            del _registered[registered.name]
        for clash in [key for key, e in _broken.items() if e.file == str(file)]:
            del _broken[clash]
        _broken[str(file)] = Entry(name, '', module, str(file), error=error)


def _import(module: str, file: Path) -> None:
    if module != str(file):
        importlib.import_module(module)
        return
    # A file of the user's: its folder becomes a package, so that relative imports between siblings work.
    folder = file.parent
    package = f'{USER_PACKAGE}{folder.name}_{abs(hash(str(folder))) % 10**8}'
    if package not in sys.modules:
        init = folder / '__init__.py'
        spec = importlib.util.spec_from_file_location(
            package, init if init.exists() else None, submodule_search_locations=[str(folder)]
        )
        if spec is None:  # no __init__.py: a namespace of that one folder
            spec = importlib.machinery.ModuleSpec(package, None, is_package=True)
            spec.submodule_search_locations = [str(folder)]
        parent = importlib.util.module_from_spec(spec)
        sys.modules[package] = parent
        if spec.loader and init.exists():
            spec.loader.exec_module(parent)
    importlib.import_module(f'{package}.{file.stem}')


def _attempt(action: Callable[[], Any], folder: Path | None) -> tuple[Any, str | None]:
    """(result, None) of an experiment's code, or (None, what it raised), SystemExit included.

    What it prints goes to stderr.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return action(), None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  an experiment may raise anything; it becomes its row
        return None, _explain(error, folder)


def _explain(error: BaseException, folder: Path | None) -> str:
    """Kind and message of an error, and its last place in `folder`, in one line without a full stop."""
    message, place = str(error), ''
    if isinstance(error, SyntaxError):
        message, place = error.msg, f'{error.filename}:{error.lineno}'
    elif folder is not None:
        frames = traceback.extract_tb(error.__traceback__)
        files = [f for f in frames if not f.filename.startswith('<')]
        own = [f for f in files if Path(f.filename).resolve().is_relative_to(folder)]
        place = f'{own[-1].filename}:{own[-1].lineno}' if own else ''
    message = ''.join(c for c in ' '.join(message.split()) if c.isprintable()).rstrip('.')
    kind = '' if isinstance(error, UserError) else type(error).__name__
    return ': '.join(filter(None, [kind, message])) + (f' ({place})' if place else '')
