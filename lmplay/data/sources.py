"""Where text comes from: named datasets, the Hugging Face hub, local files, the embedded corpus."""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import DataError, unknown
from . import embedded, local

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """A document.

    text    what is learned; in a pair of prompt and answer, the answer
    prompt  what precedes it, to the last character; scored only where the stage sets include_prompts
    domain  what evaluation reports it under; '' for the dataset's name
    group   documents of one group fall on the same side of the train/validation split; '' to split by content
    split   'train' or 'validation' where the dataset has a split of its own, else ''
    """

    text: str
    prompt: str = ''
    domain: str = ''
    group: str = ''
    split: str = ''


STUDY = {
    'max_chars': 9_999,
    'total_chars': 10 * 1024 * 1024,
    'evaluation_share': 0.05,
    'evaluation_least': 10,
    'evaluation_most': 0.1,
}
NAMED: dict[str, dict] = {
    'embedded': {
        'loader': 'embedded',
        'description': "Python's own library as code and prose, generated math problems; no network; 16 MB",
    },
    'wikipedia': {
        'loader': 'hub',
        'hub': 'wikimedia/wikipedia',
        'language': 'en',
        'snapshot': '20231101',
        'description': 'articles of Wikipedia, any language and snapshot; English: 6.4 M articles, 20 GB',
    },
    'wikitext': {
        'loader': 'hub',
        'hub': 'Salesforce/wikitext',
        'config': 'wikitext-103-raw-v1',
        'validation': 'validation',
        'document_start': r'^ = [^=].*[^=] = \n?$',  # the hub has a line per row; a title begins an article
        'description': 'WikiText-103, good and featured articles of Wikipedia, own validation split; 540 MB',
    },
    'tinystories': {
        'loader': 'hub',
        'hub': 'roneneldan/TinyStories',
        'validation': 'validation',
        'description': 'short stories in simple words, own validation split; 2.1 M stories, 1.9 GB',
    },
    'openorca': {
        'loader': 'hub',
        'hub': 'Open-Orca/OpenOrca',
        'prompt': ['system_prompt', 'question'],
        'text': 'response',
        'description': 'instructions answered by GPT-3.5 and GPT-4; 4.2 M rows, 7 GB',
    },
    'orca_math': {
        'loader': 'hub',
        'hub': 'microsoft/orca-math-word-problems-200k',
        'prompt': 'question',
        'text': 'answer',
        'description': 'math word problems with worked solutions; 200 K rows, 220 MB',
    },
    'smoltalk': {
        'loader': 'hub',
        'hub': 'HuggingFaceTB/smoltalk',
        'config': 'all',
        'messages': 'messages',
        'description': 'conversations for instruction tuning; 1 M rows, 4 GB',
    },
    'cosmopedia_v2': {
        'loader': 'hub',
        'hub': 'HuggingFaceTB/smollm-corpus',
        'config': 'cosmopedia-v2',
        'description': 'synthetic textbooks and stories; 39 M documents, 220 GB: set a limit or max_bytes',
    },
    # The three domains of the moe-emergence study, by its rules: the number of characters of a document is
    # above the lower and below the upper limit that it names.
    'code': {
        'loader': 'hub',
        'hub': 'codeparrot/codeparrot-clean',
        'text': 'content',
        'min_chars': 101,
        **STUDY,
        'description': 'Python files from GitHub (CodeParrot-clean), the first 10 MB of middle-sized ones',
    },
    # a Parquet copy of allenai/math_qa, whose loading script `datasets` no longer runs
    'math': {
        'loader': 'hub',
        'hub': 'regisss/math_qa',
        'prompt': 'Problem',
        'text': 'Rationale',
        'separator': '\n\n',
        **STUDY,
        'description': 'math word problems with their rationale (MathQA), the first 10 MB',
    },
    'prose': {
        'loader': 'hub',
        'hub': 'allenai/c4',
        'config': 'en',
        'min_chars': 201,
        **STUDY,
        'description': 'English web text (C4), the first 10 MB of middle-sized pages',
    },
}

COLUMN_KEYS = {
    'text': str,
    'prompt': (str, list),
    'separator': str,
    'messages': str,
    'domain_column': str,
    'document_start': str,
}
PATH_KEYS = {'path': (str, list), 'validation': (str, list)}
KEYS: dict[str, dict[str, Any]] = {  # loader -> what its spec may hold besides COMMON_KEYS, and its type
    'json': PATH_KEYS | COLUMN_KEYS,
    'csv': PATH_KEYS | COLUMN_KEYS,
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
    'embedded': {'domains': list, 'problems': int, 'seed': int},
}
FILE_LOADERS = tuple(loader for loader, keys in KEYS.items() if 'path' in keys)
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
TYPE_NAMES = {
    str: 'a string',
    int: 'a whole number',
    float: 'a number',
    list: 'a list of strings',
    (str, list): 'a string or a list of strings',
}
ORIGINAL_KEYS = ('ds_loader', 'args', 'kwargs')
ORIGINAL_COLUMNS = ('truth_column', 'prompt_column', 'text_column')


