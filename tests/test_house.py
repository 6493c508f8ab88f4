"""Rules of the house, read from the imports: experiments depend on the core, never the other way, never on each other."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / 'lmplay'
FILES = sorted(PACKAGE.rglob('*.py'))
EXPERIMENTS = sorted(f.name for f in (PACKAGE / 'exp').iterdir() if (f / 'versions.py').is_file())


def imports(file: Path) -> set[str]:
    """Absolute names of the modules of lmplay that a file imports, inside functions too."""
    package = ('lmplay', *file.relative_to(PACKAGE).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(package[: len(package) - node.level + 1]) if node.level else ''
            module = '.'.join(filter(None, [base, node.module or '']))
            found |= {module, *(f'{module}.{a.name}' for a in node.names)}
    return {name for name in found if name.startswith('lmplay.')}


def part(name: str) -> str:
    return '.'.join(name.split('.')[1:3])


@pytest.mark.parametrize('file', FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_run_one_way(file):
    names = imports(file)
    where = file.relative_to(PACKAGE).parts
    if where[0] == 'exp' and len(where) > 2:
        own = f'lmplay.exp.{where[1]}'
        for name in names:
            allowed = (
                name.startswith(
                    (own, 'lmplay.base', 'lmplay.modules', 'lmplay.data.tokenizers', 'lmplay.utils')
                )
                or name == 'lmplay.data'
            )
            assert allowed, f'{name}: an experiment imports base, modules and data.tokenizers only'
    elif where[0] in ('base', 'modules'):
        for name in names:
            assert (
                name.split('.')[1] in ('base', 'modules', 'utils')
                or name.startswith('lmplay.data.tokenizers')
                or name == 'lmplay.data'
            ), name
    else:
        for name in names:
            assert not name.startswith('lmplay.exp.') or where == ('__init__.py',), (
                f'{name}: the core names no experiment'
            )


def test_experiments_import_their_siblings_relatively():
    for file in (PACKAGE / 'exp').rglob('*.py'):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert not (node.module or '').startswith('lmplay.exp.'), (
                    f'{file}: copying the folder would break {node.module}'
                )


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_an_experiment_has_what_one_copies(name):
    folder = PACKAGE / 'exp' / name
    for needed in ('__init__.py', 'model.py', 'versions.py', 'README.md'):
        assert (folder / needed).is_file(), f'{name} lacks {needed}'


def test_the_core_has_no_branch_for_an_experiment():
    for file in FILES:
        if file.relative_to(PACKAGE).parts[0] in ('exp', '__init__.py'):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Compare):
                for value in node.comparators:
                    assert not (isinstance(value, ast.Constant) and value.value in EXPERIMENTS), (
                        f'{file}:{node.lineno}'
                    )
