"""Tokenizers as transformers' own: each becomes a tokenizer.json that encodes every text alike."""

import json
from pathlib import Path
from typing import Any

from .bpe import BPETokenizer
from .protocol import Tokenizer

END = '<|endoftext|>'  # what the end of text is called where a tokenizer gives it no name


def as_fast(tokenizer: Tokenizer, *, max_len: int) -> Any | None:
    """transformers' PreTrainedTokenizerFast that gives the same ids, or None for a kind of the user's own.

    Special tokens spelled out in a text are ordinary text in it, as they are here, and nothing is added to a
    text. max_len: the longest sequence that the model takes.
    """
    from transformers import PreTrainedTokenizerFast

    backend = _backend(tokenizer)
    if backend is None:
        return None
    end = backend.id_to_token(tokenizer.eot_token)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=end,  # what an empty prompt begins with
        eos_token=end,
        pad_token=backend.id_to_token(tokenizer.pad_token),
        model_max_length=max_len,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )


def save_fast(tokenizer: Tokenizer, folder: Path, *, max_len: int) -> bool:
    """Writes `as_fast` into a folder, where AutoTokenizer finds it; False where there is none."""
    fast = as_fast(tokenizer, max_len=max_len)
    if fast is not None:
        fast.save_pretrained(folder)
    return fast is not None


def _backend(tokenizer: Tokenizer):
    """The tokenizer as one of the tokenizers library."""
    import tokenizers as tk

    from . import BytesTokenizer, TiktokenTokenizer

    if isinstance(tokenizer, BPETokenizer):
        settings = json.loads(tokenizer.backend.to_str())
        settings['post_processor'] = None  # it could add tokens to a text
        return tk.Tokenizer.from_str(json.dumps(settings))
    if isinstance(tokenizer, TiktokenTokenizer):
        return _from_tiktoken(tokenizer.encoding)
    if isinstance(tokenizer, BytesTokenizer):
        vocabulary = {_spelled(bytes([i])): i for i in range(256)}
        return _byte_level(vocabulary, [], {END: tokenizer.eot_token}, pattern=None)
    return None


def _from_tiktoken(encoding):
    """tiktoken joins any two neighbours whose union is an entry, the lowest id first; so every way to make an
    entry of two others is a merge, in the order of the ids."""
    ranks = encoding._mergeable_ranks
    merges = [
        (_spelled(token[:cut]), _spelled(token[cut:]))
        for token in sorted(ranks, key=ranks.__getitem__)
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    vocabulary = {_spelled(token): rank for token, rank in ranks.items()}
    return _byte_level(vocabulary, merges, encoding._special_tokens, pattern=encoding._pat_str)


def _byte_level(vocabulary: dict, merges: list, special: dict[str, int], *, pattern: str | None):
    """A byte-pair encoding over bytes; text is first split by the pattern, if there is one."""
    import tokenizers as tk

    backend = tk.Tokenizer(tk.models.BPE(vocab=vocabulary | special, merges=merges))
    split = [tk.pre_tokenizers.Split(tk.Regex(pattern), 'isolated')] if pattern else []
    to_characters = tk.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = tk.pre_tokenizers.Sequence([*split, to_characters])
    backend.decoder = tk.decoders.ByteLevel()
    backend.add_special_tokens([tk.AddedToken(t, special=True, normalized=False) for t in special])
    return backend


def _characters() -> list[str]:
    """The character that stands for each byte in byte-level vocabularies (Radford et al. 2019): itself where
    it can be printed, else one from U+0100 on, in order."""
    printed = {*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1), *range(ord('®'), ord('ÿ') + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printed else next(others)) for byte in range(256)]


CHARACTERS = _characters()


def _spelled(token: bytes) -> str:
    return ''.join(CHARACTERS[byte] for byte in token)
