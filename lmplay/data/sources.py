"""Where text comes from: named datasets, the Hugging Face hub, local files, the embedded corpus."""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import user_path
from . import embedded, local
from .conversations import conversation, string_of
from .specs import LIMITS, PATH_KEYS, resolve

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


def open_source(name: str, spec: dict | None = None) -> 'Source':
    """The source of a spec; without one, of a named dataset, a file or pattern, or a dataset id of the hub.

    Raises DataError for an unknown name or a spec that can't be used.
    """
    return Source(name, resolve(name, spec))


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
        elif self.spec['loader'] in ('hub', 'saved'):
            folder = user_path(self.spec.get('hub') or self.spec['path'])
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
            domain = record[spec['domain_column']] if 'domain_column' in spec else None
            domain = named if domain is None else str(domain).encode('utf-8', 'replace').decode()
            if 'messages' in spec:
                for text, prompt, group in conversation(record[spec['messages']], spec, place):
                    yield Row(text, prompt, domain, group, split)
            else:
                text, prompt = self._text(record, place)
                yield Row(text, prompt, domain, split=split)

    def _records(self, split: str) -> Iterator[tuple[str, dict]]:
        """(place, record) of each record of a split, every column that is read present in it."""
        columns = self._columns()
        readers = {'hub': self._hub_records, 'saved': self._saved_records}
        for place, record in readers.get(self.spec['loader'], self._file_records)(split, columns):
            place = f"Dataset '{self.name}': {place}"
            yield place, local.with_nested(columns, record, place=place)

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

    def _saved_records(self, split: str, columns: list[str]) -> Iterator[tuple[str, dict]]:
        from . import hub

        own = self.spec['validation'] if split == 'validation' else self.spec.get('split', 'train')
        folder = str(user_path(self.spec['path']))
        return hub.read_saved(self.name, folder, split=own, columns=columns)

    def _file_records(self, split: str, columns: list[str]) -> Iterator[tuple[str, dict]]:
        read: Callable[[Path], Iterator[tuple[str, dict]]] = {
            'json': local.read_json,
            'csv': partial(local.read_csv, delimiter=self.spec.get('delimiter')),
            'parquet': partial(local.read_parquet, columns=columns),
            'text': partial(local.read_text, delimiter=self.spec.get('delimiter')),
        }[self.spec['loader']]
        for file in self._files('validation' if split == 'validation' else 'path'):
            yield from read(file)

    def _files(self, key: str) -> list[Path]:
        where = f"dataset '{self.name}', {key}"
        return local.find_files(self.spec[key], where=where, loader=self.spec['loader'])

    def _joined(self, records: Iterator[tuple[str, dict]]) -> Iterator[tuple[str, dict]]:
        """One record for all from one whose text matches `document_start` up to the next."""
        start, column = re.compile(self.spec['document_start']), self._columns()[0]
        first, parts = None, []
        for place, record in records:
            text = string_of(record[column], column, place)
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
        column = spec.get('text', 'text')
        prompts = (string_of(record[c], c, place) for c in _listed(spec.get('prompt', [])))
        prompt = spec.get('separator', '\n\n').join(filter(None, prompts))
        if 'separator' in spec:
            prompt = prompt and prompt + spec['separator']
        else:
            prompt = prompt and prompt.removesuffix('\n') + '\n'
        return string_of(record[column], column, place), prompt


def _listed(columns: str | list[str]) -> list[str]:
    return [columns] if isinstance(columns, str) else columns