def describe_named() -> list[tuple[str, str]]:
    """(name, what it is and its size) of each named dataset."""
    return [(name, spec['description']) for name, spec in NAMED.items()]


def check_spec(name: str, spec: dict | None) -> None:
    """Checks a dataset's spec without reading any data. Raises DataError that names the key at fault."""
    _resolve(name, spec)


def open_source(name: str, spec: dict | None = None) -> 'Source':
    """The source of a spec; without one, of a named dataset, a file or pattern, or a dataset id of the hub.

    Raises DataError for an unknown name or a spec that can't be used.
    """
    return Source(name, _resolve(name, spec))


def _resolve(name: str, spec: dict | None) -> dict[str, Any]:
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
    if loader or Path(name).expanduser().is_file():
        return {'loader': loader or 'text', 'path': name}
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
    if key == 'document_start':
        try:
            re.compile(str(value))
        except re.error as error:
            return f'is not a regular expression ({error})'
    return ''


def _is_a(kind: Any, value: object) -> bool:
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


@dataclass(frozen=True)
class Source:
    """A dataset that is resolved but not yet read."""

    name: str
    spec: dict[str, Any]

    def fingerprint(self) -> str:
        """Changes whenever `rows` would yield other documents.

        Local files and the embedded corpus count by content, a hub dataset by id, config, revision, columns
        and limits: that needs no network, so what its owner changes without a new revision goes unnoticed.
        """
        counted = {k: v for k, v in sorted(self.spec.items()) if k not in ('path', 'description')}
        contents = []
        if self.spec['loader'] == 'embedded':
            contents = [embedded.content()]
        elif self.spec['loader'] == 'hub':
            folder = Path(self.spec['hub'])
            if folder.is_dir():
                contents = [local.digest(sorted(p for p in folder.rglob('*') if p.is_file()))]
        else:
            counted.pop('validation', None)
            contents = [local.digest(self._files(key)) for key in PATH_KEYS if key in self.spec]
        return hashlib.sha256(json.dumps(['rows-1', counted, *contents]).encode()).hexdigest()[:24]

    def rows(self) -> Iterator[Row]:
        """Documents in a fixed order: training, then validation where the dataset has its own.

        Empty ones, and those of another length than asked for, are left out and counted. Raises DataError for
        what can't be read and for a split without text.
        """
        for split in ('train', 'validation') if 'validation' in self.spec else ('',):
            yield from self._limited(split)

    def _limited(self, split: str) -> Iterator[Row]:
        """The documents of a split that have text, up to its limits."""
        ends = self._limits(split)
        least, most = self.spec.get('min_chars', 0), self.spec.get('max_chars', float('inf'))
        taken = size = chars = empty = unfit = 0
        for row in self._split(split):
            if not row.text or row.text.isspace():
                empty += 1
                continue
            length = len(row.prompt) + len(row.text)
            if not least <= length <= most:
                unfit += 1
                continue
            yield row
            taken, chars = taken + 1, chars + length
            if 'max_bytes' in ends:
                size += len(row.text.encode()) + len(row.prompt.encode())
            found = {'limit': taken, 'max_bytes': size, 'total_chars': chars}
            if any(found[key] >= end for key, end in ends.items()):
                break
        if not taken:
            raise self._no_text(split, empty, unfit)
        if empty:
            log.warning("Dataset '%s': %d empty documents were left out.", self.name, empty)
        if unfit:
            log.info("Dataset '%s': %d documents %s were left out.", self.name, unfit, self._unfit())

    def _unfit(self) -> str:
        spec = self.spec
        limits = (
            f'of fewer than {spec["min_chars"]:,} characters' if 'min_chars' in spec else '',
            f'of more than {spec["max_chars"]:,} characters' if 'max_chars' in spec else '',
        )
        return ' or '.join(filter(None, limits))

    def _no_text(self, split: str, empty: int, unfit: int) -> DataError:
        kind = 'validation text' if split == 'validation' else 'text'
        reason = f'all of its {empty} documents are empty' if empty else 'there are no rows'
        if unfit:
            more = f', the other {empty} are empty' if empty else ''
            reason = f'{unfit} of its documents are {self._unfit()}{more}'
        return DataError(f"Dataset '{self.name}' has no {kind}: {reason}.")

    def _limits(self, split: str) -> dict[str, int]:
        """What ends a split: documents, bytes or characters of text."""
        if split == 'validation':
            given = {'limit': self.spec.get('validation_limit')}
        else:
            given = {key: self.spec.get(key) for key in LIMITS}
        return {key: end for key, end in given.items() if end is not None}

    def _split(self, split: str) -> Iterator[Row]:
        spec, named = self.spec, self.spec.get('domain', '')
        if spec['loader'] == 'embedded':
            options = {k: spec[k] for k in ('domains', 'problems', 'seed') if k in spec}
            for domain, text, prompt, group in embedded.documents(**options):
                yield Row(text, prompt, named or domain, group)
            return
        records = self._records(split)
        if 'document_start' in spec:
            records = self._joined(records)
        for place, record in records:
            text, prompt = self._text(record, place)
            domain = record[spec['domain_column']] if 'domain_column' in spec else None
            yield Row(text, prompt, named if domain is None else str(domain), split=split)

    def _records(self, split: str) -> Iterator[tuple[str, dict]]:
        """(place, record) of each record of a split, every column that is read present in it."""
        columns = self._columns()
        read = self._hub_records if self.spec['loader'] == 'hub' else self._file_records
        for place, record in read(split, columns):
            place = f"Dataset '{self.name}': {place}"
            if not all(c in record for c in columns):
                local.check_columns(columns, record, place=place)
            yield place, record

    def _columns(self) -> list[str]:
        """The columns that are read, that of the text or messages first."""
        spec = self.spec
        domain = [spec['domain_column']] if 'domain_column' in spec else []
        return [spec.get('messages') or spec.get('text', 'text'), *_listed(spec.get('prompt', [])), *domain]

    def _hub_records(self, split: str, columns: list[str]) -> Iterator[tuple[str, dict]]:
        from . import hub

        validation = split == 'validation'
        return hub.read(
            self.name,
            self.spec,
            split=self.spec['validation'] if validation else self.spec.get('split', 'train'),
            columns=columns,
            stream=not validation and not self.spec.keys().isdisjoint(LIMITS),
        )

    def _file_records(self, split: str, columns: list[str]) -> Iterator[tuple[str, dict]]:
        read: Callable[[Path], Iterator[tuple[str, dict]]] = {
            'json': local.read_json,
            'csv': local.read_csv,
            'parquet': partial(local.read_parquet, columns=columns),
            'text': partial(local.read_text, delimiter=self.spec.get('delimiter')),
        }[self.spec['loader']]
        for file in self._files('validation' if split == 'validation' else 'path'):
            yield from read(file)

    def _files(self, key: str) -> list[Path]:
        return local.find_files(self.spec[key], where=f"dataset '{self.name}', {key}")

    def _joined(self, records: Iterator[tuple[str, dict]]) -> Iterator[tuple[str, dict]]:
        """One record for all from one whose text matches `document_start` up to the next."""
        start, column = re.compile(self.spec['document_start']), self._columns()[0]
        first, parts = None, []
        for place, record in records:
            text = _string(record[column], column, place)
            if first is None or start.search(text):
                if first is not None:
                    yield first[0], first[1] | {column: ''.join(parts)}
                first, parts = (place, record), []
            parts.append(text)
        if first is not None:
            yield first[0], first[1] | {column: ''.join(parts)}

    def _text(self, record: dict, place: str) -> tuple[str, str]:
        """(text, prompt) of a record; a prompt ends with a newline, or with the separator that is given."""
        spec = self.spec
        if 'messages' in spec:
            return _conversation(record[spec['messages']], spec['messages'], place)
        column = spec.get('text', 'text')
        prompts = (_string(record[c], c, place) for c in _listed(spec.get('prompt', [])))
        prompt = spec.get('separator', '\n\n').join(filter(None, prompts))
        if 'separator' in spec:
            prompt = prompt and prompt + spec['separator']
        else:
            prompt = prompt and prompt.removesuffix('\n') + '\n'
        return _string(record[column], column, place), prompt


