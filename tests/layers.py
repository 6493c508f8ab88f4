"""The layers of the package and who imports whom, read from the source: what tests/test_house.py checks and
the documentation draws."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / 'lmplay'
FILES = sorted(PACKAGE.rglob('*.py'))

# Top to bottom: what stands in one row imports what stands in rows below it, never the reverse, never its own
# row.
ORDER = (
    {'new', 'compare'},
    {'evaluation', 'routing'},
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
FOR_EXPERIMENTS = {'base', 'modules', 'tokenizers', 'errors', 'cli', 'files', 'device', 'utils'}


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


def imported_packages(file: Path) -> set[str]:
    return {name.split('.')[1] for name in imports(file)} - {'__version__'}


def package_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix('').parts[0]


def graph() -> dict[str, set[str]]:
    """Package -> the other packages that it imports; `__init__`, which imports on demand, is left out."""
    found: dict[str, set[str]] = {}
    for file in FILES:
        found.setdefault(package_of(file), set()).update(imported_packages(file) - {package_of(file)})
    del found['__init__']
    return found
