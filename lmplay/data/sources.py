"""Where text comes from: named datasets, any dataset of the Hugging Face hub, local files, and the embedded corpus."""

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, unknown
from . import embedded, local

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    text: str  # what is learned (the answer, in a prompt/answer row)
    prompt: str = (
        ''  # what stands before it, to its last character; scored only where the stage says include_prompts
    )
    domain: str = ''  # label kept to evaluation; '' means: the dataset's name
    group: str = ''  # rows of one group fall on the same side of the train/validation split; '' means: by the row's content
    split: str = ''  # 'train' or 'validation' where the dataset has its own split, else ''


NAMED: dict[str, dict] = {
    'embedded': {
        'loader': 'embedded',
        'description': "this Python's own library as code and prose, generated math problems; needs no network; 16 MB",
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
        'document_start': r'^ = [^=].*[^=] = \n?$',  # the hub has one line a row; a title begins an article
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
        'description': 'worded math problems with worked answers; 200 K rows, 220 MB',
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
    # the three domains of the GPT-2 mixture-of-experts study, 10 MB each
    'code': {
        'loader': 'hub',
        'hub': 'codeparrot/codeparrot-clean',
        'text': 'content',
        'max_bytes': 10_000_000,
        'description': 'Python files from GitHub (CodeParrot-clean), the first 10 MB',
    },
    # the parquet copy of allenai/math_qa, which is a loading script that `datasets` runs no more
    'math': {
        'loader': 'hub',
        'hub': 'regisss/math_qa',
        'prompt': 'Problem',
        'text': 'Rationale',
        'max_bytes': 10_000_000,
        'description': 'worded math problems with their rationale (MathQA), the first 10 MB',
    },
    'prose': {
        'loader': 'hub',
        'hub': 'allenai/c4',
        'config': 'en',
        'max_bytes': 10_000_000,
        'description': 'English web text (C4), the first 10 MB',
    },
}

FILE_LOADERS = ('json', 'csv', 'parquet', 'text')
COLUMN_KEYS = {
    'text': str,
    'prompt': (str, list),
    'messages': str,
    'domain_column': str,
    'document_start': str,
}
KEYS = {  # loader -> what a spec may hold besides COMMON_KEYS, and its type
    'json': {'path': (str, list), 'validation': (str, list), **COLUMN_KEYS},
    'csv': {'path': (str, list), 'validation': (str, list), **COLUMN_KEYS},
    'parquet': {'path': (str, list), 'validation': (str, list), **COLUMN_KEYS},
    'text': {'path': (str, list), 'validation': (str, list), 'delimiter': str},
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
COMMON_KEYS = {
    'loader': str,
    'description': str,
    'domain': str,
    'limit': int,
    'validation_limit': int,
    'max_bytes': int,
}
TYPE_NAMES = {
    str: 'a string',
    int: 'a whole number',
    list: 'a list of strings',
    (str, list): 'a string or a list of strings',
}


def describe_named() -> list[tuple[str, str]]:
    """(name, what it is and its size) of each named dataset."""
    return [(name, spec['description']) for name, spec in NAMED.items()]


def check_spec(name: str, spec: dict | None) -> None:
    """Checks the keys and values of a dataset's spec without reading anything; raises DataError that names the key."""
    _resolve(name, spec)


def open_source(name: str, spec: dict | None = None) -> 'Source':
    """The source of a spec; without one, of a named dataset, a file or pattern, or a dataset id of the hub.

    Raises DataError for an unknown name or a spec that can't be used.
    """
    return Source(name, _resolve(name, spec))


def _resolve(name: str, spec: dict | None) -> dict:
    """The spec with its loader, and all that it takes from a named dataset, filled in and checked."""
    where = f"dataset '{name}'"
    if spec is None:
        spec = _spec_of_name(name)
    if not isinstance(spec, dict):
        raise DataError(f'{where}: expected an object with keys such as "loader" and "path", found {spec!r}.')
    if 'ds_loader' in spec:
        spec = _translate(where, spec)
    loader = spec.get('loader') or _guess_loader(spec) or name
    if not isinstance(loader, str):
        raise DataError(f'{where}: "loader" must be a string, not {json.dumps(loader)}.')
    if loader not in KEYS and loader in NAMED:
        base = NAMED[loader]
        if 'messages' in spec:
            base = {k: v for k, v in base.items() if k not in ('text', 'prompt')}
        elif 'text' in spec or 'prompt' in spec:
            base = {k: v for k, v in base.items() if k != 'messages'}
        spec = {**base, **spec, 'loader': base['loader']}
    elif loader in KEYS:
        spec = {**spec, 'loader': loader}
    else:
        raise DataError(
            unknown('loader', loader, [*KEYS, *NAMED], where)
            if 'loader' in spec
            else f'{where}: needs a "loader" (one of {", ".join(KEYS)}, or a named dataset), a "path" or a "hub" id.'
        )
    _check(where, spec)
    return spec


def _guess_loader(spec: dict) -> str | None:
    path = spec.get('path')
    first = path[0] if isinstance(path, list) and path else path
    return 'hub' if 'hub' in spec else local.loader_of(first) if isinstance(first, str) else None


def _spec_of_name(name: str) -> dict:
    if name in NAMED:
        return {'loader': name}
    loader = local.loader_of(name)
    if loader or Path(name).expanduser().is_file():
        return {'loader': loader or 'text', 'path': name}
    if re.fullmatch(r'[\w.-]+/[\w.-]+', name):
        return {'loader': 'hub', 'hub': name}
    raise DataError(unknown('dataset', name, [*NAMED, 'hub-user/hub-name', 'path/to/files*.jsonl']))


def _check(where: str, spec: dict[str, Any]) -> None:
    loader = spec['loader']
    allowed = COMMON_KEYS | KEYS[loader]
    for key, value in spec.items():
        if key not in allowed:
            raise DataError(unknown('key', key, allowed, f'{where} (loader {loader})'))
        kind = allowed[key]
        if (
            not isinstance(value, kind)
            or isinstance(value, bool)
            or isinstance(value, list)
            and not (value and all(isinstance(v, str) for v in value))
        ):
            raise DataError(
                f'{where}: "{key}" must be {TYPE_NAMES[kind]}, not {json.dumps(value, default=repr)}.'
            )
        least = 0 if key == 'seed' else 1
        if isinstance(value, int) and value < least:
            raise DataError(f'{where}: "{key}" must be at least {least}, not {value}.')
        if value == '':
            raise DataError(f'{where}: "{key}" is empty.')
    needed = {'hub': 'hub', 'embedded': 'loader'}.get(loader, 'path')
    if needed not in spec:
        raise DataError(f'{where}: loader {loader} needs "{needed}".')
    if 'messages' in spec and ('text' in spec or 'prompt' in spec):
        raise DataError(
            f'{where}: "messages" holds prompt and text; it can\'t stand beside "text" or "prompt".'
        )
    if 'document_start' in spec:
        if 'prompt' in spec or 'messages' in spec:
            raise DataError(
                f'{where}: "document_start" joins rows of text; it can\'t stand beside "prompt" or "messages".'
            )
        try:
            re.compile(spec['document_start'])
        except re.error as error:
            raise DataError(f'{where}: "document_start" is not a regular expression ({error}).') from error
    if ('language' in spec) != ('snapshot' in spec):
        raise DataError(
            f'{where}: "language" and "snapshot" go together, as in wikipedia\'s config 20231101.en.'
        )
    if 'validation_limit' in spec and 'validation' not in spec:
        raise DataError(f'{where}: "validation_limit" needs "validation", the rows that it limits.')
    for domain in spec.get('domains', ()):
        if domain not in embedded.DOMAINS:
            raise DataError(unknown('domain', domain, embedded.DOMAINS, where))


def _translate(where: str, spec: dict) -> dict:
    """A dataset in the form of the original lmplay: {"ds_loader": ..., "args": [...], "kwargs": {...}}."""
    loader, args, kwargs = spec['ds_loader'], spec.get('args', []), spec.get('kwargs', {})
    for key in spec:
        if key not in ('ds_loader', 'args', 'kwargs'):
            raise DataError(unknown('key', key, ['ds_loader', 'args', 'kwargs'], where))
    if (
        not isinstance(args, list)
        or not isinstance(kwargs, dict)
        or not all(isinstance(a, str) for a in args)
    ):
        raise DataError(f'{where}: "args" must be a list of strings and "kwargs" an object.')
    if loader == 'openorca':
        return {'loader': 'openorca'}
    if loader == 'wiki':
        return {'loader': 'wikipedia', 'language': args[0] if args else 'en'}
    if loader != 'hf':
        raise DataError(unknown('ds_loader', loader, ['hf', 'wiki', 'openorca'], where))
    if not 2 <= len(args) <= 3:
        raise DataError(
            f'{where}: "args" of ds_loader hf are a name, a hub id and, where there is one, a config; found {args}.'
        )
    for key in kwargs:
        if key not in ('truth_column', 'prompt_column', 'text_column'):
            raise DataError(
                unknown('key', key, ['truth_column', 'prompt_column', 'text_column'], f'{where}, kwargs')
            )
    text = kwargs.get('truth_column') or kwargs.get('text_column') or 'text'
    columns = {'messages': text} if text == 'messages' else {'text': text}
    if kwargs.get('prompt_column'):
        columns['prompt'] = kwargs['prompt_column']
    return {'loader': 'hub', 'hub': args[1], **({'config': args[2]} if len(args) == 3 else {}), **columns}


@dataclass(frozen=True)
class Source:
    """A dataset that is known but not read yet."""

    name: str
    spec: dict

    def fingerprint(self) -> str:
        """Changes whenever `rows` would give other rows.

        Local files and the embedded corpus count by their content; a hub dataset by its id, config, revision, columns and
        limits, so that no network is asked: what a dataset's owner changes without a new revision is not seen.
        """
        parts: list = [{k: v for k, v in sorted(self.spec.items()) if k not in ('path', 'description')}]
        if self.spec['loader'] == 'embedded':
            parts.append(embedded.content())
        elif self.spec['loader'] == 'hub':
            if Path(self.spec['hub']).is_dir():
                parts.append(
                    local.digest(sorted(p for p in Path(self.spec['hub']).rglob('*') if p.is_file()))
                )
        else:
            parts[0].pop('validation', None)
            parts += [local.digest(self._files(key)) for key in ('path', 'validation') if key in self.spec]
        return hashlib.sha256(json.dumps(['rows-1', *parts]).encode()).hexdigest()[:24]

    def rows(self) -> Iterator[Row]:
        """Rows in an order that never changes: of training, then of validation where the dataset has its own.

        Empty documents are left out and counted. Raises DataError for what can't be read, and where there is no row at all.
        """
        for split in ('train', 'validation') if 'validation' in self.spec else ('',):
            limit = self.spec.get('validation_limit' if split == 'validation' else 'limit')
            max_bytes = None if split == 'validation' else self.spec.get('max_bytes')
            taken = size = skipped = 0
            for row in self._split(split):
                if not row.text or row.text.isspace():
                    skipped += 1
                    continue
                yield row
                taken += 1
                if max_bytes:
                    size += len(row.text.encode()) + len(row.prompt.encode())
                if taken == limit or max_bytes and size >= max_bytes:
                    break
            if not taken:
                kind = 'validation ' if split == 'validation' else ''
                raise DataError(
                    f"Dataset '{self.name}' has no {kind}text"
                    + (f': all of its {skipped} documents are empty.' if skipped else ': there are no rows.')
                )
            if skipped:
                log.warning("Dataset '%s': %d empty documents were left out.", self.name, skipped)

    def _files(self, key: str) -> list[Path]:
        return local.find_files(self.spec[key], where=f"dataset '{self.name}', {key}")

    def _split(self, split: str) -> Iterator[Row]:
        spec = self.spec
        domain = spec.get('domain', '')
        if spec['loader'] == 'embedded':
            options = {k: spec[k] for k in ('domains', 'problems', 'seed') if k in spec}
            for domain_, text, prompt, group in embedded.documents(**options):
                yield Row(text, prompt, domain or domain_, group)
            return
        columns = self._columns()
        if spec['loader'] == 'hub':
            from . import hub

            part = split != 'validation' and ('limit' in spec or 'max_bytes' in spec)
            records = hub.read(
                self.name,
                spec,
                split=spec['validation'] if split == 'validation' else spec.get('split', 'train'),
                columns=columns,
                stream=part,
            )
        else:
            records = self._records('validation' if split == 'validation' else 'path', columns)
        if 'document_start' in spec:
            records = self._joined(records, columns)
        for place, record in records:
            if not all(c in record for c in columns):
                local.check_columns(columns, record, place=self._place(place))
            text, prompt = self._text(record, place)
            label = record[spec['domain_column']] if 'domain_column' in spec else None
            yield Row(text, prompt, domain if label is None else str(label), split=split)

    def _columns(self) -> list[str]:
        """The columns that are read."""
        spec = self.spec
        prompt = spec.get('prompt', [])
        domain = [spec['domain_column']] if 'domain_column' in spec else []
        return [
            spec.get('messages') or spec.get('text', 'text'),
            *([prompt] if isinstance(prompt, str) else prompt),
            *domain,
        ]

    def _records(self, key: str, columns: list[str]) -> Iterator[tuple[str, dict]]:
        """(place, record) of every local file."""
        loader = self.spec['loader']
        for file in self._files(key):
            if loader == 'json':
                yield from local.read_json(file)
            elif loader == 'csv':
                yield from local.read_csv(file)
            elif loader == 'parquet':
                yield from local.read_parquet(file, columns)
            else:
                yield from local.read_text(file, self.spec.get('delimiter'))

    def _joined(self, records: Iterator[tuple[str, dict]], columns: list[str]) -> Iterator[tuple[str, dict]]:
        """One record for all rows from one whose text matches `document_start` up to the next."""
        start, column = re.compile(self.spec['document_start']), columns[0]
        first, parts = None, []
        for place, record in records:
            if not all(c in record for c in columns):
                local.check_columns(columns, record, place=self._place(place))
            text = self._string(record[column], column, place)
            if first is None or start.search(text):
                if first is not None:
                    yield first[0], first[1] | {column: ''.join(parts)}
                first, parts = (place, record), []
            parts.append(text)
        if first is not None:
            yield first[0], first[1] | {column: ''.join(parts)}

    def _place(self, place: str) -> str:
        return f"Dataset '{self.name}': {place}"

    def _string(self, value: object, column: str, place: str) -> str:
        if value is None:
            return ''
        if not isinstance(value, str):
            raise DataError(
                f"{self._place(place)}: column '{column}' holds {json.dumps(value, default=repr)[:40]}, "
                f'which is not text.'
            )
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise DataError(
                    f"{self._place(place)}: column '{column}' holds half of a surrogate pair "
                    f'(\\u{ord(value[error.start]):04x}), which is no character.'
                ) from error
        return value

    def _text(self, record: dict, place: str) -> tuple[str, str]:
        """(text, prompt) of a record; a prompt ends with a newline."""
        spec = self.spec
        if 'messages' in spec:
            return self._conversation(record[spec['messages']], place)
        column = spec.get('text', 'text')
        text = self._string(record[column], column, place)
        if 'prompt' not in spec:
            return text, ''
        columns = [spec['prompt']] if isinstance(spec['prompt'], str) else spec['prompt']
        prompt = '\n\n'.join(p for c in columns if (p := self._string(record[c], c, place)))
        return text, prompt and prompt.removesuffix('\n') + '\n'

    def _conversation(self, messages: object, place: str) -> tuple[str, str]:
        """The last turn of the assistant, and before it all turns under their roles."""
        column = self.spec['messages']
        if not isinstance(messages, list) or not all(
            isinstance(m, dict) and {'role', 'content'} <= m.keys() for m in messages
        ):
            raise DataError(
                f'{self._place(place)}: column \'{column}\' is not a list of {{"role", "content"}} objects.'
            )
        last = max((i for i, m in enumerate(messages) if m['role'] == 'assistant'), default=None)
        if last is None:
            return '', ''
        contents = [self._string(m['content'], f'{column}.content', place) for m in messages[: last + 1]]
        before = ''.join(f'{str(m["role"]).capitalize()}:\n{c}\n\n' for m, c in zip(messages, contents[:-1]))
        return contents[-1], f'{before}Assistant:\n'
