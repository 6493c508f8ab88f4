"""Reads datasets of the Hugging Face hub, or a folder with a copy of one."""

from collections.abc import Iterator

from ..errors import DataError
from .local import check_columns

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
    number = 0
    try:
        data = _load(hub, config, split=split, revision=spec.get('revision'), stream=stream)
        if data.column_names:
            check_columns(columns, data.column_names, place=f"Dataset '{name}': hub dataset '{hub}'")
            data = data.select_columns(list(dict.fromkeys(columns)))
        for batch in data.iter(batch_size=256):
            for values in zip(*dict(batch).values()):
                number += 1
                yield f'{place}, row {number}', dict(zip(batch, values))
    except DataError:
        raise
    except Exception as error:  # many families of them: network, cache, config, split, file
        raise DataError(f"Dataset '{name}': can't read {place}: {_reason(error)}.") from error


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
