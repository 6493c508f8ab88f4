"""From finished runs to findings: what report, CSV and JSON say. Pure functions of the runs."""

import math
import statistics as plain_statistics
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..runs.finished import FinishedRun, metric_key
from .grouping import METRICS, differing_settings
from .sequential import Sequential, constant_level
from .statistics import (
    ALPHA,
    POWER,
    RANGE,
    RECOMMENDED_SEEDS,
    Noise,
    detectable,
    document_noise,
    effective_documents,
    grouped,
    half_width,
    paired,
    sd_range,
    seeds_needed,
    skewness,
    verdict,
)
from .tasks import compare_tasks
from .words import FIGURES, sentence, warnings

Stopped = Mapping[str, Mapping[int, str]]  # label -> seed -> why its run ended early, or never ended

TOLERANCE = 0.05  # relative difference to the baseline above which a figure counts as unequal
BUSY = 1.25  # tasks per core above which runs are slowed down; their own account for about 1


def judge(
    runs: dict[str, list[FinishedRun]],
    *,
    metric: str = 'loss',
    notes: Sequence[str] = (),
    stopped: Stopped | None = None,
    hopeless: Stopped | None = None,
    design: Sequential | None = None,
) -> dict:
    """The findings as JSON values; the first label is the baseline.

    Differences are experiment minus baseline. The error rate is shared among the comparisons (Bonferroni):
    where all experiments are equal, at most ALPHA of the reports have any wrong verdict, on other text like
    the held-out text and with other seeds. stopped: runs that ended early; hopeless:
    those that could not catch up; design: the rule by which seeds were added.
    """
    baseline, *others = runs
    alpha = ALPHA / max(1, len(others))
    stopped, given_up = _of_each(runs, stopped), _of_each(runs, hopeless)
    experiments = _experiments(runs, metric, alpha, stopped, given_up, design)
    settings = differing_settings(runs)
    load = {label: _load(members) for label, members in runs.items()}
    return {
        'metric': metric,
        'unit': METRICS[metric],
        'baseline': baseline,
        'alpha': alpha,
        'seeds': min(len(e['comparison']['seeds']) for e in experiments[1:]) if others else 0,
        'recommended_seeds': RECOMMENDED_SEEDS,
        'experiments': experiments,
        'noise': noise(baseline, runs[baseline], metric, alpha=alpha),
        'domains': _domains(runs, metric, {k: stopped[k] | given_up[k] for k in runs}, design),
        'tasks': compare_tasks(runs),
        'load': load,
        'settings': settings,
        'held_out': _held_out(runs[baseline][0]),
        'warnings': [*warnings(runs, experiments, settings, load), *notes],
        'samples': _samples(runs),
        'routing': _routing(runs),
    }


def _of_each(labels: Iterable[str], ended: Stopped | None) -> dict[str, dict[int, str]]:
    return {label: dict((ended or {}).get(label, {})) for label in labels}


def _experiments(
    runs: dict[str, list[FinishedRun]],
    metric: str,
    alpha: float,
    stopped: Stopped,
    given_up: Stopped,
    design: Sequential | None,
) -> list[dict]:
    """Each experiment's figures, and but for the first, the baseline, its comparison with that one."""
    first, *others = (
        _experiment(label, runs[label], metric, {**stopped[label], **given_up[label]}) for label in runs
    )
    baseline = first['label']
    for entry in others:
        label = entry['label']
        early = (stopped[baseline], stopped[label])
        entry['comparison'] = compare_pair(runs[baseline], runs[label], metric, alpha, early, design)
        if given_up[label]:
            entry['comparison'] = _without_hopeless(entry['comparison'], sorted(given_up[label]))
        entry['unequal'] = unequal(entry['figures'], first['figures'])
        entry['sentence'] = sentence(entry, first, METRICS[metric], alpha)
    return [first, *others]


def noise(label: str, members: Sequence[FinishedRun], metric: str, *, alpha: float = ALPHA) -> dict:
    """The seed-to-seed noise of one experiment: what a comparison can and cannot resolve.

    `detectable`: the true difference that as many seeds find with 80 % power if the pairs were independent;
    pairing by seed usually does better.
    """
    losses = {str(r.seed): _loss(r, metric) for r in members}
    known = len(losses) > 1 and None not in losses.values()
    sd = plain_statistics.stdev(v for v in losses.values() if v is not None) if known else None
    limit = None if sd is None else float(detectable(sd * math.sqrt(2), len(losses), alpha=alpha))
    return {
        'label': label,
        'metric': metric,
        'losses': losses,
        'sd': sd,
        'detectable': limit,
    }


