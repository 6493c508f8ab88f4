"""Registry of experiments: `expose_runner` registers, `list_experiments` lists, `find_runner` loads one by its name.

Listing must be quick and must survive a broken experiment, so it READS the `versions` modules (lmplay/base/reading.py)
and imports none of them; only what can't be read that way (names made by a program) is imported. `find_runner` imports the
one module that declares the name.
"""

import functools
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ExperimentError, unknown
from . import reading

ENTRY_POINT_GROUP = 'lmplay.experiments'


@dataclass(frozen=True)
class Entry:
    """A row of the list: an experiment version, or a module that is broken (`error` is then set)."""

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
    """A runner function with what `expose_runner` was told of it."""

    name: str
    description: str
    function: Callable
    where: str


_registered: dict[str, Registered] = {}


def expose_runner(name: str, *, description: str = '') -> Callable:
    """Registers the decorated function as experiment version `name`.

    The function returns a `BasicModelRunner`. Raises ExperimentError where another function has the name already;
    importing the same module twice registers nothing twice.
    """
    if not isinstance(name, str) or not name:
        raise ExperimentError(f'expose_runner needs a name, a non-empty string; given: {name!r}.')

    def register(function: Callable) -> Callable:
        code = inspect.unwrap(function).__code__
        where = f'{code.co_filename}:{code.co_firstlineno}'
        known = _registered.get(name)
        if known is not None and known.where != where:
            raise ExperimentError(_clash(name, known.where, where))

        @functools.wraps(function)
        def checked(*args, **kwargs):
            runner = function(*args, **kwargs)
            if not hasattr(runner, 'build'):
                raise ExperimentError(
                    f"The runner of experiment '{name}' ({where}) must return a BasicModelRunner; given: {type(runner).__name__}."
                )
            return runner

        _registered[name] = Registered(name, description, checked, where)
        return function

    return register


def _clash(name: str, first: str, second: str) -> str:
    return f"Two experiments are named '{name}': one at {first}, one at {second}. Rename one of them."


def _version_files() -> list[tuple[str, Path]]:
    """(module name, file) of each `versions` module: those of lmplay.exp, then those of installed packages."""
    root = Path(__file__).resolve().parent.parent / 'exp'
    found = []
    for file in sorted(root.rglob('versions.py')):
        module = '.'.join(('lmplay', 'exp', *file.relative_to(root).with_suffix('').parts))
        found.append((module, file))
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        file = reading.module_file(entry_point.value)
        found.append((entry_point.value, file if file else Path(entry_point.value)))
    return found


def list_experiments(extra: str | Path | None = None) -> list[Entry]:
    """Every experiment version, sorted by name, broken modules last. `extra`: the path of one more versions.py."""
    entries = []
    for module, file in [*_version_files(), *([(str(extra), Path(extra))] if extra else [])]:
        entries.extend(_read(module, file))
    seen: dict[str, Entry] = {}
    for i, entry in enumerate(entries):
        first = seen.setdefault(entry.name, entry)
        if entry.error is None and first is not entry and first.where != entry.where:
            entries[i] = Entry(
                entry.name,
                entry.description,
                entry.module,
                entry.file,
                entry.line,
                error=_clash(entry.name, first.where, entry.where),
            )
    return sorted(entries, key=lambda e: (e.error is not None, e.name))


def _read(module: str, file: Path) -> list[Entry]:
    broken_name = (
        Path(module).parent.name
        if module.endswith('.py')
        else module.removesuffix('.versions').split('.')[-1]
    )
    try:
        declared = reading.read_versions(file)
    except (OSError, SyntaxError, ImportError, ValueError) as error:
        return [Entry(broken_name, '', module, str(file), error=f'{type(error).__name__}: {error}')]
    if declared is not None:
        return [Entry(d.name, d.description, module, str(file), d.line, d.parameters) for d in declared]
    before = set(_registered)  # names that only running the module tells
    try:
        _import(module, file)
    except Exception as error:  # noqa: BLE001  an experiment's import may raise anything; it becomes its row
        return [Entry(broken_name, '', module, str(file), error=f'{type(error).__name__}: {error}')]
    mine = [r for r in _registered.values() if r.name not in before or r.where.startswith(f'{file}:')]
    return [Entry(r.name, r.description, module, str(file), int(r.where.rsplit(':', 1)[1])) for r in mine]


def _import(module: str, file: Path):
    if not module.endswith('.py'):
        return importlib.import_module(module)
    # A file of the user's: its folder becomes a package, so that relative imports between siblings work.
    folder = Path(file).resolve().parent
    package = f'lmplay_user_{folder.name}_{abs(hash(str(folder))) % 10**8}'
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
    return importlib.import_module(f'{package}.{Path(file).stem}')


def find_entry(name: str) -> Entry:
    """The entry of experiment `name`; of a versions.py given by its path, the first version or the one in PATH:VERSION."""
    path, _, version = name.partition('.py:')
    if version or name.endswith('.py'):
        name = f'{path}.py' if version else name
        file = Path(name)
        if not file.is_file():
            raise ExperimentError(
                f"No such file for --exp: '{name}'. Give an experiment's name or the path of its versions.py."
            )
        own = [e for e in list_experiments(file) if e.module == name]
        broken = next((e for e in own if e.error), None)
        if broken:
            raise ExperimentError(f"Experiment file '{name}' is broken: {broken.error}")
        if not own:
            try:
                _import(name, file)
            except Exception as error:
                raise ExperimentError(
                    f"Experiment file '{name}' fails to import: {type(error).__name__}: {error}"
                ) from error
            raise ExperimentError(
                f"'{name}' exposes no runner: decorate a function with @expose_runner('name')."
            )
        if version:
            if version not in (e.name for e in own):
                raise ExperimentError(unknown('experiment', version, (e.name for e in own), name))
            return next(e for e in own if e.name == version)
        return min(own, key=lambda e: e.line)
    entries = list_experiments()
    match = [e for e in entries if e.name == name]
    if not match:
        raise ExperimentError(unknown('experiment', name, (e.name for e in entries if not e.error)))
    broken = next((e for e in match if e.error), None)
    if broken:
        raise ExperimentError(f"Experiment '{name}' is broken ({broken.where}): {broken.error}")
    return match[0]


def find_runner(name: str) -> Registered:
    """Imports the module that declares experiment `name` (or the versions.py at that path) and returns its runner.

    Raises ExperimentError for a name that is unknown, taken twice, or whose module fails to import.
    """
    entry = find_entry(name)
    if entry.name not in _registered:
        try:
            _import(entry.module, Path(entry.file))
        except ExperimentError:
            raise
        except Exception as error:
            raise ExperimentError(
                f"Experiment '{entry.name}' ({entry.where}) fails to import: {type(error).__name__}: {error}"
            ) from error
    return _registered[entry.name]
