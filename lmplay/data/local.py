"""Reads local files record by record: JSON, CSV, Parquet and text, plain or gzipped (.gz).

A reader yields (place, record): where the record stands, for error messages, and a dict of its columns.
"""

import csv
import glob
import gzip
import hashlib
import json
import mmap
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DataError, nearest

SUFFIXES = {
    '.json': 'json',
    '.jsonl': 'json',
    '.ndjson': 'json',
    '.csv': 'csv',
    '.parquet': 'parquet',
    '.txt': 'text',
    '.md': 'text',
}
BOM = b'\xef\xbb\xbf'


def loader_of(path: str) -> str | None:
    """The loader for the suffix of a file name or pattern, or None."""
    return SUFFIXES.get(Path(path.removesuffix('.gz')).suffix.lower())


def find_files(paths: str | list[str], *, where: str) -> list[Path]:
    """The files of one or several paths or patterns, each once, the matches of a pattern sorted.

    Raises DataError for a path without a file and for a pattern without a match.
    """
    found: dict[Path, None] = {}
    for given in [paths] if isinstance(paths, str) else paths:
        path = _path(given, where)
        if path.is_file():
            matches = [path]
        elif path.is_dir():
            raise DataError(
                f"{where}: '{given}' is a folder; give a file, or a pattern such as "
                f"'{given.rstrip('/')}/*.jsonl'."
            )
        elif glob.has_magic(given):
            matches = [Path(p) for p in sorted(glob.glob(str(path), recursive=True)) if Path(p).is_file()]
            if not matches:
                raise DataError(f"{where}: no file matches '{given}' (looked in {Path.cwd()}).")
        else:
            beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise DataError(
                f"{where}: no file '{given}' (looked in {Path.cwd()}).{nearest(path.name, beside)}"
            )
        found |= dict.fromkeys(matches)
    return list(found)


def _path(given: str, where: str) -> Path:
    """Raises DataError for what can't be the path of a file, whatever there is."""
    try:
        if '\0' in given:
            raise ValueError('it holds a null character')
        os.fsencode(given)
        return Path(given).expanduser()
    except (ValueError, RuntimeError) as error:
        raise DataError(f'{where}: {ascii(given)} is not a path: {error}.') from error


def digest(files: Iterable[Path]) -> str:
    """SHA-256 over the contents of the files, in order."""
    whole = hashlib.sha256()
    for file in files:
        with _errors(file), open(file, 'rb') as stream:
            whole.update(hashlib.file_digest(stream, 'sha256').digest())
    return whole.hexdigest()


@contextmanager
def _errors(file: Path):
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        said = getattr(error, 'strerror', None) or ' '.join(str(error).split()).rstrip('.')
        raise DataError(f"Can't read '{file}': {said}.") from error


def _open(file: Path):
    return gzip.open(file, 'rb') if file.suffix == '.gz' else open(file, 'rb')


def _decode(data: bytes, file: Path, *, offset: int, line: int | None = None) -> str:
    """`data`, from byte `offset` of the file, as UTF-8 text; a leading byte-order mark is dropped."""
    try:
        return (data.removeprefix(BOM) if offset == 0 else data).decode('utf-8')
    except UnicodeDecodeError as error:
        at = offset + error.start + (len(BOM) if offset == 0 and data.startswith(BOM) else 0)
        place = f'line {line}, byte {at}' if line else f'byte {at}'
        raise DataError(
            f"'{file}', {place}: not valid UTF-8 ({error.object[error.start]:#04x}); "
            f'convert the file, e.g. iconv -f latin1 -t utf-8.'
        ) from error


def _lines(file: Path) -> Iterator[str]:
    """Lines, line ends included."""
    with _errors(file), _open(file) as stream:
        offset = 0
        for number, line in enumerate(stream, 1):
            yield _decode(line, file, offset=offset, line=number)
            offset += len(line)