def _loss(run: FinishedRun, metric: str) -> float | None:
    """None for a run that diverged."""
    return None if run.diverged else _finite(run.loss(metric))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean; None where a value is missing, because a mean of the rest would have survivorship bias."""
    known = [math.nan if v is None else v for v in values]
    return _finite(sum(known) / len(known)) if known else None


def _experiment(label: str, members: list[FinishedRun], metric: str, stopped: Mapping[int, str]) -> dict:
    losses = {str(r.seed): _loss(r, metric) for r in members}
    complete = not stopped and None not in losses.values()
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
        'stopped': {str(seed): why for seed, why in stopped.items()},
        'mean': _mean(losses.values()) if complete else None,
        'sd': plain_statistics.stdev(v for v in losses.values() if v is not None)
        if complete and len(losses) > 1
        else None,
        'accuracy': _mean(_accuracy(r) for r in members) if complete else None,
        'bits_per_byte': _mean(r.loss('bits_per_byte') for r in members) if complete else None,
        'figures': {k: figures[k] for k in FIGURES},
    }


def _accuracy(run: FinishedRun) -> float:
    return float(run.documents['right'].sum() / max(1, run.documents['tokens'].sum()))


def unequal(figures: dict, baseline: dict) -> dict[str, float]:
    """Figure -> its ratio to the baseline's, where that is off by more than TOLERANCE."""
    ratios = {k: v / baseline[k] for k, v in figures.items() if v is not None and baseline[k]}
    return {k: r for k, r in ratios.items() if abs(r - 1) > TOLERANCE}


def compare_pair(
    baseline: list[FinishedRun],
    members: list[FinishedRun],
    metric: str,
    alpha: float,
    stopped: tuple[Mapping[int, str], Mapping[int, str]] = ({}, {}),
    design: Sequential | None = None,
) -> dict:
    """Differences of two experiments, paired by seed, and the verdict; no mean where a run diverged or ended
    early, because those that are left are a biased sample. stopped: seed -> why, of both; design: the rule
    by which seeds were added, whose looks are then shown."""
    of_seed = {r.seed: r for r in baseline}
    pairs = [(of_seed[r.seed], r) for r in members if r.seed in of_seed]
    differences = {
        str(r.seed): None if r.diverged or b.diverged else r.loss(metric) - b.loss(metric) for b, r in pairs
    }
    diverged = {
        who: [run.seed for run in side if run.diverged]
        for who, side in (('baseline', baseline), ('experiment', members))
    }
    found = {
        'seeds': [r.seed for _, r in pairs],
        'differences': differences,
        'documents_by_seed': {
            str(r.seed): _over_documents([(b, r)], metric, alpha)
            for b, r in pairs
            if differences[str(r.seed)] is not None
        },
        'diverged': diverged,
        'stopped': {who: sorted(s) for who, s in zip(('baseline', 'experiment'), stopped)},
    }
    if not pairs or any(stopped) or any(diverged.values()):
        alone = diverged['experiment'] and not diverged['baseline'] and not any(stopped)
        found |= {'verdict': 'diverged' if alone else 'no verdict', 'mean': None}
        return found | ({'sequence': _sequence(found, [], design, alpha)} if design else {})
    if design is None:
        return found | _estimate(pairs, metric, alpha)
    numbers = range(design.first(alpha), len(pairs) + 1)
    looks = [_estimate(pairs[:n], metric, alpha, design.critical(alpha, n)) for n in numbers]
    found |= looks[-1] | {'seeds_needed': None, 'seeds_range': None}
    return found | {'sequence': _sequence(found, looks, design, alpha)}


def _without_hopeless(found: dict, seeds: list[int]) -> dict:
    """The findings on an experiment with runs that were stopped as hopeless: they count as worse, so it is
    worse unless a finished seed is not. There is no mean, because those that are left are the better ones."""
    finished = [v for v in found['differences'].values() if v is not None]
    worse = (
        found['verdict'] != 'diverged' and not any(found['stopped'].values()) and all(v > 0 for v in finished)
    )
    return found | {
        'verdict': 'worse' if worse else 'no verdict',
        'hopeless': seeds,
        **dict.fromkeys(('mean', 'sd', 'low', 'high', 'p'), None),
    }


def _sequence(found: dict, looks: list[dict], design: Sequential, alpha: float) -> dict:
    """What the rule saw at each look, and why it ended; 'ended' is None where it goes on."""
    differences = list(found['differences'].values())
    skew = skewness(differences) if looks else None
    return {
        'rule': str(design),
        'maximum': design.maximum,
        'smallest_effect': design.smallest_effect,
        'level': constant_level(alpha, design.maximum) if design.maximum else None,
        'ended': design.ended(found),
        'skewness': skew and {'value': skew[0], 'p': skew[1]},
        'looks': [
            {'seeds': n, 'p': paired(differences[:n]).p} | {k: look[k] for k in ('mean', 'low', 'high')}
            for n, look in enumerate(looks, design.first(alpha))
        ],
    }


