"""What a dataset's spec may say, and its resolution: loader, named dataset, form of the original lmplay."""

import json
import re
from collections.abc import Iterable
from typing import Any

from ..errors import DataError, unknown
from ..files import user_path
from . import embedded, local
from .named import NAMED

COLUMN_KEYS = {
    'text': str,
    'prompt': (str, list),
    'separator': str,
    'messages': str,
    'template': dict,
    'turns': str,
    'domain_column': str,
    'document_start': str,
}
PATH_KEYS = {'path': (str, list), 'validation': (str, list)}
KEYS: dict[str, dict[str, Any]] = {  # loader -> what its spec may hold besides COMMON_KEYS, and its type
    'json': PATH_KEYS | COLUMN_KEYS,
    'csv': PATH_KEYS | COLUMN_KEYS | {'delimiter': str},
    'parquet': PATH_KEYS | COLUMN_KEYS,
    'text': PATH_KEYS | {'delimiter': str},
    'hub': {
        'hub': str,
        'config': str,
        'language': str,
        'snapshot': str,
        'revision': str,
        'split': str,
        'validation': str,
        **COLUMN_KEYS,
    },
    'saved': {'path': str, 'split': str, 'validation': str} | COLUMN_KEYS,
    'embedded': {'domains': list, 'problems': int, 'seed': int},
}
FILE_LOADERS = tuple(loader for loader, keys in KEYS.items() if keys.get('path') == (str, list))
COMMON_KEYS: dict[str, Any] = {
    'loader': str,
    'description': str,
    'domain': str,
    'limit': int,
    'validation_limit': int,
    'max_bytes': int,
    'total_chars': int,
    'min_chars': int,
    'max_chars': int,
    'hold_out': str,
    'evaluation_share': float,
    'evaluation_least': int,
    'evaluation_most': float,
}
SHARES = ('evaluation_share', 'evaluation_least', 'evaluation_most')
LIMITS = ('limit', 'max_bytes', 'total_chars')
MOST = 2**63 - 1
TYPE_NAMES = {
    str: 'a string',
    int: 'a whole number',
    float: 'a number',
    list: 'a list of strings',
    dict: 'an object of strings',
    (str, list): 'a string or a list of strings',
}
ORIGINAL_KEYS = ('ds_loader', 'args', 'kwargs')
ORIGINAL_COLUMNS = ('truth_column', 'prompt_column', 'text_column')


def check_spec(name: str, spec: dict | None) -> None:
    """Checks a dataset's spec without reading any data. Raises DataError that names the key at fault."""
    resolve(name, spec)


def resolve(name: str, spec: dict | None) -> dict[str, Any]:
    """The spec with its loader and whatever it takes from a named dataset filled in, checked."""
    where = f"dataset '{name}'"
    if spec is None:
        spec = _spec_of_name(name)
    if not isinstance(spec, dict):
        raise DataError(f'{where}: expected an object with keys such as "loader" and "path", found {spec!r}.')
    if 'ds_loader' in spec:
        spec = _from_original(where, spec)
    spec = _with_loader(where, name, spec)
    _check(where, spec)
    return spec


def _spec_of_name(name: str) -> dict[str, Any]:
    if name in NAMED:
        return {'loader': name}
    loader = local.loader_of(name)
    if loader:
        return {'loader': loader, 'path': name}
    if name and user_path(name).is_dir():
        raise DataError(
            f"dataset '{name}': the folder holds {local.contents(name)}, and no file whose suffix says what "
            f'it is ({", ".join(local.SUFFIXES)}). Define it in the plan with a "path" and a "loader".'
        )
    if name and user_path(name).exists():
        raise DataError(
            f"dataset '{name}': its name does not say what it holds (known: {', '.join(local.SUFFIXES)}, a "
            f'folder of such files, or one saved by `datasets`). Define it in the plan with a loader: '
            f'{{"loader": "text", "path": {json.dumps(name)}}} takes a file as one document.'
        )
    if local.looks_like_a_path(name):
        local.find_files(name, where=f"dataset '{name}'", loader='text')  # says what is not there
    if re.fullmatch(r'[\w.-]+/[\w.-]+', name):
        return {'loader': 'hub', 'hub': name}
    raise DataError(unknown('dataset', name, [*NAMED, 'hub-user/hub-name', 'path/to/files*.jsonl']))


