"""Small helpers that experiments use."""


def to_name(version: str, *values, **parameters) -> str:
    """A model's name from its version and the parameters that tell it apart, as in the original lmplay.

    >>> to_name('gpt2ish', num_blocks=6, max_len=1024)
    'gpt2ish_6_1024'
    """
    parts = [''.join(map(_short, values))] if values else []
    return '_'.join([version, *parts, *map(_short, parameters.values())])


def _short(value) -> str:
    if value is None:
        return 'N'
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f'{value:.1f}'
    if isinstance(value, dict):
        value = list(value.values())
    return f'_{"".join(map(_short, value))}' if isinstance(value, (list, tuple, set)) else str(int(value))
