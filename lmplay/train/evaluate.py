"""Evaluation over a fixed held-out set, without gradients: loss, accuracy, perplexity, bits per byte,
also by domain."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..data.held_out import HeldOut
from ..data.rows import IGNORE, Batch
from ..device import Compute, without_cudnn_attention
from ..tokenizers import as_tokenizer
from .objective import Objective
from .ranks import ALONE, Ranks

Examples = dict[str, tuple[tuple[bool, int], tuple]]  # domain -> where it stands, (x, y, prediction)


@dataclass
class Evaluation:
    """What one evaluation found.

    metrics        loss (nats per real scored token), accuracy, perplexity, bits_per_byte (bits over the bytes
                   of the scored text), tokens (scored), domains {name: the same}; None where nothing is
                   scored
    model_metrics  what the model reports of itself (LMOutput.metrics), averaged over the real tokens
    documents      arrays of equal length with an entry per held-out document: hash, domain, loss (summed
                   nats), tokens and bytes that are scored, right (predictions)
    examples       domain -> x, y and the prediction of its first sequence that scores anything
    """

    metrics: dict
    model_metrics: dict[str, torch.Tensor]
    documents: dict[str, np.ndarray]
    examples: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]

    def example(self, tokenizer, domain: str | None = None, length: int = 64) -> dict:
        """prompt, truth and prediction as text: the head of a domain's first held-out sequence, and for each
        next token what the model predicts."""
        tokenizer = as_tokenizer(tokenizer)
        x, y, prediction = self.examples[domain if domain is not None else next(iter(self.examples))]
        scored = np.flatnonzero(y != IGNORE)
        if not len(scored):
            return {'prompt': '', 'truth': '', 'prediction': ''}
        first = max(int(scored[0]), min(32, len(scored) // 2))
        part = scored[scored >= first][:length]
        decode = tokenizer.decode
        return {
            'prompt': decode(x[: first + 1].tolist()),
            'truth': decode(y[part].tolist()),
            'prediction': decode(prediction[part].tolist()),
        }


@dataclass
class Evaluator:
    """Evaluates models on one held-out set.

    padding_scored: the padding is scored too (a stage with score_padding): `loss` remains that of real tokens
    alone, and `loss_with_pad` counts the padding, as some published code does.
    """

    held_out: HeldOut
    compute: Compute
    padding_scored: bool = False

    @without_cudnn_attention()
    @torch.no_grad()
    def evaluate(
        self, objective: Objective, *, sequences_per_batch: int = 8, ranks: Ranks = ALONE
    ) -> Evaluation:
        """Of the objective's model in evaluation mode, in which it is left; each rank has a share of the
        sequences, and all get the whole."""
        objective.model.eval()
        device = self.compute.device
        documents = self.held_out.documents
        sums = _Sums(len(documents))
        examples: Examples = {}
        batches = enumerate(self.held_out.batches(sequences_per_batch))
        for (number, batch), own in ranks.dealt(batches):
            x, y, lengths = (t.to(device) for t in (batch.x, batch.y, batch.lengths))
            mask = torch.arange(x.shape[1], device=device) < lengths[:, None]
            with self.compute.autocast():
                losses, right, prediction, output = objective.token_losses(x, y, mask)
            assert batch.documents is not None
            if not own:
                continue
            domain = documents[int(batch.documents[0, 0])]['domain']  # a batch is of one domain
            i = int((batch.y != IGNORE).any(dim=1).int().argmax())
            order = bool((batch.y[i] == IGNORE).all()), number  # the first that scores anything
            if domain not in examples or order < examples[domain][0]:
                shown = (batch.x[i].numpy(), batch.y[i].numpy(), prediction[i].cpu().numpy())
                examples[domain] = order, shown
            sums.add_reported(output.metrics, batch.tokens)
            scored = y != IGNORE
            sums.add(batch, losses, right, scored & mask)
            if self.padding_scored:
                sums.add_padding(losses, scored & ~mask)
        if not ranks.alone:
            sums.join(ranks)
            examples = _first_of_all(ranks.gathered(examples))
        table = sums.table(documents)
        metrics = _summary(table) | {'domains': _by_domain(table)}
        if self.padding_scored:
            metrics |= sums.with_padding()
        shown = {domain: example for domain, (_, example) in examples.items()}
        return Evaluation(metrics, sums.model_metrics(), table, shown)


def _first_of_all(of_ranks: list[Examples]) -> Examples:
    """The first example of each domain, in the order of the batches that hold them."""
    first: Examples = {}
    for domain, example in (item for own in of_ranks for item in own.items()):
        if domain not in first or example[0] < first[domain][0]:
            first[domain] = example
    return dict(sorted(first.items(), key=lambda item: item[1][0][1]))


class _Sums:
    """Summed over an evaluation: by document nats, right predictions and tokens; of the padding;
    of what the model reports."""

    def __init__(self, documents: int):
        self.nll = torch.zeros(documents, dtype=torch.float64)
        self.right, self.tokens = torch.zeros(documents), torch.zeros(documents)
        self.pad_nll = self.pad_tokens = 0.0
        self.reported: dict[str, torch.Tensor] = {}
        self.real_tokens = 0

    def add(self, batch: Batch, losses: torch.Tensor, right: torch.Tensor, scored: torch.Tensor) -> None:
        scored = scored.cpu()
        assert batch.documents is not None
        index = batch.documents[scored]
        self.nll.index_add_(0, index, losses.cpu()[scored].double())
        self.right.index_add_(0, index, right.cpu()[scored].to(self.right.dtype))
        self.tokens.index_add_(0, index, torch.ones(len(index)))

    def table(self, documents: Sequence[dict]) -> dict[str, np.ndarray]:
        """The columns of held_out-STAGE.npz."""
        return {
            'hash': np.array([d['hash'] for d in documents], np.uint64),
            'domain': np.array([d['domain'] for d in documents]),
            'bytes': np.array([d['bytes'] for d in documents]),
            'loss': self.nll.numpy(),
            'right': self.right.numpy(),
            'tokens': self.tokens.numpy(),
        }

    def add_padding(self, losses: torch.Tensor, padding: torch.Tensor) -> None:
        self.pad_nll += losses[padding].double().sum().item()
        self.pad_tokens += padding.sum().item()

    def add_reported(self, metrics: dict[str, torch.Tensor], tokens: int) -> None:
        self.real_tokens += tokens
        for name, value in metrics.items():
            self.reported[name] = self.reported.get(name, 0) + value.float() * tokens

    def join(self, ranks: Ranks) -> None:
        """Adds up the sums of all ranks."""
        by_document = torch.stack([self.nll, self.right.double(), self.tokens.double()])
        self.nll, right, tokens = ranks.summed(by_document)
        self.right, self.tokens = right.to(self.right.dtype), tokens.to(self.tokens.dtype)
        own = (self.pad_nll, self.pad_tokens, self.real_tokens, self.reported)
        *sums, reported = zip(*ranks.gathered(own))
        self.pad_nll, self.pad_tokens, self.real_tokens = map(sum, sums)
        names = dict.fromkeys(name for values in reported for name in values)
        zero = torch.zeros(())
        self.reported = {name: sum((v[name] for v in reported if name in v), zero) for name in names}

    def model_metrics(self) -> dict[str, torch.Tensor]:
        return {name: value / max(1, self.real_tokens) for name, value in self.reported.items()}

    def with_padding(self) -> dict[str, float]:
        tokens = max(1.0, self.tokens.numpy().sum() + self.pad_tokens)
        loss = (self.nll.numpy().sum() + self.pad_nll) / tokens
        return {'loss_with_pad': loss, 'perplexity_with_pad': math.exp(min(loss, 700.0))}


def _by_domain(table: dict[str, np.ndarray]) -> dict[str, dict]:
    names = sorted(set(table['domain'].tolist()))
    return {name: _summary({k: v[table['domain'] == name] for k, v in table.items()}) for name in names}


def _summary(table: dict[str, np.ndarray]) -> dict:
    tokens, size = int(table['tokens'].sum()), int(table['bytes'].sum())
    if not tokens:  # the mean of nothing is not 0
        return dict.fromkeys(('loss', 'accuracy', 'perplexity', 'bits_per_byte')) | {'tokens': 0}
    nats = float(table['loss'].sum())
    loss = nats / tokens
    return {
        'loss': loss,
        'accuracy': float(table['right'].sum()) / tokens,
        'perplexity': math.exp(min(loss, 700.0)) if not math.isnan(loss) else math.nan,
        'bits_per_byte': nats / math.log(2) / size if size else None,
        'tokens': tokens,
    }
