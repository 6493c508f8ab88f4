"""The embedded corpus: code, prose and math that need nothing but the Python they run on.

code    the source files of the running Python's standard library
prose   their documentation: the docstrings of each module as one document, and the topics of `pydoc_data`
math    generated worded problems with worked solutions, see `problems`
"""

import ast
import hashlib
import io
import os
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ...errors import DataError
from . import problems as math_problems

DOMAINS = ('code', 'prose', 'math')
SKIPPED_FOLDERS = {
    'test',
    'tests',
    'idle_test',
    'site-packages',
    'dist-packages',
    '__pycache__',
    'lib-dynload',
}
SHORTEST_PROSE = 200  # characters; modules with less documentation than that have none to learn from


def library() -> list[tuple[str, Path]]:
    """(module name, file) of the standard library in order of names, without tests and generated tables.

    Raises DataError where this Python came without its sources.
    """
    root = Path(sysconfig.get_path('stdlib'))
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in SKIPPED_FOLDERS and not f.startswith('config-')]
        for file in files:
            path = Path(folder, file)
            module = '.'.join(path.relative_to(root).with_suffix('').parts).removesuffix('.__init__')
            # character tables, what this machine was built with, and the topics, which are prose
            if file.endswith('.py') and not module.startswith(
                ('encodings.', '_sysconfigdata', 'pydoc_data.topics')
            ):
                found.append((module, path))
    if not found:
        raise DataError(
            f"The dataset 'embedded' needs the source files of Python's standard library; "
            f'there are none in {root}.'
        )
    return sorted(found)


@cache
def content() -> str:
    """SHA-256 of all that the corpus is made from."""
    whole = hashlib.sha256(repr(sys.version_info[:2]).encode())
    own = (Path(__file__), Path(math_problems.__file__), math_problems.TEMPLATES)
    for file in [*own, *(path for _, path in library())]:
        whole.update(hashlib.sha256(file.read_bytes()).digest())
    for name, text in sorted(_topics().items()):
        whole.update(f'{name}\0{text}\0'.encode())
    return whole.hexdigest()


def documents(
    *, domains: list[str] | tuple[str, ...] = DOMAINS, problems: int = math_problems.COUNT, seed: int = 0
) -> Iterator[tuple[str, str, str, str]]:
    """(domain, text, prompt, group) in a fixed order; each prefix holds about the same share of every domain.

    A module's code and its prose are of one group, since the one contains the other.
    `problems` and `seed` are those of math.
    """
    modules = library()
    topics = sorted(_topics().items()) if 'prose' in domains else []
    math = math_problems.problems(seed)
    n = len(modules)
    for i, (module, path) in enumerate(modules):
        source = _source(path) if {'code', 'prose'} & set(domains) else ''
        if 'code' in domains and source.strip():
            yield 'code', source, '', module
        if 'prose' in domains:
            text = _docstrings(module, source)
            if len(text) >= SHORTEST_PROSE:
                yield 'prose', text, '', module
            for name, topic in topics[len(topics) * i // n : len(topics) * (i + 1) // n]:
                yield 'prose', topic, '', f'topic {name}'
        if 'math' in domains:
            for _ in range(problems * i // n, problems * (i + 1) // n):
                problem, solution = next(math)
                yield 'math', solution, problem + '\n', ''


def _source(path: Path) -> str:
    encoding, _ = tokenize.detect_encoding(io.BytesIO(data := path.read_bytes()).readline)
    return data.decode(encoding)


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out
        return {}
    return topics


def _docstrings(module: str, source: str) -> str:
    """The docstrings of a module, of its classes and functions, each under its name."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a template, not a module
        return ''
    parts = []

    def visit(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> None:
        text = ast.get_docstring(node)
        if text and not text.isspace():
            parts.append(f'{name}\n\n{text}')
        for child in node.body:
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                visit(child, f'{name}.{child.name}')

    visit(tree, module)
    return '\n\n'.join(parts)
