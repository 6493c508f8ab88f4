"""From finished runs to findings: what report, CSV and JSON say. Pure functions of the runs."""

import math
import statistics as plain_statistics
from collections.abc import Iterable, Sequence

import numpy as np

from ..runs.finished import FinishedRun, metric_key
from .grouping import METRICS
from .statistics import ALPHA, POWER, bootstrap, detectable, paired_t, seeds_needed, verdict
from .words import FIGURES, sentence, warnings

TOLERANCE = 0.05  # relative difference to the baseline above which a figure counts as unequal


def judge(runs: dict[str, list[FinishedRun]], *, metric: str = 'loss', notes: Sequence[str] = ()) -> dict:
    """The findings as JSON values; the first label is the baseline.

    Differences are experiment minus baseline. The error rate is shared among the comparisons (Bonferroni):
    where all experiments are equal, at most ALPHA of the reports have any wrong verdict.
    """
    baseline, *others = runs
    alpha = ALPHA / max(1, len(others))
    experiments = [_experiment(label, members, metric) for label, members in runs.items()]
    for entry in experiments[1:]:
        entry['comparison'] = compare_pair(runs[baseline], runs[entry['label']], metric, alpha)
        entry['unequal'] = unequal(entry['figures'], experiments[0]['figures'])
        entry['sentence'] = sentence(entry, experiments[0], METRICS[metric], alpha)
    settings = differing_settings(runs)
    return {
        'metric': metric,
        'unit': METRICS[metric],
        'baseline': baseline,
        'alpha': alpha,
        'experiments': experiments,
        'noise': noise(baseline, runs[baseline], metric, alpha=alpha),
        'domains': _domains(runs, metric),
        'settings': settings,
        'held_out': _held_out(runs[baseline][0]),
        'warnings': [*warnings(runs, experiments, settings), *notes],
        'samples': _samples(runs),
        'routing': _routing(runs),
    }


