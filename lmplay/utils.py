"""Small helpers that experiments use."""


def to_name(version: str, **parameters) -> str:
    """A model's name from its version and the parameters that tell it apart.

    >>> to_name('gpt2ish', num_blocks=6, max_len=1024)
    'gpt2ish_6L_1024'
    """
    suffix = {'num_blocks': 'L', 'num_heads': 'H', 'embed_dim': 'D'}
    return '_'.join([version, *(f'{value}{suffix.get(key, "")}' for key, value in parameters.items())])
