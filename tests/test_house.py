"""Rules of the house, read from the imports: experiments depend on the core, never the other way,
never on each other."""

import ast
import re
import sys
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


# Top to bottom: what stands in one row imports what stands in rows below it, never the reverse, never its own
# row.
ORDER = (
    {'new', 'compare'},
    {'routing', 'evaluation'},
    {'train'},
    {'plots', 'generate', 'export'},  # a run draws its curves and writes a sample when it ends
    {'checks', 'huggingface'},
    {'runs'},
    {'data'},
    {'base'},
    {'modules'},
    {'tokenizers'},
    {'files', 'cli', 'utils', 'callable_package', 'original'},
    {'device'},
    {'errors'},
)
LEVEL = {package: level for level, row in enumerate(reversed(ORDER)) for package in row}
FOR_EXPERIMENTS = {'base', 'modules', 'tokenizers', 'errors', 'cli', 'files', 'device', 'utils'}
FORMER_HOMES = (
    'base/errors.py',
    'base/runners.py',
    'data/tokenizers.py',
)  # aliases of before


def imported_packages(file: Path) -> set[str]:
    return {name.split('.')[1] for name in imports(file)} - {'__version__'}


def package_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix('').parts[0]


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


def test_no_two_packages_import_each_other():
    """Circles of any length, found by taking away what imports nothing that is left."""
    graph = {}
    for file in FILES:
        graph.setdefault(package_of(file), set()).update(imported_packages(file) - {package_of(file)})
    graph.pop('__init__')
    while free := [package for package, others in graph.items() if not others & graph.keys()]:
        for package in free:
            del graph[package]
    assert not graph, f'these import each other: {graph}'


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