def _estimate(
    pairs: list[tuple[FinishedRun, FinishedRun]], metric: str, alpha: float, critical: float | None = None
) -> dict:
    """The mean difference of finite pairs, its interval, and how many seeds would resolve it."""
    differences = [r.loss(metric) - b.loss(metric) for b, r in pairs]
    documents = _document_noise(pairs, metric)
    of_seeds = paired(differences, alpha=alpha, critical=critical)  # over new seeds alone
    both = paired(differences, documents, alpha=alpha, critical=critical)
    judged = documents is not None and both.sd is not None
    found = {
        'verdict': verdict(both.low, both.high) if judged else 'no verdict',
        'mean': both.mean,
        'sd': both.sd,
        'low': both.low if judged else None,
        'high': both.high if judged else None,
        'p': both.p if judged else None,
        'error_of_seeds': None if both.sd is None else both.sd / math.sqrt(both.n),
        'error_of_documents': None if documents is None else math.sqrt(documents.variance),
        'over_seeds': None if of_seeds.low is None else (of_seeds.low, of_seeds.high),
        'documents': _over_documents(pairs, metric, alpha),
        'seeds_needed': None,
        'seeds_range': None,
        'power': POWER,
        'range': RANGE,
    }
    if documents is None or both.sd is None:
        return found
    lowest, highest = sd_range(both.sd, both.n)
    needed = [seeds_needed(both.mean, sd, documents, alpha=alpha) for sd in (both.sd, lowest, highest)]
    return found | {'seeds_needed': needed[0], 'seeds_range': needed[1:]}


def _document_noise(
    pairs: list[tuple[FinishedRun, FinishedRun]], metric: str, domain: str | None = None
) -> Noise | None:
    """The noise of the held-out documents, each side's losses averaged over the seeds; of one domain."""
    documents = pairs[0][0].documents
    chosen = slice(None) if domain is None else documents['domain'] == domain
    (_, b_weights), (_, r_weights) = (run.sums(metric) for run in pairs[0])
    b, r = (np.mean([run.sums(metric)[0] for run in side], axis=0) for side in zip(*pairs))
    if not (np.isfinite(b[chosen]).all() and np.isfinite(r[chosen]).all()):
        return None
    weights = b_weights[chosen], r_weights[chosen]
    return document_noise(b[chosen], r[chosen], weights, documents['hash'][chosen])


def _over_documents(
    pairs: list[tuple[FinishedRun, FinishedRun]], metric: str, alpha: float
) -> tuple[float, float] | None:
    """The interval of these models' difference over new documents alone."""
    noise = _document_noise(pairs, metric)
    if noise is None:
        return None
    mean = float(np.mean([r.loss(metric) - b.loss(metric) for b, r in pairs]))
    half = half_width(alpha, [noise])
    return mean - half, mean + half


def _domains(
    runs: dict[str, list[FinishedRun]], metric: str, stopped: Stopped, design: Sequential | None
) -> list[dict]:
    """Per domain: each experiment's mean loss, and its difference from the baseline with its interval.

    The error rate is shared among domains and experiments (Bonferroni). A domain whose text counts as fewer
    than FEW_DOCUMENTS has no interval, one without targets has no loss.
    """
    baseline, *others = runs
    documents = runs[baseline][0].documents
    names = sorted(set(documents['domain'].tolist()))
    alpha = ALPHA / max(1, len(names) * len(others))
    table = []
    for domain in names:
        own = documents['domain'] == domain
        tokens = documents['tokens'][own]
        row = {
            'domain': domain,
            'documents': int(own.sum()),
            'effective': effective_documents(grouped(tokens, documents['hash'][own])),
            'alpha': alpha,
            'experiments': {},
        }
        for label, members in runs.items():
            entry = (
                {'loss': _mean(r.loss(metric, domain) for r in members)} if tokens.any() else {'loss': None}
            )
            complete = not stopped[label] and not stopped[baseline] and tokens.any()
            if label != baseline and complete:
                entry |= _in_domain(runs[baseline], members, metric, domain, alpha, design)
            row['experiments'][label] = entry
        table.append(row)
    return table


def _in_domain(
    baseline: list[FinishedRun],
    members: list[FinishedRun],
    metric: str,
    domain: str,
    alpha: float,
    design: Sequential | None,
) -> dict:
    """The difference of two experiments in one domain; empty where a run diverged."""
    base = {r.seed: r for r in baseline}
    pairs = [(base[r.seed], r) for r in members if r.seed in base]
    differences = [r.loss(metric, domain) - b.loss(metric, domain) for b, r in pairs]
    if not pairs or not all(map(math.isfinite, differences)):
        return {}
    noise = _document_noise(pairs, metric, domain)
    critical = design.critical(alpha, len(pairs)) if design else None
    found = paired(differences, noise, alpha=alpha, critical=critical)
    judged = None not in (noise, found.sd, found.high) and math.isfinite(found.high or 0.0)
    low, high = (found.low, found.high) if judged else (None, None)
    return {'difference': found.mean, 'low': low, 'high': high}


def _load(members: list[FinishedRun]) -> dict:
    """Tasks per core while the runs were timed, at most; None where none recorded it."""
    loads = [load for r in members for load in (r.environment.get('load'), r.summary.get('load')) if load]
    most = max(loads, default=None)
    return {'most': most, 'busy': most is not None and most > BUSY}


def _held_out(run: FinishedRun) -> dict:
    return {
        'documents': len(run.documents['hash']),
        'effective': effective_documents(grouped(run.documents['tokens'], run.documents['hash'])),
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