def noise(label: str, members: Sequence[FinishedRun], metric: str, *, alpha: float = ALPHA) -> dict:
    """The seed-to-seed noise of one experiment: what a comparison can and cannot resolve.

    `detectable`: the true difference that as many seeds find with 80 % power if the pairs were independent;
    pairing by seed usually does better.
    """
    losses = {str(r.seed): r.loss(metric) for r in members}
    finite = [v for v in losses.values() if math.isfinite(v)]
    sd = plain_statistics.stdev(finite) if len(finite) > 1 else None
    limit = None if sd is None else float(detectable(sd * math.sqrt(2), len(finite), alpha=alpha))
    return {
        'label': label,
        'metric': metric,
        'losses': {k: _finite(v) for k, v in losses.items()},
        'sd': sd,
        'detectable': limit,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are known."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _experiment(label: str, members: list[FinishedRun], metric: str) -> dict:
    losses = {str(r.seed): _finite(r.loss(metric)) for r in members}
    known = [v for v in losses.values() if v is not None]
    facts, costs = members[0].last_stage, [r.cost for r in members]
    figures = {k: facts[k] for k in ('total_parameters', 'trainable_parameters', 'active_parameters')}
    figures |= {k: _mean(c[k] for c in costs) for k in ('tokens', 'flops', 'seconds', 'tokens_per_second')}
    figures['flops_per_token'] = figures['flops'] / figures['tokens'] if figures['tokens'] else None
    figures['memory'] = max((c['memory'] for c in costs if c['memory']), default=None)
    return {
        'label': label,
        'experiment': members[0].exp,
        'model': facts['model'],
        'losses': losses,
        'mean': _mean(known),
        'sd': plain_statistics.stdev(known) if len(known) > 1 else None,
        'accuracy': _mean(_finite(_accuracy(r)) for r in members),
        'bits_per_byte': _mean(_finite(r.loss('bits_per_byte')) for r in members),
        'figures': {k: figures[k] for k in FIGURES},
    }


def _accuracy(run: FinishedRun) -> float:
    return float(run.documents['right'].sum() / max(1, run.documents['tokens'].sum()))


def unequal(figures: dict, baseline: dict) -> dict[str, float]:
    """Figure -> its ratio to the baseline's, where that is off by more than TOLERANCE."""
    ratios = {k: v / baseline[k] for k, v in figures.items() if v is not None and baseline[k]}
    return {k: r for k, r in ratios.items() if abs(r - 1) > TOLERANCE}


def compare_pair(baseline: list[FinishedRun], members: list[FinishedRun], metric: str, alpha: float) -> dict:
    """Differences of two experiments, paired by seed, and the verdict; no mean where a run diverged."""
    of_seed = {r.seed: r for r in baseline}
    pairs = [(of_seed[r.seed], r) for r in members if r.seed in of_seed]
    differences = {str(r.seed): _finite(r.loss(metric) - b.loss(metric)) for b, r in pairs}
    diverged = {
        who: [run.seed for run in side if not math.isfinite(run.loss(metric))]
        for who, side in (('baseline', [b for b, _ in pairs]), ('experiment', [r for _, r in pairs]))
    }
    found = {
        'seeds': [r.seed for _, r in pairs],
        'differences': differences,
        'documents_by_seed': {
            str(r.seed): _bootstrap([(b, r)], metric, alpha)
            for b, r in pairs
            if differences[str(r.seed)] is not None
        },
        'diverged': diverged,
    }
    if not pairs or None in differences.values():
        alone = diverged['experiment'] and not diverged['baseline']
        return found | {'verdict': 'diverged' if alone else 'no verdict', 'mean': None}
    seeds = paired_t([d for d in differences.values() if d is not None], alpha=alpha)
    over_documents = _bootstrap(pairs, metric, alpha)
    return found | {
        'verdict': verdict(seeds, over_documents),
        'mean': seeds.mean,
        'sd': seeds.sd,
        'low': seeds.low,
        'high': seeds.high,
        'p': seeds.p,
        'documents': over_documents,
        'seeds_needed': None if seeds.sd is None else seeds_needed(seeds.mean, seeds.sd, alpha=alpha),
        'power': POWER,
    }


def _bootstrap(
    pairs: list[tuple[FinishedRun, FinishedRun]], metric: str, alpha: float
) -> tuple[float, float] | None:
    """The interval over held-out documents, each side's losses averaged over the seeds."""
    (_, b_weights), (_, r_weights) = (run.sums(metric) for run in pairs[0])
    b, r = (np.mean([run.sums(metric)[0] for run in side], axis=0) for side in zip(*pairs))
    if not (np.isfinite(b).all() and np.isfinite(r).all()):
        return None
    return bootstrap(b, r, (b_weights, r_weights), alpha=alpha)


def _domains(runs: dict[str, list[FinishedRun]], metric: str) -> list[dict]:
    """Per domain: each experiment's mean loss, and its difference from the baseline with the t interval."""
    baseline, *_ = runs
    domains = runs[baseline][0].documents['domain']
    table = []
    for domain in sorted(set(domains.tolist())):
        base = {r.seed: r.loss(metric, domain) for r in runs[baseline]}
        row = {'domain': domain, 'documents': int((domains == domain).sum()), 'experiments': {}}
        for label, members in runs.items():
            losses = {r.seed: r.loss(metric, domain) for r in members}
            entry = {'loss': _finite(_mean(losses.values()))}
            paired = [losses[s] - base[s] for s in losses if s in base]
            if label != baseline and paired and all(map(math.isfinite, paired)):
                t = paired_t(paired)
                entry |= {'difference': t.mean, 'low': t.low, 'high': t.high}
            row['experiments'][label] = entry
        table.append(row)
    return table


def differing_settings(runs: dict[str, list[FinishedRun]]) -> list[dict]:
    """Settings that differ, {'setting', 'values': {label: text}}; values within a label are joined."""
    configurations = {label: [r.configuration for r in members] for label, members in runs.items()}
    keys = dict.fromkeys(k for group in configurations.values() for c in group for k in c)
    rows = []
    for key in keys:
        values = {
            label: ' / '.join(dict.fromkeys(_text(c.get(key)) for c in group))
            for label, group in configurations.items()
        }
        if len(set(values.values())) > 1 or any(' / ' in v for v in values.values()):
            rows.append({'setting': key, 'values': values})
    return rows


def _text(value) -> str:
    if value is None:
        return '–'
    return f'{value:g}' if isinstance(value, float) else str(value)


def _held_out(run: FinishedRun) -> dict:
    return {
        'documents': len(run.documents['hash']),
        'tokens': int(run.documents['tokens'].sum()),
        'bytes': int(run.documents['bytes'].sum()),
        'domains': sorted(set(run.documents['domain'].tolist())),
    }


def _samples(runs: dict[str, list[FinishedRun]]) -> list[dict]:
    """What each experiment's first seed wrote after the same prompts."""
    by_prompt: dict[tuple[str, str], dict[str, str]] = {}
    for label, members in runs.items():
        for text in members[0].summary.get('texts', ()):
            by_prompt.setdefault((text['domain'], text['prompt']), {})[label] = text['sample']
    return [
        {'domain': domain, 'prompt': prompt, 'texts': texts} for (domain, prompt), texts in by_prompt.items()
    ]


def _routing(runs: dict[str, list[FinishedRun]]) -> dict[str, list[list[float]]]:
    """label -> (layers, E) share of the assignments of each expert at the end, first seed."""
    last = {label: members[0].validations[-1] for label, members in runs.items()}
    found = {label: record.get(metric_key(record, 'expert_load')) for label, record in last.items()}
    return {label: load for label, load in found.items() if load}