def _with_loader(where: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """The spec with a loader of KEYS, over the named dataset where it names one."""
    loader = spec.get('loader') or _loader_of_data(spec) or name
    if not isinstance(loader, str):
        raise DataError(f'{where}: "loader" must be a string, not {json.dumps(loader)}.')
    if loader in KEYS:
        return {**spec, 'loader': loader}
    if loader in NAMED:
        return _over_named(NAMED[loader], spec)
    if 'loader' in spec:
        raise DataError(unknown('loader', loader, [*KEYS, *NAMED], where))
    raise DataError(
        f'{where}: needs a "loader" (one of {", ".join(KEYS)}, or a named dataset), a "path" or a "hub" id.'
    )


def _loader_of_data(spec: dict[str, Any]) -> str | None:
    """The loader that a spec's hub id or first path implies."""
    if 'hub' in spec:
        return 'hub'
    path = spec.get('path')
    first = path[0] if isinstance(path, list) and path else path
    return local.loader_of(first) if isinstance(first, str) else None


def _over_named(named: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """A named dataset with what `spec` sets, without what that replaces.

    Columns of text and prompt replace messages, and the reverse; held-out text of its own replaces a share.
    """
    replaced: tuple[str, ...] = ()
    if 'messages' in spec:
        replaced = ('text', 'prompt', 'separator')
    elif 'text' in spec or 'prompt' in spec:
        replaced = ('messages',)
    if 'validation' in spec or 'hold_out' in spec:
        replaced += SHARES
    kept = {key: value for key, value in named.items() if key not in replaced}
    return {**kept, **spec, 'loader': named['loader']}


def _check(where: str, spec: dict[str, Any]) -> None:
    loader = spec['loader']
    allowed = COMMON_KEYS | KEYS[loader]
    _check_keys(spec, allowed, f'{where} (loader {loader})')
    for key, value in spec.items():
        if problem := _problem(key, value, allowed[key]):
            raise DataError(f'{where}: "{key}" {problem}.')
    for broken, rule in _rules(spec):
        if broken:
            raise DataError(f'{where}: {rule}.')
    for domain in spec.get('domains', ()):
        if domain not in embedded.DOMAINS:
            raise DataError(unknown('domain', domain, embedded.DOMAINS, where))


def _check_keys(keys: Iterable[str], allowed: Iterable[str], where: str) -> None:
    for key in keys:
        if key not in allowed:
            raise DataError(unknown('key', key, allowed, where))


def _problem(key: str, value: object, kind: Any) -> str:
    """What is wrong with the value of a key, '' where nothing is."""
    if not _is_a(kind, value):
        return f'must be {TYPE_NAMES[kind]}, not {json.dumps(value, default=repr)}'
    least = 0 if key == 'seed' else 1
    if kind is float:
        return '' if 0 < float(str(value)) < 1 else f'must be above 0 and below 1, not {value}'
    if isinstance(value, int) and value < least:
        return f'must be at least {least}, not {value}'
    if value == '':
        return 'is empty'
    if isinstance(value, int) and value > MOST:
        return f'must be at most {MOST}'
    if not _is_text(value):
        return f'holds what is not a character: {ascii(value)[:100]}'
    if key == 'document_start':
        try:
            re.compile(str(value))
        except re.error as error:
            return f'is not a regular expression ({error})'
    return ''


def _is_text(value: object) -> bool:
    """Whether it holds no half of a surrogate pair."""
    return not any('\ud800' <= c <= '\udfff' for part in _parts(value) for c in part)


def _parts(value: object) -> list[str]:
    return value if isinstance(value, list) else [str(value)]


def _is_a(kind: Any, value: object) -> bool:
    if isinstance(value, dict):
        return kind is dict and bool(value) and all(isinstance(v, str) for v in value.values())
    if isinstance(value, list):
        return isinstance(value, kind) and bool(value) and all(isinstance(v, str) for v in value)
    return isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)


def _rules(spec: dict[str, Any]) -> Iterable[tuple[bool, str]]:
    """(whether the spec breaks it, rule) of each rule on which keys go together."""
    keys, loader = spec.keys(), spec['loader']
    needed = {'hub': 'hub', 'embedded': 'loader'}.get(loader, 'path')
    return (
        (needed not in keys, f'loader {loader} needs "{needed}"'),
        (
            'messages' in keys and not keys.isdisjoint({'text', 'prompt'}),
            '"messages" holds prompt and text; it can\'t be combined with "text" or "prompt"',
        ),
        (
            'document_start' in keys and not keys.isdisjoint({'prompt', 'messages'}),
            '"document_start" joins rows of text; it can\'t be combined with "prompt" or "messages"',
        ),
        (
            not keys.isdisjoint({'template', 'turns'}) and 'messages' not in keys,
            '"template" and "turns" are of "messages", and there are none',
        ),
        (
            spec.get('turns') not in (None, 'last', 'all'),
            f'"turns" is "last" or "all", of the assistant\'s turns; not {spec.get("turns")!r}',
        ),
        (
            any(text.count('{content}') != 1 for text in spec.get('template', {}).values())
            or 'assistant' not in spec.get('template', {'assistant': ''}),
            '"template" gives for "assistant" and each other role a text with {content} in it, once',
        ),
        (
            loader == 'csv' and len(spec.get('delimiter', ',')) != 1,
            f'"delimiter" of a csv is one character, not {spec.get("delimiter")!r}',
        ),
        (
            ('language' in keys) != ('snapshot' in keys),
            '"language" and "snapshot" go together, as in Wikipedia\'s config 20231101.en',
        ),
        (
            spec.get('hold_out') not in (None, 'documents', 'ends'),
            f'"hold_out" is "documents" or "ends" (the last 5 % of each), not {spec.get("hold_out")!r}',
        ),
        (
            'hold_out' in keys and 'validation' in keys,
            '"hold_out" divides a dataset that has no "validation" of its own',
        ),
        (
            not keys.isdisjoint(SHARES) and ('validation' in keys or spec.get('hold_out') == 'ends'),
            f'"{next((k for k in SHARES if k in keys), "")}" chooses documents to hold out, and "validation" '
            'or "hold_out": "ends" leaves none to choose',
        ),
        (
            spec.get('min_chars', 0) > spec.get('max_chars', float('inf')),
            f'"min_chars" {spec.get("min_chars")} is above "max_chars" {spec.get("max_chars")}',
        ),
        (
            'separator' in keys and 'prompt' not in keys,
            '"separator" stands between "prompt" and "text"; there is no "prompt"',
        ),
        (
            'validation_limit' in keys and 'validation' not in keys,
            '"validation_limit" needs "validation", the rows that it limits',
        ),
    )


def _from_original(where: str, spec: dict[str, Any]) -> dict[str, Any]:
    """The spec of a dataset in the original lmplay's form: {"ds_loader": ..., "args": [...], "kwargs":
    {...}}."""
    _check_keys(spec, ORIGINAL_KEYS, where)
    loader, args, kwargs = spec['ds_loader'], spec.get('args', []), spec.get('kwargs', {})
    strings = isinstance(args, list) and all(isinstance(a, str) for a in args)
    if not strings or not isinstance(kwargs, dict):
        raise DataError(f'{where}: "args" must be a list of strings and "kwargs" an object.')
    if loader == 'openorca':
        return {'loader': 'openorca'}
    if loader == 'wiki':
        return {'loader': 'wikipedia', 'language': args[0] if args else 'en'}
    if loader == 'hf':
        return _from_original_hub(where, args, kwargs)
    raise DataError(unknown('ds_loader', loader, ['hf', 'wiki', 'openorca'], where))


def _from_original_hub(where: str, args: list[str], kwargs: dict[str, Any]) -> dict[str, Any]:
    if not 2 <= len(args) <= 3:
        raise DataError(
            f'{where}: "args" of ds_loader hf must be a name, a hub id and optionally a config; found {args}.'
        )
    _check_keys(kwargs, ORIGINAL_COLUMNS, f'{where}, kwargs')
    text = kwargs.get('truth_column') or kwargs.get('text_column') or 'text'
    spec = {'loader': 'hub', 'hub': args[1], 'messages' if text == 'messages' else 'text': text}
    if len(args) == 3:
        spec['config'] = args[2]
    if kwargs.get('prompt_column'):
        spec['prompt'] = kwargs['prompt_column']
    return spec
