"""Reads datasets of the Hugging Face hub, a folder with a copy of one, or one that `datasets` saved."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError, unknown
from .local import columns_of

REMEDY = (
    '. Run `lmp_trainer --save-datasets` with this plan where there is a network and copy its cache here; '
    "or let the plan read a local file; or use the dataset 'embedded', which needs no network"
)


def read(
    name: str, spec: dict, *, split: str, columns: list[str], stream: bool
) -> Iterator[tuple[str, dict]]:
    """(place, record) of each row of a split, these columns only; streamed where only a part of it is wanted.

    Raises DataError where it is neither cached nor within reach, and for an unknown config, split or column.
    """
    hub, config = spec['hub'], spec.get('config')
    if config is None and 'language' in spec:
        config = f'{spec["snapshot"]}.{spec["language"]}'
    place = f"hub dataset '{hub}'{f' ({config})' if config else ''}, split {split}"
    try:
        data = _load(hub, config, split=split, revision=spec.get('revision'), stream=stream)
        yield from _rows(data, columns, place, f"Dataset '{name}': hub dataset '{hub}'")
    except DataError:
        raise
    except Exception as error:  # many families of them: network, cache, config, split, file
        here = '' if '/' not in name else f" There is no file or folder '{name}' here ({Path.cwd()})."
        raise DataError(f"Dataset '{name}': can't read {place}: {_reason(error)}.{here}") from error


def read_saved(name: str, folder: str, *, split: str, columns: list[str]) -> Iterator[tuple[str, dict]]:
    """(place, record) of each row of a folder written by `save_to_disk`: of its split, if it has several.

    Raises DataError where it can't be read, and for an unknown split or column.
    """
    import datasets

    place = f"saved dataset '{folder}', split {split}"
    try:
        data = datasets.load_from_disk(folder)
        if isinstance(data, datasets.DatasetDict):
            if split not in data:
                raise DataError(
                    unknown('split', split, [str(known) for known in data], f"dataset '{name}', '{folder}'")
                )
            data = data[split]
        yield from _rows(data, columns, place, f"Dataset '{name}': '{folder}'")
    except DataError:
        raise
    except Exception as error:  # many families of them: a missing file, a damaged one, another version
        reason = ' '.join(str(error).split())[:300].rstrip('.')
        raise DataError(f"Dataset '{name}': can't read {place}: {reason}.") from error


def _rows(data: Any, columns: list[str], place: str, whole: str) -> Iterator[tuple[str, dict]]:
    number = 0
    if data.column_names:
        data = data.select_columns(columns_of(columns, data.column_names, place=whole))
    for batch in data.iter(batch_size=256):
        for values in zip(*dict(batch).values()):
            number += 1
            yield f'{place}, row {number}', dict(zip(batch, values))


def _load(hub: str, config: str | None, *, split: str, revision: str | None, stream: bool):
    import datasets
    from datasets import config as settings

    # offline, a stream can't use the cache; a whole dataset can
    streaming = stream and not settings.HF_HUB_OFFLINE
    return datasets.load_dataset(hub, config, split=split, revision=revision, streaming=streaming)


def _reason(error: Exception) -> str:
    reason = ' '.join(str(error).split())[:300].rstrip('.')
    unreachable = isinstance(error, ConnectionError) or 'OfflineMode' in reason or 'cache' in reason
    return reason + REMEDY if unreachable else reason