def _listed(columns: str | list[str]) -> list[str]:
    return [columns] if isinstance(columns, str) else columns


def _string(value: object, column: str, place: str) -> str:
    """A column's value as text, '' for null. Raises DataError for what is not text."""
    if value is None:
        return ''
    if not isinstance(value, str):
        shown = json.dumps(value, default=repr)[:40]
        raise DataError(f"{place}: column '{column}' holds {shown}, which is not text.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place}: column '{column}' holds half of a surrogate pair "
                f'(\\u{ord(value[error.start]):04x}), which is not a character.'
            ) from error
    return value


def _conversation(messages: object, column: str, place: str) -> tuple[str, str]:
    """(text, prompt): the assistant's last turn, and all turns before it under their roles."""
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and {'role', 'content'} <= m.keys() for m in messages
    ):
        raise DataError(f'{place}: column \'{column}\' is not a list of {{"role", "content"}} objects.')
    last = max((i for i, m in enumerate(messages) if m['role'] == 'assistant'), default=None)
    if last is None:
        return '', ''
    contents = [_string(m['content'], f'{column}.content', place) for m in messages[: last + 1]]
    before = ''.join(f'{str(m["role"]).capitalize()}:\n{c}\n\n' for m, c in zip(messages, contents[:-1]))
    return contents[-1], f'{before}Assistant:\n'
