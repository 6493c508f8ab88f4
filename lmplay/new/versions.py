"""Leaves one version in a versions.py: what the others alone use goes with them."""

import ast


def calls(tree: ast.AST, name: str) -> list[ast.Call]:
    """Calls of a function of that name, whatever module it is taken from."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            called = function.attr if isinstance(function, ast.Attribute) else getattr(function, 'id', None)
            if called == name:
                found.append(node)
    return found


def runners_of(tree: ast.AST) -> list[str]:
    """The names under which versions are exposed."""
    names = [call.args[0] for call in calls(tree, 'expose_runner') if call.args]
    return [name.value for name in names if isinstance(name, ast.Constant) and isinstance(name.value, str)]


def only_version(text: str, version: str) -> str:
    """The source of a versions.py with that version alone, and what it is made of.

    A version that another is made of is kept, and so is whatever is exposed in another way than by a
    decorated function.
    """
    tree = ast.parse(text)
    others = [s for s in tree.body if _exposes(s) and version not in _exposes(s)]
    kept = [s for s in tree.body if s not in others]
    while needed := [s for s in others if _names(s) & _used(kept)]:
        kept += needed
        others = [s for s in others if s not in needed]
    while unused := [s for s in kept if _names(s) & _used(others) and not _names(s) & _used(kept, but=s)]:
        others += unused
        kept = [s for s in kept if s not in unused]
    lost = _used(others) - _used(kept)
    shorter = {s: _shortened(s, lost) for s in kept if isinstance(s, ast.ImportFrom) and _names(s) & lost}
    return _rewritten(text, {s: '' for s in others} | shorter)


def _shortened(statement: ast.ImportFrom, lost: set[str]) -> str:
    """An import without the names that are lost."""
    left = [alias for alias in statement.names if (alias.asname or alias.name) not in lost]
    return ast.unparse(ast.ImportFrom(statement.module, left, statement.level)) + '\n'


def _exposes(statement: ast.stmt) -> list[str]:
    if not isinstance(statement, ast.FunctionDef):
        return []
    return [name for decorator in statement.decorator_list for name in runners_of(decorator)]


def _names(statement: ast.stmt) -> set[str]:
    """What a statement defines, where that is all it does."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Assign):
        return {target.id for target in statement.targets if isinstance(target, ast.Name)}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).split('.')[0] for alias in statement.names}
    return set()


def _used(statements: list[ast.stmt], but: ast.stmt | None = None) -> set[str]:
    """Names that the statements read."""
    nodes = [node for s in statements if s is not but for node in ast.walk(s)]
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _rewritten(text: str, changes: dict[ast.stmt, str]) -> str:
    """The source with statements exchanged; one that is left out takes the comments right above it along."""
    lines = text.splitlines(keepends=True)
    for statement, new in sorted(changes.items(), key=lambda change: change[0].lineno, reverse=True):
        decorators = statement.decorator_list if isinstance(statement, ast.FunctionDef) else []
        first = min([statement.lineno, *(d.lineno for d in decorators)]) - 1
        last = statement.end_lineno or statement.lineno
        while not new and first and lines[first - 1].startswith('#'):
            first -= 1
        while not new and last < len(lines) and not lines[last].strip():
            last += 1
        lines[first:last] = [new]
    return ''.join(lines).rstrip() + '\n'
