"""Text from a model, token by token, through its key/value cache.

B rows, T positions, V vocabulary.
"""

import functools
import hashlib
import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..base.base_model import LMBase, LMOutput
from ..device import without_cudnn_attention
from ..errors import ExperimentError, UserError
from ..modules.matmul import speed_up_linears
from ..tokenizers import Tokenizer, as_tokenizer
from .sampling import Sampling

log = logging.getLogger(__name__)


def window_start(position: int, max_len: int) -> int:
    """Index of the first token that the model sees together with the one at `position`.

    Within max_len that is the first of all. Whenever the window is full it slides so that half of it is left.
    It follows from the position alone, so a text does not depend on how it was fed.
    """
    if position < max_len:
        return 0
    hop = max_len - max_len // 2
    return ((position - max_len) // hop + 1) * hop


def generate(
    model: LMBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stop_token: int | None = None,
    on_token: Callable[[int, int], object] | None = None,
) -> list[list[int]]:
    """The tokens that continue each prompt, without the prompt and without `stop_token`, at which a row ends.

    An empty prompt begins after the end of a text. Rows are sampled each with its own random numbers, which
    follow from (seed, row), and run unpadded: a longer prompt is fed token by token while shorter ones are
    already being continued. So a row's text does not depend on what else is in its batch. `on_token(row,
    token)` sees each token as soon as it is chosen, and ends the row where it returns true. Sampling: see
    `Sampling`.

    Raises UserError for a setting out of range, or a prompt with an id outside of the vocabulary.
    """
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty)
    tokenizer = as_tokenizer(model.tokenizer)
    if max_new_tokens < 0:
        raise UserError(f'max_new_tokens must be 0 or above; given: {max_new_tokens}.')
    _check_prompts(prompts, tokenizer.n_vocab)
    if not prompts or not max_new_tokens:
        return [[] for _ in prompts]
    texts = _Texts(prompts, tokenizer.eot_token, max_new_tokens, stop_token)
    training = model.training
    model.eval()
    speed_up_linears(model)
    try:
        _continue(model, texts, sampling, tokenizer.n_vocab, seed, on_token or (lambda row, token: None))
    finally:
        model.train(training)
    return texts.new


def _check_prompts(prompts: Sequence[Sequence[int]], n_vocab: int) -> None:
    for prompt in prompts:
        if wrong := [i for i in prompt if not 0 <= i < n_vocab]:
            raise UserError(
                f'Token {wrong[0]} is not in the vocabulary of the model, which ends at {n_vocab - 1}.'
            )


@without_cudnn_attention()
@torch.no_grad()  # not inference_mode: there autocast would cast the weights again for every token
def _continue(
    model: LMBase,
    texts: '_Texts',
    sampling: Sampling,
    vocab: int,
    seed: int,
    on_token: Callable[[int, int], object],
) -> None:
    device = next(model.parameters()).device
    chosen_on = torch.device('cpu') if device.type == 'mps' else device  # mps has no float64
    generators = [_generator(seed, row) for row in range(len(texts.rows))]
    seen = texts.seen(vocab, chosen_on) if sampling.repetition_penalty != 1 else None
    window = _Window(model)
    length = min(texts.prompt_lengths)  # tokens of each row that the model has seen once `logits` has run
    while texts.unfinished:
        # a head may be padded beyond the vocabulary
        logits = window.logits(texts.rows, length)[:, :vocab].to(chosen_on, torch.float32)
        if seen is not None:
            logits = sampling.penalise(logits, seen)
        chosen = sampling.pick(logits, _uniform(generators, length, texts.prompt_lengths).to(chosen_on))
        texts.take(chosen.tolist(), length, on_token)
        if seen is not None:
            for row, tokens in enumerate(texts.rows):
                seen[row, tokens[length]] = True
        length += 1


