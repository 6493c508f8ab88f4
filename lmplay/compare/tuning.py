"""The search for a learning rate, on held-out documents and seeds of its own."""

import json
import math
import statistics as plain_statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..errors import UserError
from ..runs.finished import FinishedRun
from .judge import compare_pair
from .statistics import ALPHA, FEW_DOCUMENTS, effective_documents, grouped

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the plan's learning rate
SEEDS = (987_654, 987_655, 987_656)  # not among the comparison's
SHARE = 3  # every third held-out document, in the order of its hash, is for tuning alone


def for_tuning(domains: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """(documents,) bool: every third group of each domain, whatever order the documents stand in."""
    chosen = np.zeros(len(hashes), bool)
    for domain in set(domains.tolist()):
        own = np.unique(hashes[domains == domain])
        chosen |= (domains == domain) & np.isin(hashes, own[1::SHARE])
    return chosen


def part_of(run: FinishedRun, *, tuning: bool) -> FinishedRun:
    """The run as evaluated on the documents for tuning, or on those that are left for the verdict."""
    chosen = for_tuning(run.documents['domain'], run.documents['hash']) == tuning
    return replace(run, documents={name: column[chosen] for name, column in run.documents.items()})


def apart_from_tuning(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """The runs; where a learning rate of one was chosen by a search, all as evaluated on the documents that
    the search did not use."""
    return [part_of(run, tuning=False) for run in runs] if any(map(_is_tuned, runs)) else list(runs)


def _is_tuned(run: FinishedRun) -> bool:
    """Whether the run is one of a comparison (OUT/runs/EXPERIMENT/seed-N) that chose its learning rate."""
    file = (
        run.folder.resolve().parents[2] / 'comparison.json' if len(run.folder.resolve().parents) > 2 else None
    )
    try:
        return file is not None and bool(json.loads(file.read_text(encoding='utf-8'))['asked']['tune'])
    except (OSError, ValueError, LookupError, TypeError):
        return False  # of no comparison


def check_text(domains: np.ndarray, hashes: np.ndarray, tokens: np.ndarray) -> None:
    """Raises UserError where a part of the held-out text is too small to tell learning rates apart."""
    chosen = for_tuning(domains, hashes)
    for part, what in ((chosen, 'tuning'), (~chosen, 'the verdict')):
        effective = effective_documents(grouped(tokens[part], hashes[part])) if part.any() else 0.0
        if effective < FEW_DOCUMENTS:
            raise UserError(
                f'--tune splits the held-out documents into two parts; that for {what} would count as '
                f'{effective:.1f} documents of equal size, and {FEW_DOCUMENTS} are needed. Raise '
                'validation_bytes or validation_fraction.'
            )


def choose(label: str, trials: Mapping[float, Sequence[FinishedRun | None]], metric: str) -> dict:
    """The log of a search: what each factor reached, and the factor that is chosen.

    trials: factor -> the run of each seed, None where it stopped early. A factor is chosen over 1 only where
    it is told apart from it, with the error rate shared among the factors (Bonferroni), or where 1 failed.
    Raises UserError where no factor is usable.
    """
    points = {factor: _point(factor, runs, metric) for factor, runs in trials.items()}
    usable = {factor: p['loss'] for factor, p in points.items() if p['loss'] is not None}
    if not usable:
        raise UserError(
            f'No learning rate worked for {label}: at every factor ({", ".join(map(str, trials))}) of the '
            "plan's, a trial diverged or stopped early. Change lr in the plan."
        )
    best = min(usable, key=lambda factor: usable[factor])
    alpha = ALPHA / (len(trials) - 1)
    if 1.0 in usable:
        for factor in usable.keys() - {1.0}:
            found = compare_pair(_whole(trials[1.0]), _whole(trials[factor]), metric, alpha)
            points[factor] |= {k: found[k] for k in ('mean', 'low', 'high', 'verdict')}
    told_apart = best != 1.0 and (1.0 not in usable or points[best]['verdict'] == 'better')
    return {
        'points': list(points.values()),
        'best': best,
        'factor': best if told_apart or 1.0 not in usable else 1.0,
        'told_apart': told_apart,
        'alpha': alpha,
        'seeds': list(SEEDS),
    }


def _point(factor: float, runs: Sequence[FinishedRun | None], metric: str) -> dict:
    losses = [run.loss(metric) if run else math.nan for run in runs]
    finite = all(map(math.isfinite, losses))
    return {
        'factor': factor,
        'losses': [v if math.isfinite(v) else None for v in losses],
        'loss': plain_statistics.mean(losses) if finite else None,
        'sd': plain_statistics.stdev(losses) if finite and len(losses) > 1 else None,
    }


def _whole(runs: Sequence[FinishedRun | None]) -> list[FinishedRun]:
    return [run for run in runs if run is not None]


def search_sentence(label: str, log: dict, rates: Sequence[float]) -> str:
    """What the search found, in a sentence."""
    chosen = ', '.join(f'{rate:g}' for rate in rates)
    if log['told_apart']:
        text = f"{label}: the learning rate {chosen} ({log['factor']:g} times the plan's) did best."
        if log['factor'] in (FACTORS[0], FACTORS[-1]):
            text += ' It is at the edge of those tried; a better one may lie beyond.'
        return text
    if log['best'] == 1.0:
        return f"{label}: the plan's learning rate, {chosen}, did best and is kept."
    return (
        f'{label}: {log["best"]:g} times the learning rate did best, but {len(log["seeds"])} seeds do not '
        f"tell it apart from the plan's, {chosen}, which is kept."
    )
