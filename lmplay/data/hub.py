"""Reads datasets of the Hugging Face hub, or a folder with a copy of one."""

from collections.abc import Iterator

from ..errors import DataError
from .local import check_columns


def read(
    name: str, spec: dict, *, split: str, columns: list[str], stream: bool
) -> Iterator[tuple[str, dict]]:
    """(place, number, record) of a split, only these columns; streamed where only a part of it is wanted.

    Raises DataError where it is neither cached nor to be had from the network, and for an unknown config, split or column.
    """
    import datasets
    from datasets import config as datasets_config

    hub, config = spec['hub'], spec.get('config')
    if 'language' in spec and config is None:
        config = f'{spec["snapshot"]}.{spec["language"]}'
    place = f"hub dataset '{hub}'{f' ({config})' if config else ''}, split {split}"
    number = 0
    try:
        # offline, a stream can't use the cache, a whole dataset can
        data = datasets.load_dataset(
            hub,
            config,
            split=split,
            revision=spec.get('revision'),
            streaming=stream and not datasets_config.HF_HUB_OFFLINE,
        )
        if data.column_names:
            check_columns(columns, data.column_names, place=f"Dataset '{name}': hub dataset '{hub}'")
            data = data.select_columns(list(dict.fromkeys(columns)))
        for batch in data.iter(batch_size=256):
            batch = dict(batch)
            for values in zip(*batch.values()):
                number += 1
                yield f'{place}, row {number}', dict(zip(batch, values))
    except DataError:
        raise
    except Exception as error:  # errors of many families: network, cache, config, split, file
        reason = ' '.join(str(error).split())[:300].rstrip('.')
        if isinstance(error, ConnectionError) or 'OfflineMode' in reason or 'cache' in reason:
            reason += (
                '. Where there is a network, run `lmp_trainer --save-datasets` with this plan and copy its cache here; '
                "or let the plan read a local file; or use the dataset 'embedded', which needs nothing"
            )
        raise DataError(f"Dataset '{name}': can't read {place}: {reason}.") from error