class _Texts:
    """Prompts and what follows them.

    rows: all tokens, `start` where the prompt is empty; new: those that were generated; unfinished: rows
    still growing.
    """

    def __init__(
        self, prompts: Sequence[Sequence[int]], start: int, max_new_tokens: int, stop_token: int | None
    ):
        self.rows = [list(map(int, prompt)) or [start] for prompt in prompts]
        self.max_new_tokens, self.stop_token = max_new_tokens, stop_token
        self.prompt_lengths = [len(row) for row in self.rows]
        self.new: list[list[int]] = [[] for _ in self.rows]
        self.unfinished = set(range(len(self.rows)))

    def seen(self, vocab: int, device: torch.device) -> Tensor:
        """(B, V) bool: the tokens that occur in each row."""
        seen = torch.zeros(len(self.rows), vocab, dtype=torch.bool, device=device)
        for row, tokens in enumerate(self.rows):
            seen[row, tokens] = True
        return seen

    def take(self, chosen: list[int], length: int, on_token: Callable[[int, int], object]) -> None:
        """Appends what was chosen after the first `length` tokens, to rows that are past their prompt."""
        for row, token in enumerate(chosen):
            if length < self.prompt_lengths[row]:
                continue
            self.rows[row].append(token)
            if row not in self.unfinished:
                continue
            if token == self.stop_token:
                self.unfinished.remove(row)
                continue
            self.new[row].append(token)
            if on_token(row, token) or len(self.new[row]) == self.max_new_tokens:
                self.unfinished.remove(row)


class _Window:
    """What a model sees of growing texts, through its cache where it has one,
    else from the start of the window each time."""

    def __init__(self, model: LMBase):
        self.model = model
        self.device = next(model.parameters()).device
        self.caches = model.takes_cache
        self.start = self.fed = 0
        self.cache: list = []

    def logits(self, rows: list[list[int]], length: int) -> Tensor:
        """(B, V) after the first `length` tokens of each row."""
        start = window_start(length - 1, self.model.max_len)
        if start != self.start or not self.caches:
            self.start = self.fed = start
            self.cache = []
        x = torch.tensor([tokens[self.fed : length] for tokens in rows], device=self.device)
        self.fed = length
        answer = self.model(x, cache=self.cache) if self.caches else self.model(x)
        if isinstance(answer, tuple) and len(answer) == 2:
            logits, self.cache = answer
        else:  # logits alone: the model knows no cache, whatever its forward accepts
            self.caches = False
            _tell_there_is_no_cache(type(self.model).__name__)
            logits = answer.logits if isinstance(answer, LMOutput) else answer
        if not isinstance(logits, Tensor) or logits.ndim != 3:
            raise ExperimentError(
                f'forward of {type(self.model).__name__} must return logits (B, T, V), or (logits, cache) '
                f'when it is given a cache, to generate text; given: {type(logits).__name__}.'
            )
        return logits[:, -1]


@functools.cache
def _tell_there_is_no_cache(name: str) -> None:
    log.warning(
        '%s has no key/value cache: every token is generated from the whole text before it, which is slower.',
        name,
    )


def _generator(seed: int, row: int) -> torch.Generator:
    digest = hashlib.sha256(f'{seed} {row}'.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], 'little') >> 1)


def _uniform(generators: list[torch.Generator], length: int, prompt_lengths: list[int]) -> Tensor:
    """One random number for each row that is past its prompt (drawn on the CPU: the same on every device)."""
    return torch.stack(
        [
            torch.rand((), generator=g, dtype=torch.float64)
            if length >= n
            else torch.zeros((), dtype=torch.float64)
            for g, n in zip(generators, prompt_lengths, strict=True)
        ]
    )


class TextStream:
    """The text of tokens as they come: what is given out never ends within a character,
    and adds up to the whole text."""

    CONTEXT = 16  # tokens kept to decode the next ones in; a character has at most 4

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._ids: list[int] = []
        self._given = 0  # characters of the text of _ids

    def feed(self, token: int) -> str:
        self._ids.append(token)
        text = self.tokenizer.decode(self._ids)
        whole = text.removesuffix('\ufffd')  # the last character may be cut short
        new = whole[self._given :]
        self._given = max(self._given, len(whole))
        if len(self._ids) >= 4 * self.CONTEXT and whole == text:
            self._ids = self._ids[-self.CONTEXT :]
            self._given = len(self.tokenizer.decode(self._ids))
        return new

    def finish(self) -> str:
        return self.tokenizer.decode(self._ids)[self._given :]
