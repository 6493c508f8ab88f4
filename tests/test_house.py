"""Rules of the house, read from the imports: experiments depend on the core, never the other way,
never on each other."""

import ast
import re
import sys

import pytest

from tests.layers import FILES, FOR_EXPERIMENTS, ORDER, PACKAGE, graph, imported_packages, imports, package_of

EXPERIMENTS = sorted(f.name for f in (PACKAGE / 'exp').iterdir() if (f / 'versions.py').is_file())
LEVEL = {package: level for level, row in enumerate(reversed(ORDER)) for package in row}


@pytest.mark.parametrize('file', FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_run_one_way(file):
    package = package_of(file)
    others = imported_packages(file) - {package}
    if package == 'exp':
        own = '.'.join(('lmplay', *file.relative_to(PACKAGE).parts[:2]))
        foreign = {
            name for name in imports(file) if name.startswith('lmplay.exp.') and not name.startswith(own)
        }
        assert not foreign, 'an experiment imports no other one'
        assert others <= FOR_EXPERIMENTS, f'an experiment imports {sorted(FOR_EXPERIMENTS)} only'
    elif package != '__init__':
        assert 'exp' not in others, 'the core names no experiment'
        upwards = {name for name in others if LEVEL[name] >= LEVEL[package]}
        assert not upwards, f'{package} stands below {sorted(upwards)}'


def test_every_package_has_its_place():
    assert {package_of(f) for f in FILES} - {'__init__', 'exp'} == LEVEL.keys()


def test_the_architecture_page_shows_the_layers():
    page = (PACKAGE.parent / 'docs' / 'architecture.md').read_text()
    rows = page.split('<!-- layers -->\n```\n')[1].split('\n```')[0].splitlines()
    assert [set(row.split(', ')) for row in rows] == list(ORDER)


def test_no_two_packages_import_each_other():
    """Circles of any length, found by taking away what imports nothing that is left."""
    left = graph()
    while free := [package for package, others in left.items() if not others & left.keys()]:
        for package in free:
            del left[package]
    assert not left, f'these import each other: {left}'


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


LINES, BRANCHES = 40, 10
BRANCH = (ast.If, ast.For, ast.While, ast.IfExp, ast.ExceptHandler)


@pytest.mark.parametrize('file', FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_functions_are_short(file):
    """Signature and docstring are not counted, nor a table without a branch: of flags, or of rules."""
    for function in ast.walk(ast.parse(file.read_text())):
        if isinstance(function, ast.FunctionDef):
            body = function.body[1 if ast.get_docstring(function) else 0 :]
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            branches = sum(isinstance(node, BRANCH) for node in ast.walk(function))
            where = f'{file.relative_to(PACKAGE)}:{function.lineno} {function.name}'
            assert branches <= BRANCHES, f'{where} has {branches} branches'
            assert not branches or lines <= LINES, f'{where} has {lines} lines'


MODULES = {'PyYAML': 'yaml', 'lm-eval': 'lm_eval'}  # where a package is imported under another name


def test_every_dependency_is_used_and_explained():
    setup = (PACKAGE.parent / 'setup.py').read_text()
    required = re.findall(
        r"'([\w-]+)>=", setup[setup.index('install_requires') : setup.index('extras_require')]
    )
    code = '\n'.join(f.read_text() for f in FILES)
    page = (PACKAGE.parent / 'docs' / 'dependencies.md').read_text()
    for name in required:
        assert f'| `{name}` |' in page, f'docs/dependencies.md does not say what {name} is for'
        module = MODULES.get(name, name)
        assert re.search(rf'(import|from) {module}\b', code), f'{name} is required and never imported'
    explained = re.findall(r'^\| `([\w-]+)` \|', page, re.M)
    assert set(explained) <= set(required)


def test_benchmarks_and_tests_import_only_what_their_extras_install():
    """A package that is there by accident (another one needs it) is missing in the next environment."""
    root = PACKAGE.parent
    setup = (root / 'setup.py').read_text()
    declared = {MODULES.get(name, name) for name in re.findall(r"'([\w-]+)>=", setup)}
    optional = {'triton', 'tiktoken_ext', 'pyarrow'}  # come with torch, tiktoken, datasets
    for file in [*(root / 'benchmarks').rglob('*.py'), *(root / 'tests').rglob('*.py')]:
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or '']
            for name in {n.split('.')[0] for n in names}:
                known = name in sys.stdlib_module_names or name in {'lmplay', 'tests', 'benchmarks'}
                assert known or name in declared | optional, f'{file.relative_to(root)} imports {name}'
