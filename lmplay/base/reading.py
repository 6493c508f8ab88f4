"""Reads what a `versions` module declares from its source, without running it: names, descriptions, parameters.

Used for `--exp list` and `--help`, which must answer at once and must not import torch or a broken experiment.
"""

import ast
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Declared:
    name: str
    description: str
    line: int
    parameters: dict


def module_file(module: str) -> Path | None:
    """The source file of a dotted module name, found without importing its parents, or None."""
    top, *rest = module.split('.')
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin else None
    for location in spec.submodule_search_locations or []:
        base = Path(location).joinpath(*rest)
        for file in (base.with_suffix('.py'), base / '__init__.py'):
            if file.is_file():
                return file
    return None


@cache
def _parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding='utf-8'), str(file))


@cache
def read_versions(file: Path) -> list[Declared] | None:
    """What the file exposes; None where a name is made by a program and only an import can tell.

    Raises OSError, SyntaxError or ImportError for a module that could not be imported either: it or a sibling does not
    parse, or it imports what is not there.
    """
    tree = _parse(file)
    imported = _check_imports(file, tree, set())
    declared, decorators = [], 0
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef):
            continue
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and _last(call.func) == 'expose_runner':
                decorators += 1
                values = {
                    'name': call.args[0] if call.args else None,
                    **{k.arg: k.value for k in call.keywords},
                }
                name, description = _literal(values.get('name')), _literal(values.get('description'), '')
                if not isinstance(name, str):
                    return None
                declared.append(Declared(name, description or '', node.lineno, _parameters(node, imported)))
    calls = sum(isinstance(n, ast.Call) and _last(n.func) == 'expose_runner' for n in ast.walk(tree))
    return declared if calls == decorators else None


def _last(node: ast.expr) -> str | None:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None


def _literal(node: ast.expr | None, otherwise=None):
    if node is None:
        return otherwise
    try:
        return ast.literal_eval(node)
    except ValueError:
        return otherwise


def _target(file: Path, node: ast.ImportFrom) -> Path | None:
    """The file that a relative import names, or of an absolute one within lmplay."""
    if node.level:
        folder = file.parent
        for _ in range(node.level - 1):
            folder = folder.parent
        parts = node.module.split('.') if node.module else []
        base = folder.joinpath(*parts)
        if base.with_suffix('.py').is_file() and parts:
            return base.with_suffix('.py')
        if base.is_dir():
            return base / '__init__.py'
        raise ImportError(
            f"{file.name} line {node.lineno}: no module '{'.' * node.level}{node.module or ''}' beside it"
        )
    if node.module and node.module.split('.')[0] == 'lmplay':
        target = module_file(node.module)
        if (
            target is None
            and not (Path(__file__).parent.parent.joinpath(*node.module.split('.')[1:])).is_dir()
        ):
            raise ImportError(f"{file.name} line {node.lineno}: no module '{node.module}'")
        return target
    return None


def _check_imports(file: Path, tree: ast.Module, seen: set[Path]) -> dict[str, tuple[Path, str]]:
    """Name in this module -> (file, name there) for what it takes from siblings and lmplay; follows siblings.

    Raises ImportError for a module or name that is not there.
    """
    seen.add(file)
    names = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                _check_top(file, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            if not node.level:
                _check_top(file, node.lineno, node.module or '')
            target = _target(file, node)
            if target is None or not target.is_file():
                continue
            provided = _provided(target)
            for alias in node.names:
                submodule = target.name == '__init__.py' and (
                    (target.parent / alias.name).is_dir() or (target.parent / f'{alias.name}.py').is_file()
                )
                if (
                    provided is not None
                    and alias.name not in provided
                    and alias.name != '*'
                    and not submodule
                ):
                    raise ImportError(
                        f"{file.name} line {node.lineno}: {target.name} defines no '{alias.name}'"
                    )
                names[alias.asname or alias.name] = (target, alias.name)
            if node.level and target not in seen:
                _check_imports(target, _parse(target), seen)
    return names


def _check_top(file: Path, line: int, module: str):
    top = module.split('.')[0]
    try:
        missing = top != 'lmplay' and importlib.util.find_spec(top) is None
    except (ImportError, ValueError):
        missing = True
    if missing:
        raise ImportError(f"{file.name} line {line}: no module named '{top}' is installed")


@cache
def _provided(file: Path) -> set[str] | None:
    """Names a module binds at its top level; None where that can't be read (star import, __getattr__)."""
    names: set[str] = set()
    for node in ast.walk(_parse(file)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            if any(a.name == '*' for a in node.names):
                return None
            names.update((a.asname or a.name).split('.')[0] for a in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return None if '__getattr__' in names else names


def _parameters(function: ast.FunctionDef, imported: dict) -> dict:
    """Parameters of the model that a runner function builds, with this version's defaults."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and _last(node.func) == 'BasicModelRunner' and node.args:
            model = _last(node.args[0])
            parameters = _class_parameters(*imported[model]) if model in imported else {}
            overrides = next((k.value for k in node.keywords if k.arg == 'overrides'), None)
            if isinstance(overrides, ast.Call):  # dict(a=1)
                parameters |= {
                    k.arg: _literal(k.value, ast.unparse(k.value)) for k in overrides.keywords if k.arg
                }
            elif isinstance(overrides, ast.Dict):
                parameters |= {
                    _literal(k): _literal(v, ast.unparse(v)) for k, v in zip(overrides.keys, overrides.values)
                }
            return parameters
    return {}


def _class_parameters(file: Path, name: str) -> dict:
    """Keyword parameters of a class's __init__ with their defaults; its base classes' where it passes **kwargs on."""
    tree = _parse(file)
    cls = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)
    if cls is None:
        return {}
    init = next((n for n in cls.body if isinstance(n, ast.FunctionDef) and n.name == '__init__'), None)
    if init is None or (init.args.kwarg and init.args.kwarg.arg != 'ignore'):
        inherited = {}
        imported = _check_imports(file, tree, set())
        for base in cls.bases:
            base_name = _last(base)
            if base_name in imported:
                inherited |= {} if base_name == 'LMBase' else _class_parameters(*imported[base_name])
            elif base_name:
                inherited |= _class_parameters(file, base_name)
        if init is None:
            return inherited
    else:
        inherited = {}
    args = init.args
    positional = args.args[1:]
    defaults = [None] * (len(positional) - len(args.defaults)) + list(args.defaults)
    own = {a.arg: _literal(d, ast.unparse(d) if d else None) for a, d in zip(positional, defaults)}
    own |= {
        a.arg: _literal(d, ast.unparse(d) if d else None) for a, d in zip(args.kwonlyargs, args.kw_defaults)
    }
    own.pop('version', None)
    return inherited | own
