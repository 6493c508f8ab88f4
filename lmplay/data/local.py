"""Reads local files record by record: JSON, CSV, Parquet, text, compressed too (.gz, .bz2, .xz, .zst).

A reader yields (place, record): where the record stands, for error messages, and a dict of its columns.
"""

import bz2
import codecs
import csv
import glob
import gzip
import hashlib
import io
import json
import lzma
import mmap
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import DataError, nearest
from ..files import user_path

SUFFIXES = {
    '.json': 'json',
    '.jsonl': 'json',
    '.ndjson': 'json',
    '.csv': 'csv',
    '.tsv': 'csv',
    '.parquet': 'parquet',
    '.txt': 'text',
    '.md': 'text',
}
BOM = b'\xef\xbb\xbf'
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# in a folder that `datasets` saved: of several splits, of one
SAVED = ('dataset_dict.json', 'dataset_info.json')


def _zstd(file: Path, mode: str) -> io.BufferedReader:
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(file), compression='zstd'))


DECOMPRESSORS: dict[str, Callable[[Path, str], Any]] = {
    '.gz': gzip.open,
    '.bz2': bz2.open,
    '.xz': lzma.open,
    '.zst': _zstd,
}


def plain_name(path: str) -> str:
    """The name of a file or pattern without the suffix of its compression."""
    suffix = Path(path).suffix
    return path.removesuffix(suffix) if suffix.lower() in DECOMPRESSORS else path


def loader_of(path: str) -> str | None:
    """The loader for the suffix of a file or pattern, or of the files in a folder; None if unknown.

    Raises DataError for a folder with files of several kinds.
    """
    folder = user_path(path)
    if not path or not folder.is_dir():
        return SUFFIXES.get(Path(plain_name(path)).suffix.lower())
    if any((folder / name).is_file() for name in SAVED):
        return 'saved'
    kinds = {kind: file for file in _files_in(folder) if (kind := loader_of(str(file)))}
    if len(kinds) > 1:
        plain = [(f.name, plain_name(f.name)) for f in _files_in(folder) if loader_of(str(f))]
        suffixes = Counter(Path(name).suffix + whole.removeprefix(name) for whole, name in plain)
        raise DataError(
            f"'{path}' holds files of several kinds ({' and '.join(sorted(kinds))}): give a pattern such as "
            f"'{path.rstrip('/')}/**/*{suffixes.most_common(1)[0][0]}'."
        )
    return next(iter(kinds), None)


def looks_like_a_path(name: str) -> bool:
    """Whether it can be nothing else, neither the name of a dataset nor of one on the hub."""
    return name.startswith(('.', '/', '~')) or name.endswith('/') or glob.has_magic(name)


def contents(folder: str) -> str:
    """'nothing', or '3 .png, 1 .pdf'."""
    suffixes = Counter(file.suffix or file.name for file in _files_in(user_path(folder)))
    return ', '.join(f'{n} {suffix}' for suffix, n in suffixes.most_common(5)) or 'nothing'


def _files_in(folder: Path) -> list[Path]:
    """All files of a folder and those below it, sorted, without hidden ones."""
    found = (p for p in folder.rglob('*') if p.is_file())
    return sorted(p for p in found if not any(part.startswith('.') for part in p.relative_to(folder).parts))


def find_files(paths: str | list[str], *, where: str, loader: str) -> list[Path]:
    """The files of one or several paths, patterns or folders, each once; of a pattern or folder, sorted.

    Of a folder, all files in it and below that the loader reads by their suffix. Raises DataError for a path
    without a file, for a pattern without a match, and for a folder without such files.
    """
    found: dict[Path, None] = {}
    for given in [paths] if isinstance(paths, str) else paths:
        path = _path(given, where)
        if path.is_file():
            matches = [path]
        elif path.is_dir():
            matches = [file for file in _files_in(path) if loader_of(str(file)) == loader]
            if not matches:
                suffixes = ', '.join(s for s, name in SUFFIXES.items() if name == loader)
                raise DataError(f"{where}: the folder '{given}' holds no {loader} files ({suffixes}).")
        elif glob.has_magic(given):
            matches = [Path(p) for p in sorted(glob.glob(str(path), recursive=True)) if Path(p).is_file()]
            if not matches:
                raise DataError(f"{where}: no file matches '{given}' (looked in {Path.cwd()}).")
        else:
            beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            what = 'folder' if given.endswith('/') else 'file' if path.suffix else 'file or folder'
            raise DataError(
                f"{where}: no {what} '{given}' (looked in {Path.cwd()}).{nearest(path.name, beside)}"
            )
        found |= dict.fromkeys(matches)
    return list(found)


