"""A model of ours as lm-evaluation-harness asks its questions: `lm_eval.api.model.LM`.

Texts become tokens, long contexts are cut and long texts go in windows as its own Hugging Face model does, so
the same weights have the same scores. B sequences, T positions.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from ..base.base_model import LMBase
from ..data.rows import IGNORE
from ..device import Compute
from ..errors import ExperimentError, UserError, unknown
from ..generate.generator import TextStream, generate
from ..tokenizers import as_tokenizer
from ..train.objective import Objective

Scored = tuple[Any, list[int], list[int]]  # (request, context, continuation), the latter two as tokens
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

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """The log-likelihood of each text after the end-of-text token, in nats.

        A text longer than max_len goes in windows that predict each token once, the last of them with a full
        context.
        """
        windows, owners = [], []
        for owner, request in enumerate(requests):
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.model.max_len,
                context_len=1,
            ):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(owner)
        sums = [0.0] * len(requests)
        for owner, (score, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            sums[owner] += score
        return sums

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Sequence[Scored], disable_tqdm: bool = True, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """(log-likelihood of the continuation in nats, whether each of its tokens is the most probable)."""
        rows = [self._row(*request) for request in requests]
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
        with tqdm(total=len(rows), desc='scored', disable=None, leave=False) as bar:
            for batch in _batches([len(tokens) for tokens, _ in rows], self.rows_per_batch):
                tokens = torch.tensor([rows[i][0] for i in batch], device=self.device)
                x, y = tokens[:, :-1], tokens[:, 1:].clone()
                for row, i in enumerate(batch):
                    y[row, : y.shape[1] - rows[i][1]] = IGNORE
                with self.compute.autocast():
                    losses, _, predicted, _ = self.objective.token_losses(x, y, torch.ones_like(x, dtype=torch.bool))
                likelihoods = -losses.double().sum(1)
                greedy = ((predicted == y) | (y == IGNORE)).all(1)
                for i, likelihood, is_greedy in zip(batch, likelihoods.tolist(), greedy.tolist()):
                    answers[i] = likelihood, is_greedy
                bar.update(len(batch))
        if any(likelihood != likelihood for likelihood, _ in answers):
            raise UserError(f'{self.model.name} gives NaN for a text: it has diverged, and has no scores.')
        return answers

    def _row(self, request: Any, context: list[int], continuation: list[int]) -> tuple[list[int], int]:
        """(tokens, how many at the end are scored); of a context that is too long, the end is kept."""
        length = self.model.max_len
        if not continuation:
            raise UserError(
                f'The continuation {request[1]!r} adds no token to its context, with which it merges: let it '
                'begin with a space.'
            )
        if len(continuation) > length:
            raise UserError(
                f'A continuation of {len(continuation)} tokens is longer than the {length} positions of '
                f'{self.model.name}: {request[1][:60]!r}...'
            )
        return (context + continuation)[-(length + 1) :], len(continuation)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The continuation of each context up to the first of its stop sequences or the end of the text.

        Of a context the last max_len - max_gen_toks tokens are kept. Where max_gen_toks does not leave any,
        half of max_len is kept and the text goes on in a sliding window, as lmp_generator has it.
        """
        alike = defaultdict(list)  # settings -> indices of requests
        for i, request in enumerate(requests):
            alike[repr(sorted(request.args[1].items()))].append(i)
        answers = [''] * len(requests)
        with tqdm(total=len(requests), desc='generated', disable=None, leave=False) as bar:
            for members in alike.values():
                settings = requests[members[0]].args[1]
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


def _batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Indices of rows of one length, at most so many, the longest first: memory runs out at once or never."""
    alike = defaultdict(list)
    for i, length in enumerate(lengths):
        alike[length].append(i)
    for length in sorted(alike, reverse=True):
        members = alike[length]
        yield from (members[start : start + most] for start in range(0, len(members), most))