def read_json(file: Path) -> Iterator[tuple[str, dict]]:
    """One object per line, or one array of objects (read whole); strings may hold control characters."""
    with _errors(file), _open(file) as stream:
        start = stream.read(4096).removeprefix(BOM).lstrip()
        stream.seek(0)
        array = start.startswith(b'[')
        text = _decode(stream.read(), file, offset=0) if array else ''
    if array:
        try:
            records = json.loads(text, strict=False)
        except (ValueError, RecursionError) as error:
            raise _not_json(file, getattr(error, 'lineno', 1), error) from error
        placed = ((f"'{file}', item {number}", record) for number, record in enumerate(records, 1))
    else:
        placed = _json_lines(file)
    for place, record in placed:
        if not isinstance(record, dict):
            raise DataError(
                f'{place}: expected an object with columns, such as {{"text": "..."}}, found {_kind(record)}.'
            )
        yield place, record


def _json_lines(file: Path) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(_lines(file), 1):
        if not line.isspace():
            try:
                yield f"'{file}', line {number}", json.loads(line, strict=False)
            except (ValueError, RecursionError) as error:
                raise _not_json(file, number, error) from error


def _not_json(file: Path, line: int, error: Exception) -> DataError:
    if isinstance(error, json.JSONDecodeError):
        what = f'{error.msg}, column {error.colno}'
    elif isinstance(error, RecursionError):
        what = 'nested too deeply'
    else:
        what = str(error).split(';')[0]
    return DataError(
        f"'{file}', line {line}: not valid JSON ({what}); "
        f'a file holds one object per line, or one array of objects.'
    )


def read_csv(file: Path) -> Iterator[tuple[str, dict]]:
    """Rows of a comma-separated file whose first line names the columns."""
    csv.field_size_limit(2**31 - 1)  # the module's default is 128 KiB
    rows = csv.DictReader(_lines(file), strict=True)
    try:
        for record in rows:
            if None in record:
                raise DataError(
                    f"'{file}', line {rows.line_num}: {len(record) - 1 + len(record[None])} fields, "
                    f'where the first line names {len(rows.fieldnames or [])} columns.'
                )
            yield f"'{file}', line {rows.line_num}", record
    except csv.Error as error:
        raise DataError(f"'{file}', line {rows.line_num}: not valid CSV ({error}).") from error


def read_parquet(file: Path, columns: list[str]) -> Iterator[tuple[str, dict]]:
    """Rows of a Parquet file, of these columns."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with _errors(file), pyarrow.parquet.ParquetFile(file) as table:
            check_columns(columns, table.schema_arrow.names, place=f"'{file}'")
            for batch in table.iter_batches(batch_size=256, columns=columns):
                for record in batch.to_pylist():
                    number += 1
                    yield f"'{file}', row {number}", record
    except DataError:
        raise
    except (pyarrow.ArrowException, ValueError, ArithmeticError, MemoryError) as error:
        said = ' '.join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"'{file}' is not a Parquet file or is damaged ({said}).") from error


def read_text(file: Path, delimiter: str | None = None) -> Iterator[tuple[str, dict]]:
    """The file as one document, or its parts between delimiters, each in the column 'text'."""
    with _errors(file), _open(file) as stream:
        if file.suffix == '.gz':
            data = stream.read()
        else:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if file.stat().st_size else b''
        separator, start, number = (delimiter or '').encode(), 0, 1
        while separator and (end := data.find(separator, start)) >= 0:
            yield f"'{file}', document {number}", {'text': _decode(data[start:end], file, offset=start)}
            start, number = end + len(separator), number + 1
        yield f"'{file}', document {number}", {'text': _decode(data[start:], file, offset=start)}


def check_columns(wanted: list[str], present: Iterable[str], *, place: str) -> None:
    """Raises DataError for the first wanted column that is missing, with those that are there."""
    present = [str(p) for p in present]
    for column in wanted:
        if column not in present:
            raise DataError(
                f"{place}: no column '{column}'.{nearest(column, present)} "
                f'Columns there: {", ".join(present) or "(none)"}.'
            )


def _kind(value: object) -> str:
    return {
        dict: 'an object',
        list: 'a list',
        str: 'a string',
        bool: 'true or false',
        int: 'a number',
        float: 'a number',
        type(None): 'null',
    }.get(type(value), type(value).__name__)
