"""Text from a model, token by token, through its key/value cache.

B rows, T positions, V vocabulary.
"""

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..base.base_model import LMBase
from ..errors import ExperimentError, UserError
from ..modules.matmul import speed_up_linears
from ..tokenizers import Tokenizer, as_tokenizer
from .sampling import Sampling


def window_start(position: int, max_len: int) -> int:
    """Index of the first token that the model sees together with the one at `position`.

    Within max_len that is the first of all. Whenever the window is full it slides so that half of it is left. It follows from
    the position alone, so a text does not depend on how it was fed.
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
    on_token: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """The tokens that continue each prompt, without the prompt and without `stop_token`, at which a row ends.

    An empty prompt begins after the end of a text. Rows are sampled each with its own random numbers, which follow from (seed,
    row), and run unpadded: a longer prompt is fed token by token while shorter ones are already being continued. So a row's
    text does not depend on what else is in its batch. `on_token(row, token)` sees each token as soon as it is chosen.
    Sampling: see `Sampling`.

    Raises UserError for a setting out of range, or a prompt with an id outside of the vocabulary.
    """
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty)
    tokenizer = as_tokenizer(model.tokenizer)
    if max_new_tokens < 0:
        raise UserError(f'max_new_tokens must be 0 or above; given: {max_new_tokens}.')
    for prompt in prompts:
        if wrong := [i for i in prompt if not 0 <= i < tokenizer.n_vocab]:
            raise UserError(
                f'Token {wrong[0]} is not in the vocabulary of the model, which ends at {tokenizer.n_vocab - 1}.'
            )
    if not prompts or not max_new_tokens:
        return [[] for _ in prompts]
    rows = [[int(i) for i in prompt] or [tokenizer.eot_token] for prompt in prompts]
    training = model.training
    model.eval()
    speed_up_linears(model)
    try:
        return _generate(model, rows, sampling, tokenizer.n_vocab, max_new_tokens, seed, stop_token, on_token)
    finally:
        model.train(training)


@torch.no_grad()  # not inference_mode: there autocast would cast the weights anew for every token
def _generate(
    model: LMBase,
    rows: list[list[int]],
    sampling: Sampling,
    vocab: int,
    max_new_tokens: int,
    seed: int,
    stop_token: int | None,
    on_token: Callable[[int, int], None] | None,
) -> list[list[int]]:
    device = next(model.parameters()).device
    chosen_on = 'cpu' if device.type == 'mps' else device  # mps has no float64
    generators = [_generator(seed, row) for row in range(len(rows))]
    prompt_lengths = [len(row) for row in rows]
    new: list[list[int]] = [[] for _ in rows]
    unfinished = set(range(len(rows)))
    seen = None
    if sampling.repetition_penalty != 1:
        seen = torch.zeros(len(rows), vocab, dtype=torch.bool, device=chosen_on)
        for row, tokens in enumerate(rows):
            seen[row, tokens] = True

    length = min(prompt_lengths)  # tokens of each row that the model has been fed, once x is
    start = window_start(length - 1, model.max_len)
    x, cache = torch.tensor([tokens[start:length] for tokens in rows], device=device), []
    while True:
        answer = model(x, cache)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise ExperimentError(
                f'forward of {type(model).__name__} must return (logits, cache) when it is given a cache, to generate text; '
                f'it returned {type(answer).__name__}.'
            )
        logits, cache = answer
        logits = logits[:, -1, :vocab].to(chosen_on, torch.float32)  # a model may have padded its vocabulary
        if seen is not None:
            logits = sampling.penalise(logits, seen)
        x = sampling.pick(logits, _uniform(generators, length, prompt_lengths).to(chosen_on))[:, None].to(
            device
        )
        for row, token in enumerate(x[:, 0].tolist()):
            if length < prompt_lengths[row]:  # still being fed its prompt
                continue
            rows[row].append(token)
            if row in unfinished:
                if token == stop_token:
                    unfinished.remove(row)
                    continue
                new[row].append(token)
                if on_token is not None:
                    on_token(row, token)
                if len(new[row]) == max_new_tokens:
                    unfinished.remove(row)
        if not unfinished:
            return new
        if window_start(length, model.max_len) != start:
            start, cache = window_start(length, model.max_len), []
            x = torch.tensor([tokens[start : length + 1] for tokens in rows], device=device)
        elif length < max(prompt_lengths):
            x = torch.tensor([[tokens[length]] for tokens in rows], device=device)
        length += 1
        if seen is not None:
            seen.scatter_(1, x[:, -1:].to(chosen_on), True)


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
    """The text of tokens as they come: what is given out never ends within a character, and adds up to the whole text."""

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