def _path(given: str, where: str) -> Path:
    """Raises DataError for what can't be the path of a file, whatever there is."""
    try:
        if '\0' in given:
            raise ValueError('it holds a null character')
        os.fsencode(given)
        return user_path(given)
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
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        said = getattr(error, 'strerror', None) or ' '.join(str(error).split()).rstrip('.')
        raise DataError(f"Can't read '{file}': {said}.") from error


def _open(file: Path) -> Any:
    """The bytes of a file, decompressed by its suffix; UTF-16, known by its first bytes, comes as UTF-8."""
    stream = DECOMPRESSORS.get(file.suffix.lower(), open)(file, 'rb')
    if stream.peek(2)[:2] not in UTF16:
        return stream
    with stream:
        try:
            text = stream.read().decode('utf-16')
        except UnicodeDecodeError as error:
            raise DataError(
                f"'{file}', byte {error.start}: not valid UTF-16, as its first bytes say it is."
            ) from error
    return io.BufferedReader(io.BytesIO(text.encode('utf-8', 'surrogatepass')))  # type: ignore[arg-type]


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
        start = stream.peek(4096).removeprefix(BOM).lstrip()
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


def read_csv(file: Path, delimiter: str | None = None) -> Iterator[tuple[str, dict]]:
    """Rows of a file whose first line names the columns, between commas, tabs (.tsv), or as given."""
    csv.field_size_limit(2**31 - 1)  # the module's default is 128 KiB
    usual = '\t' if Path(plain_name(file.name)).suffix.lower() == '.tsv' else ','
    rows = csv.DictReader(_lines(file), strict=True, delimiter=delimiter or usual)
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
            own = columns_of(columns, table.schema_arrow.names, place=f"'{file}'")
            for batch in table.iter_batches(batch_size=256, columns=own):
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
        if isinstance(getattr(stream, 'raw', None), io.FileIO):
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if file.stat().st_size else b''
        else:
            data = stream.read()
        separator, start, number = (delimiter or '').encode(), 0, 1
        while separator and (end := data.find(separator, start)) >= 0:
            yield f"'{file}', document {number}", {'text': _decode(data[start:end], file, offset=start)}
            start, number = end + len(separator), number + 1
        yield f"'{file}', document {number}", {'text': _decode(data[start:], file, offset=start)}


def columns_of(wanted: list[str], present: Iterable[str], *, place: str) -> list[str]:
    """Those of a table's columns that hold the wanted ones, each once: for 'doc.body' 'doc'.

    Raises DataError for the first that is missing, with those that are there.
    """
    present, found = [str(p) for p in present], {}
    for column in wanted:
        own = column if column in present else column.split('.')[0]
        if own not in present:
            raise DataError(
                f"{place}: no column '{column}'.{nearest(column, present)} "
                f'Columns there: {", ".join(present) or "(none)"}.'
            )
        found[own] = None
    return list(found)


def with_nested(wanted: list[str], record: dict, *, place: str) -> dict:
    """A record with every wanted column in it; 'doc.body' is the field 'body' of the object 'doc'.

    Raises DataError for one that is missing.
    """
    if all(column in record for column in wanted):
        return record
    columns_of(wanted, record, place=place)
    found = dict(record)
    for column in wanted:
        value, path = found, column.split('.')
        if column in found:
            continue
        for depth, name in enumerate(path, 1):
            if not isinstance(value, dict) or name not in value:
                inner = '.'.join(path[: depth - 1])
                there = (
                    ', '.join(map(str, value)) if isinstance(value, dict) else f'{_kind(value)}, no object'
                )
                raise DataError(f"{place}: no column '{column}'. In '{inner}' there: {there}.")
            value = value[name]
        found[column] = value
    return found


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
