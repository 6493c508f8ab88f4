"""Evaluation over a fixed held-out set, without gradients: loss, accuracy, perplexity, bits per byte, also by domain."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from ..base.base_model import LMBase
from ..data.held_out import HeldOut
from ..data.rows import IGNORE
from ..device import autocast
from ..tokenizers import as_tokenizer
from .objective import token_losses


@dataclass
class Evaluation:
    """metrics: loss (nats per real scored token), accuracy, perplexity, bits_per_byte, tokens, domains {name: the same}.

    model_metrics: what the model reports of itself (LMOutput.metrics), averaged over the real tokens.
    documents: arrays of equal length with an entry per held-out document: hash, domain, loss (summed nats), tokens, bytes.
    """

    metrics: dict
    model_metrics: dict[str, torch.Tensor]
    documents: dict[str, np.ndarray]
    rows: dict[
        str, tuple[np.ndarray, np.ndarray, np.ndarray]
    ]  # domain -> x, y and the prediction of its first row

    def example(self, tokenizer, domain: str | None = None, length: int = 64) -> dict:
        """prompt, truth and prediction as text: the head of a domain's first held-out row, and what the model predicts for each
        next token."""
        tokenizer = as_tokenizer(tokenizer)
        x, y, prediction = self.rows[domain if domain is not None else next(iter(self.rows))]
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


@torch.no_grad()
def evaluate(
    model: LMBase,
    held_out: HeldOut,
    *,
    forward,
    device: torch.device,
    dtype: torch.dtype | None = None,
    rows_per_batch: int = 8,
    pad_token: int | None = None,
) -> Evaluation:
    """Evaluates `model` (put into eval mode) on every held-out row.

    pad_token: where the padding is scored too (a stage with score_padding), its id: `loss` still is that of real tokens alone,
    and `loss_with_pad` counts the padding, as some published code does.
    """
    model.eval()
    n = len(held_out.documents)
    nll, right, tokens = torch.zeros(n, dtype=torch.float64), torch.zeros(n), torch.zeros(n)
    pad_nll = pad_tokens = 0.0
    rows, reported, real_tokens = {}, {}, 0
    for batch in held_out.batches(rows_per_batch):
        x, y = batch.x.to(device), batch.y.to(device)
        mask = torch.arange(x.shape[1], device=device) < batch.lengths.to(device)[:, None]
        with autocast(device, dtype):
            losses, hit, prediction, output = token_losses(model, forward, x, y, mask)
        real_tokens += batch.tokens
        for name, value in output.metrics.items():
            reported[name] = reported.get(name, 0) + value.float() * batch.tokens
        assert batch.documents is not None
        domain = held_out.documents[int(batch.documents[0, 0])]['domain']  # a batch is of one domain
        if domain not in rows:
            rows[domain] = (batch.x[0].numpy(), batch.y[0].numpy(), prediction[0].cpu().numpy())
        scored = y != IGNORE
        if pad_token is not None:  # a padding target stands where no real token follows
            padding = torch.arange(x.shape[1], device=device) >= batch.lengths.to(device)[:, None] - 1
            padding &= scored & (y == pad_token)
            pad_nll += losses[padding].double().sum().item()
            pad_tokens += padding.sum().item()
            scored &= ~padding
        scored = scored.cpu()
        index = batch.documents[scored]
        nll.index_add_(0, index, losses.cpu()[scored].double())
        right.index_add_(0, index, hit.cpu()[scored].float())
        tokens.index_add_(0, index, torch.ones(len(index)))
    table = {
        'hash': np.array([d['hash'] for d in held_out.documents], np.uint64),
        'domain': np.array([d['domain'] for d in held_out.documents]),
        'bytes': np.array([d['bytes'] for d in held_out.documents]),
        'loss': nll.numpy(),
        'right': right.numpy(),
        'tokens': tokens.numpy(),
    }
    metrics = _summary(table)
    domains = sorted(set(table['domain'].tolist()))
    metrics['domains'] = {
        name: _summary({k: v[table['domain'] == name] for k, v in table.items()}) for name in domains
    }
    if pad_token is not None:
        with_pad = (table['loss'].sum() + pad_nll) / max(1.0, table['tokens'].sum() + pad_tokens)
        metrics |= {'loss_with_pad': with_pad, 'perplexity_with_pad': math.exp(min(with_pad, 700.0))}
    return Evaluation(metrics, {k: v / max(1, real_tokens) for k, v in reported.items()}, table, rows)


def _summary(table: dict[str, np.ndarray]) -> dict:
    tokens = max(1.0, float(table['tokens'].sum()))
    loss = float(table['loss'].sum()) / tokens
    return {
        'loss': loss,
        'accuracy': float(table['right'].sum()) / tokens,
        'perplexity': math.exp(min(loss, 700.0)) if not math.isnan(loss) else math.nan,
        'bits_per_byte': float(table['loss'].sum()) / math.log(2) / max(1, int(table['bytes'].sum())),
        'tokens': int(tokens),
    }
