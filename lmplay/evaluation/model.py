"""A model of ours as lm-evaluation-harness asks its questions: `lm_eval.api.model.LM`.

Texts become tokens, long contexts are cut and long texts go in windows as its own Hugging Face model does, so
the same weights have the same scores. B sequences, T positions.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from torch import Tensor
from tqdm import tqdm

from ..base.base_model import LMBase
from ..data.rows import IGNORE
from ..device import Compute
from ..errors import ExperimentError, UserError, unknown
from ..generate.generator import TextStream, generate
from ..tokenizers import as_tokenizer
from ..train.objective import Objective

# (context and continuation as text, None of a whole text; the same as tokens)
Scored = tuple[tuple[str, str] | None, list[int], list[int]]
CHUNK = 1024  # tokens whose logits are in memory together
SAMPLING = ('temperature', 'top_k', 'top_p', 'repetition_penalty')


class EvaluatedModel(TemplateLM):
    """Scores and continues texts with a model, which is put into evaluation mode.

    Sequences of a batch have the same length, so that nothing is padded and no score depends on what else is
    asked; a model that declares `batch_dependent` is given one sequence at a time. Raises ExperimentError for
    a model that is not causal: what it says of a token is no prediction.
    """

    def __init__(self, model: LMBase, compute: Compute, *, batch_size: int = 32):
        super().__init__()
        if not model.causal:
            raise ExperimentError(
                f'{model.name} sees later positions (causal = False): its scores would be no predictions.'
            )
        self.model, self.compute = model.eval(), compute
        self.objective = Objective(model)
        self.encoding = as_tokenizer(model.tokenizer)
        self.rows_per_batch = 1 if model.batch_dependent else batch_size
        self._device = compute.device

    @property
    def eot_token_id(self) -> int:
        return self.encoding.eot_token

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return [int(token) for token in self.encoding.encode(string)]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """The log-likelihood of each text after the end-of-text token, in nats."""
        texts = [(None, [self.prefix_token_id], self.tok_encode(request.args[0])) for request in requests]
        scored = iter(self._loglikelihood_tokens([text for text in texts if text[2]]))
        return [next(scored)[0] if tokens else 0.0 for _, _, tokens in texts]

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Sequence[Scored], disable_tqdm: bool = True, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """(log-likelihood of the continuation in nats, whether each of its tokens is the most probable)."""
        rows = [row for i, request in enumerate(requests) for row in self._rows(i, *request)]
        sums, all_greedy = [0.0] * len(requests), [True] * len(requests)
        with tqdm(total=len(rows), desc='scored', disable=None, leave=False) as bar:
            for batch in _batches(rows, self.rows_per_batch):
                tokens = torch.tensor([row.tokens for row in batch], device=self.device)
                x, y = tokens[:, :-1], tokens[:, 1:].clone()
                for targets, row in zip(y, batch):
                    targets[: len(targets) - row.scored] = IGNORE
                with self.compute.autocast():
                    losses, right = self._scored(x, y)
                likelihoods = (-losses.double().sum(1)).tolist()
                for row, likelihood, greedy in zip(batch, likelihoods, right.all(1).tolist(), strict=True):
                    sums[row.request] += likelihood
                    all_greedy[row.request] &= greedy
                bar.update(len(batch))
        if any(map(math.isnan, sums)):
            raise UserError(f'{self.model.name} gives NaN for a text: it has diverged, and has no scores.')
        return list(zip(sums, all_greedy))

    def _scored(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(loss (B, T) in nats, whether the target is the most probable (B, T)); (0, True) where y is IGNORE.

        The head is computed where something is scored, which of a long context is little.
        """
        output = self.objective.output(x, torch.ones_like(x, dtype=torch.bool))
        inputs = output.features if self.objective.fused else output.logits
        assert inputs is not None
        scored = y != IGNORE
        losses, right = [], []
        for part, targets in zip(inputs[scored].split(CHUNK), y[scored].split(CHUNK)):
            logits = self.model.fc(part)[:, : self.encoding.n_vocab] if self.objective.fused else part
            losses.append(F.cross_entropy(logits.float(), targets, reduction='none'))
            right.append(logits.argmax(-1) == targets)
        all_losses = torch.zeros(y.shape, device=y.device).masked_scatter(scored, torch.cat(losses))
        return all_losses, torch.ones_like(scored).masked_scatter(scored, torch.cat(right))

    def _rows(
        self, number: int, request: tuple[str, str] | None, context: list[int], continuation: list[int]
    ) -> 'Iterator[_Row]':
        """A continuation behind as much of the end of its context as fits. One of more than max_len tokens
        goes in windows that predict each token once, the last of them with a full context."""
        if not continuation:
            assert request is not None
            raise UserError(
                f'The continuation {request[1]!r} adds no token to its context, with which it merges: let it '
                'begin with a space.'
            )
        length, tokens = self.model.max_len, context + continuation
        for start in range(0, len(continuation), length):
            end = min(start + length, len(continuation))
            upto = len(context) + end
            yield _Row(number, tokens[max(0, upto - length - 1) : upto], end - start)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The continuation of each context up to the first of its stop sequences or the end of the text.

        Of a context the last max_len - max_gen_toks tokens are kept. Where max_gen_toks does not leave any,
        half of max_len is kept and the text goes on in a sliding window, as lmp_generator has it.
        """
        alike = defaultdict(list)  # settings -> indices of requests
        for i, request in enumerate(requests):
            alike[repr(sorted(request.arguments[1].items()))].append(i)
        answers = [''] * len(requests)
        with tqdm(total=len(requests), desc='generated', disable=None, leave=False) as bar:
            for members in alike.values():
                settings = requests[members[0]].arguments[1]
                contexts = [self.tok_encode(requests[i].args[0]) for i in members]
                order = sorted(range(len(members)), key=lambda i: -len(contexts[i]))
                for start in range(0, len(order), self.rows_per_batch):
                    batch = order[start : start + self.rows_per_batch]
                    texts = self._generate([contexts[i] for i in batch], settings)
                    for i, text in zip(batch, texts, strict=True):
                        answers[members[i]] = text
                    bar.update(len(batch))
        return answers

    def _generate(self, contexts: list[list[int]], settings: dict[str, Any]) -> list[str]:
        """The continuations of one batch, which are cut at their stop sequences."""
        given: dict[str, Any] = dict(normalize_gen_kwargs(settings))
        stops = [stop for stop in handle_stop_sequences(given.pop('until'), eos=None) if stop]
        most, sampled = given.pop('max_gen_toks'), given.pop('do_sample')
        if strange := [key for key in given if key not in SAMPLING]:
            raise UserError(unknown('generation setting', strange[0], SAMPLING, 'a task'))
        given['temperature'] = given.get('temperature', 1.0) if sampled else 0.0
        length = self.model.max_len
        kept = length - most if most < length else max(1, length // 2)
        streams, written = [TextStream(self.encoding) for _ in contexts], [''] * len(contexts)

        def stop_here(row: int, token: int) -> bool:
            written[row] += streams[row].feed(token)
            return any(stop in written[row] for stop in stops)

        with self.compute.autocast():
            new = generate(
                self.model,
                [context[-kept:] for context in contexts],
                max_new_tokens=most,
                stop_token=self.eot_token_id,
                on_token=stop_here,
                **given,
            )
        return [postprocess_generated_text(self.encoding.decode(tokens), stops, None) for tokens in new]


class _Row(NamedTuple):
    """A sequence of a request: how many of its last tokens are scored."""

    request: int
    tokens: list[int]
    scored: int


def _batches(rows: Sequence[_Row], most: int) -> Iterator[list[_Row]]:
    """Rows of one length, at most so many, the longest first: memory runs out at once or never."""
    alike = defaultdict(list)
    for row in rows:
        alike[len(row.tokens)].append(row)
    for length in sorted(alike, reverse=True):
        members = alike[length]
        yield from (members[start : start + most] for start in range(0, len(members), most))
