"""Copies an experiment's folder under a new name: class, runners and README carry it;
the code stays as it is."""

import ast
import io
import keyword
import os
import re
import shutil
import tempfile
import tokenize
from pathlib import Path

from ..base.runner_list import find_entry, list_experiments
from ..errors import ExperimentError
from .versions import calls, only_version, runners_of

README = """\
# {name}

Begun as a copy of `{base}`.

- change: what is different
- expected: why it should help, and by how much
- measured: what came of it, with its command and date

```bash
lmp_new --check {name}                                    # after every edit
lmp_compare {base} {name} --plan quickstart --seeds 3     # did it help?
```
"""
IGNORED = shutil.ignore_patterns('__pycache__', '*.pyc', '.*')


def check_name(name: str, folder: Path) -> None:
    """Raises ExperimentError for a name that can't be a Python module, or is taken."""
    if not re.fullmatch(r'[a-z][a-z0-9_]*', name) or keyword.iskeyword(name):
        raise ExperimentError(
            f"An experiment's name is made of small letters, digits and underscores, and begins with a "
            f"letter; given: '{name}'."
        )
    if name == 'list' or len(name) > 60:
        raise ExperimentError(
            "An experiment's name has at most 60 letters, and is not 'list', which lmp_trainer --exp keeps "
            f"for itself; given: '{name}'."
        )
    taken = next((e for e in list_experiments() if e.name == name), None)
    if taken is not None:
        raise ExperimentError(f"The name '{name}' is taken: {taken.where}.")
    if (folder / name).exists():
        raise ExperimentError(f"'{folder / name}' exists already; nothing was changed.")


def class_name(name: str) -> str:
    """my_experiment -> MyExperiment"""
    return ''.join(part.capitalize() for part in name.split('_'))


def copy_experiment(name: str, *, origin: str, folder: Path, all_versions: bool = False) -> Path:
    """Copies the folder of experiment `origin` to folder/name, with that version or with all, and renames;
    returns the new folder, which appears whole or not at all.

    Raises ExperimentError for an unknown origin, a bad or taken name, and a folder that can't be written.
    """
    entry = find_entry(origin)
    source = Path(entry.file).resolve()
    check_name(name, folder)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f'.{name}-', dir=folder))
        try:
            new = temporary / name
            shutil.copytree(source.parent, new, ignore=IGNORED)
            rename(new, name, base=entry.name, all_versions=all_versions)
            os.rename(new, folder / name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise ExperimentError(f"Can't write '{folder / name}': {error.strerror or error}.") from error
    return folder / name


def rename(folder: Path, name: str, *, base: str, all_versions: bool) -> None:
    """Gives the copy in `folder` its name, strings that are names of runners and the model classes, and its
    README."""
    file = folder / 'versions.py'
    text = file.read_text(encoding='utf-8')
    every = runners_of(ast.parse(text))
    text = text if all_versions else only_version(text, base)
    file.write_text(text, encoding='utf-8')
    versions = ast.parse(text)
    left = runners_of(versions)
    runners = {r: _runner_name(r, name, base) if r in left else name for r in every}
    models = list(dict.fromkeys(_models(versions)))
    classes = {m: class_name(name) + (m.removeprefix(models[0]) if m != models[0] else '') for m in models}
    sources = [file.read_text(encoding='utf-8') for file in folder.rglob('*.py')]
    used = {
        t.string
        for text in sources
        for t in tokenize.generate_tokens(io.StringIO(text).readline)
        if t.type == tokenize.NAME
    }
    if clash := set(classes.values()) & used:
        raise ExperimentError(
            f"The model's class would be called {min(clash)}, a name that the code of '{base}' uses for "
            f"something else; given: '{name}'. Choose another."
        )
    for file in sorted(folder.rglob('*.py')):
        text = file.read_text(encoding='utf-8')
        file.write_text(_replace(text, runners, classes, base), encoding='utf-8')
    (folder / 'README.md').write_text(README.format(name=name, base=base), encoding='utf-8')


def _runner_name(runner: str, name: str, base: str) -> str:
    """Copying gpt2ish: gpt2ish -> new, gpt2ish_med -> new_med, s_gpt2ish -> s_new,
    test_runner -> new_test_runner"""
    return runner.replace(base, name) if base in runner else f'{name}_{runner}'


def _models(tree: ast.Module) -> list[str]:
    models = [call.args[0] for call in calls(tree, 'BasicModelRunner') if call.args]
    return [model.id for model in models if isinstance(model, ast.Name)]


def _descriptions(text: str) -> set[tuple[int, int]]:
    """Where the descriptions of runners stand, as the parser counts: (line, byte)."""
    keywords = [k for call in calls(ast.parse(text), 'expose_runner') for k in call.keywords]
    values = [k.value for k in keywords if k.arg == 'description']
    return {(v.lineno, v.col_offset) for v in values if isinstance(v, ast.Constant)}


def _replace(text: str, runners: dict[str, str], classes: dict[str, str], base: str) -> str:
    """The source with names exchanged: strings that are exactly a runner's, identifiers that are exactly a
    class's.

    A runner's description says where it comes from.
    """
    descriptions = _descriptions(text)
    lines = text.splitlines(keepends=True)
    for token in reversed(list(tokenize.generate_tokens(io.StringIO(text).readline))):
        new = None
        if token.type == tokenize.NAME:
            new = classes.get(token.string)
        elif token.type == tokenize.STRING and token.start[0] == token.end[0]:
            try:
                value = ast.literal_eval(token.string)
            except (SyntaxError, ValueError):
                continue
            row, column = token.start
            place = (row, len(lines[row - 1][:column].encode()))  # the parser counts bytes
            if place in descriptions:
                new = repr(f'From {base}: {value}')
            elif isinstance(value, str) and value in runners:
                new = repr(runners[value])
        if new is not None:
            line = lines[token.start[0] - 1]
            lines[token.start[0] - 1] = line[: token.start[1]] + new + line[token.end[1] :]
    return ''.join(lines)
