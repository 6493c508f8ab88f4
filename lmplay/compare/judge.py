"""From finished runs to findings: what report, CSV and JSON say. Pure functions of the runs."""

import math
import statistics as plain_statistics
from collections.abc import Sequence

import numpy as np

from .results import METRICS, Run
from .statistics import (
    ALPHA,
    FEW_DOCUMENTS,
    MOST_SEEDS,
    POWER,
    bootstrap,
    detectable,
    paired_t,
    seeds_needed,
    verdict,
)

TOLERANCE = 0.05  # relative difference to the baseline from which a figure is called unequal
# What can't be matched is said: name -> (heading, unit)
FIGURES = {
    'total_parameters': ('parameters', ''),
    'trainable_parameters': ('trainable', ''),
    'active_parameters': ('active per token', ''),
    'flops_per_token': ('training FLOPs per token', ''),
    'tokens': ('tokens trained', ''),
    'flops': ('training FLOPs', ''),
    'seconds': ('seconds of training', 's'),
    'tokens_per_second': ('tokens per second', ''),
    'memory': ('peak memory', 'B'),
}

MEASURED = ('seconds', 'tokens_per_second', 'memory')


def judge(runs: dict[str, list[Run]], *, metric: str = 'loss', notes: Sequence[str] = ()) -> dict:
    """The findings; the first label is the baseline. Differences are experiment minus baseline, plain JSON values throughout.

    With several experiments the error rate is shared among them (Bonferroni), so that all verdicts together are wrong about
    equal experiments in at most ALPHA of all comparisons.
    """
    baseline, *others = runs
    alpha = ALPHA / max(1, len(others))
    experiments = [_experiment(label, members, metric) for label, members in runs.items()]
    for entry in experiments[1:]:
        entry['comparison'] = compare_pair(runs[baseline], runs[entry['label']], metric, alpha)
        entry['unequal'] = unequal(entry['figures'], experiments[0]['figures'])
        entry['sentence'] = sentence(entry, experiments[0], metric, alpha)
    return {
        'metric': metric,
        'unit': METRICS[metric],
        'baseline': baseline,
        'alpha': alpha,
        'experiments': experiments,
        'noise': noise(runs[baseline], metric, alpha=alpha),
        'domains': _domains(runs, metric),
        'settings': differing_settings(runs),
        'held_out': _held_out(runs[baseline][0]),
        'warnings': [*_warnings(runs, experiments), *notes],
        'samples': _samples(runs),
        'routing': _routing(runs),
    }


def noise(members: Sequence[Run], metric: str, *, alpha: float = ALPHA) -> dict:
    """The seed-to-seed noise of one experiment: what a comparison can and can't resolve.

    `detectable`: the true difference that as many seeds find with 80 % power if the pairs were independent; pairing by seed
    usually does better.
    """
    losses = {str(r.seed): r.loss(metric) for r in members}
    finite = [v for v in losses.values() if math.isfinite(v)]
    sd = plain_statistics.stdev(finite) if len(finite) > 1 else None
    return {
        'label': members[0].label,
        'metric': metric,
        'losses': {k: _finite(v) for k, v in losses.items()},
        'sd': sd,
        'detectable': detectable(sd * math.sqrt(2), len(finite), alpha=alpha) if sd is not None else None,
    }


def early_warning(
    members: Sequence[Run], baseline: Sequence[Run], metric: str, *, alpha: float = ALPHA
) -> str | None:
    """What can be said of an experiment while most of its seeds are still to come; None where the baseline has one seed."""
    measured = noise(baseline, metric, alpha=alpha)
    pairs = [(r.loss(metric), b.loss(metric)) for r in members for b in baseline if r.seed == b.seed]
    if (
        not pairs
        or measured['sd'] is None
        or not all(map(math.isfinite, (v for pair in pairs for v in pair)))
    ):
        return None
    difference = sum(r - b for r, b in pairs) / len(pairs)
    limit = measured['detectable']
    seeds = len(measured['losses'])
    so_far = f'{members[0].label} after {len(pairs)} of {seeds} seeds: {signed(difference)}'
    if abs(difference) >= limit:
        return f'{so_far}; about {limit:.4f} is what {seeds} seeds can resolve if it is as steady as {measured["label"]}.'
    needed = seeds_needed(difference, measured['sd'] * math.sqrt(2), alpha=alpha)
    return (
        f'{so_far}. Warning: that is below what {seeds} seeds can resolve (about {limit:.4f}, from the noise of '
        f'{measured["label"]}); a difference '
        f'of this size would need {f"about {needed}" if needed else f"more than {MOST_SEEDS:,}"} seeds, fewer if the pairs agree.'
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _mean(values) -> float | None:
    values = [v for v in values if v is not None]
    return sum(values) / len(values) if values else None


def _experiment(label: str, members: list[Run], metric: str) -> dict:
    losses = {str(r.seed): _finite(r.loss(metric)) for r in members}
    known = [v for v in losses.values() if v is not None]
    facts, costs = members[0].facts, [r.cost for r in members]
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


def _accuracy(run: Run) -> float:
    return float(run.documents['right'].sum() / max(1, run.documents['tokens'].sum()))


def unequal(figures: dict, baseline: dict) -> dict[str, float]:
    """Figure -> its ratio to the baseline's, where that is off by more than TOLERANCE."""
    ratios = {k: v / baseline[k] for k, v in figures.items() if v is not None and baseline[k]}
    return {k: r for k, r in ratios.items() if abs(r - 1) > TOLERANCE}


def compare_pair(baseline: list[Run], members: list[Run], metric: str, alpha: float) -> dict:
    """Differences of two experiments, paired by seed, and the verdict; of runs that diverged no mean."""
    of_seed = {r.seed: r for r in baseline}
    pairs = [(of_seed[r.seed], r) for r in members if r.seed in of_seed]
    differences, documents, diverged = {}, {}, {'baseline': [], 'experiment': []}
    for b, r in pairs:
        difference = r.loss(metric) - b.loss(metric)
        differences[str(r.seed)] = _finite(difference)
        for who, run in (('baseline', b), ('experiment', r)):
            if not math.isfinite(run.loss(metric)):
                diverged[who].append(run.seed)
        if math.isfinite(difference):
            documents[str(r.seed)] = _bootstrap([(b, r)], metric, alpha)
    found = {
        'seeds': [r.seed for _, r in pairs],
        'differences': differences,
        'documents_by_seed': documents,
        'diverged': diverged,
    }
    usable = [(b, r) for b, r in pairs if differences[str(r.seed)] is not None]
    if not usable or diverged['baseline'] or diverged['experiment']:
        return found | {
            'verdict': 'diverged' if diverged['experiment'] and not diverged['baseline'] else 'no verdict',
            'mean': None,
        }
    seeds = paired_t(list(differences.values()), alpha=alpha)
    over_documents = _bootstrap(usable, metric, alpha)
    needed = seeds_needed(seeds.mean, seeds.sd, alpha=alpha) if seeds.sd is not None else None
    return found | {
        'verdict': verdict(seeds, over_documents),
        'mean': seeds.mean,
        'sd': seeds.sd,
        'low': seeds.low,
        'high': seeds.high,
        'p': seeds.p,
        'documents': over_documents,
        'seeds_needed': needed,
        'power': POWER,
    }


def _bootstrap(pairs: list[tuple[Run, Run]], metric: str, alpha: float) -> tuple[float, float] | None:
    """Over held-out documents, the losses of each averaged over the seeds."""
    (_, b_weights), (_, r_weights) = (run.sums(metric) for run in pairs[0])
    b, r = (np.mean([run.sums(metric)[0] for run in side], axis=0) for side in zip(*pairs))
    if not (np.isfinite(b).all() and np.isfinite(r).all()):
        return None
    return bootstrap(b, r, (b_weights, r_weights), alpha=alpha)


def signed(value: float | None) -> str:
    """A difference with its sign: four digits behind the point, or two that count where those are all zero."""
    if value is None:
        return '–'
    return (f'{value:+.4f}' if not value or abs(value) >= 5e-5 else f'{value:+.1e}').replace('-', '\u2212')


def sentence(entry: dict, baseline: dict, metric: str, alpha: float) -> str:
    """The verdict in words."""
    found, label, base, unit = entry['comparison'], entry['label'], baseline['label'], METRICS[metric]
    if found['verdict'] == 'diverged':
        return f'{label} diverged on seed {", ".join(map(str, found["diverged"]["experiment"]))}: its held-out loss is not finite; {base} did not.'
    if found['mean'] is None:
        return f'No verdict: the held-out loss of {base} is not finite on seed {", ".join(map(str, found["diverged"]["baseline"]))}.'
    n, mean = len(found['seeds']), found['mean']
    if found['verdict'] == 'no verdict':
        low_high = found['documents']
        which = (
            'the two models are level'
            if low_high is None or low_high[0] <= 0 <= low_high[1]
            else f'the model of {label} is {"better" if mean < 0 else "worse"} on this text'
        )
        interval = (
            f' ({100 * (1 - alpha):.3g} % interval over documents {signed(low_high[0])} to {signed(low_high[1])})'
            if low_high
            else ''
        )
        return (
            f'One seed gives no verdict about {label} as a method. With seed {found["seeds"][0]} {which}: difference '
            f'{signed(mean)} {unit}'
            f"{interval}. How much of that is the seed's luck is unknown; use --seeds 3 or more."
        )
    percent = f'{100 * (1 - alpha):.3g} %'
    interval = f'{percent} interval {signed(found["low"])} to {signed(found["high"])}, {n} seeds'
    if found['verdict'] in ('better', 'worse'):
        direction = 'lower' if mean < 0 else 'higher'
        text = f'{label} is {found["verdict"]} than {base}: its held-out loss is {signed(abs(mean))[1:]} {unit} {direction} ({interval}).'
    else:
        text = f'{label} and {base} are within noise: difference {signed(mean)} {unit} ({interval}).'
        if not mean and not found['sd']:
            text += ' Their losses are equal in every digit.'
        elif found['low'] > 0 or found['high'] < 0:
            text += ' The seeds agree on the sign, but the difference does not hold over the held-out documents; use more held-out text.'
        elif found['seeds_needed'] is None:
            text += f' To resolve a difference of this size, more than {MOST_SEEDS:,} seeds would be needed.'
        elif found['seeds_needed'] <= n:
            text += (
                f' {found["seeds_needed"]} seeds resolve a difference of this size in 4 of 5 comparisons; this was not one of them, '
                f'or there is none.'
            )
        else:
            text += (
                f' To resolve a difference of this size, about {found["seeds_needed"]} seeds would be needed.'
            )
    return text + _at_what_cost(entry, baseline)


def _at_what_cost(entry: dict, baseline: dict) -> str:
    words = {
        'active_parameters': 'the active parameters',
        'flops_per_token': 'the FLOPs per token',
        'tokens': 'the tokens',
    }
    parts = [f'{entry["unequal"][k]:.2f} times {what}' for k, what in words.items() if k in entry['unequal']]
    return (
        f' It has {", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]} of {baseline["label"]}.'
        if parts
        else ''
    )


def _domains(runs: dict[str, list[Run]], metric: str) -> list[dict]:
    """Per domain: mean loss of each experiment, and its difference to the baseline with the t interval over seeds."""
    baseline = next(iter(runs))
    table = []
    for domain in sorted(set(runs[baseline][0].documents['domain'].tolist())):
        row = {
            'domain': domain,
            'documents': int((runs[baseline][0].documents['domain'] == domain).sum()),
            'experiments': {},
        }
        base = {r.seed: r.loss(metric, domain) for r in runs[baseline]}
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


def differing_settings(runs: dict[str, list[Run]]) -> list[dict]:
    """Settings that are not the same everywhere: {'setting', 'values': {label: text}}; several values within a label joined."""
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
    return '–' if value is None else f'{value:g}' if isinstance(value, float) else str(value)


def _held_out(run: Run) -> dict:
    return {
        'documents': len(run.documents['hash']),
        'tokens': int(run.documents['tokens'].sum()),
        'bytes': int(run.documents['bytes'].sum()),
        'domains': sorted(set(run.documents['domain'].tolist())),
    }


def _warnings(runs: dict[str, list[Run]], experiments: list[dict]) -> list[str]:
    found = []
    baseline = experiments[0]
    for entry in experiments[1:]:
        # measured figures (seconds, speed, memory) are marked in their table; they are never twice the same
        parts = [f'{FIGURES[k][0]} {r:.2f} x' for k, r in entry['unequal'].items() if k not in MEASURED]
        if parts:
            found.append(f'{entry["label"]} is not matched to {baseline["label"]} in: {", ".join(parts)}.')
        missing = set(baseline['losses']) ^ set(entry['losses'])
        if missing:
            found.append(
                f'Seeds {", ".join(sorted(missing))} were run for only one of {baseline["label"]} and '
                f'{entry["label"]}; they are left out of the '
                f'difference.'
            )
    tokens = runs[baseline['label']][0].documents['tokens']
    effective = float(
        tokens.sum() ** 2 / max(1, (tokens**2).sum())
    )  # as many of equal length would weigh the same
    if effective < FEW_DOCUMENTS:
        found.append(
            f'The held-out text has {len(tokens)} documents, but a few long ones outweigh the rest, as if it had '
            f'{effective:.1f}: what holds '
            f'over them may not hold for text in general. A larger validation_bytes gives more.'
        )
    for label, members in runs.items():
        if skipped := sum(r.summary['skipped_steps'] for r in members):
            found.append(
                f'{label}: {skipped} optimizer steps were skipped because the gradient was not finite.'
            )
    for row in differing_settings(runs):
        name = row['setting'].rsplit('.', 1)[-1]
        if name in (
            'batch_size',
            'schedule',
            'warmup',
            'optimizer',
            'betas',
            'weight_decay',
            'clip',
            'epochs',
            'steps',
            'device',
            'amp',
            'cpu',
            'devices',
        ):
            found.append(
                f'The experiments differ in {row["setting"]}: '
                + ', '.join(f'{k} {v}' for k, v in row['values'].items())
                + '.'
            )
    return found


def _samples(runs: dict[str, list[Run]]) -> list[dict]:
    """The texts of each experiment's first seed after the same prompts."""
    by_prompt: dict[tuple[str, str], dict[str, str]] = {}
    for label, members in runs.items():
        for text in members[0].summary.get('texts', ()):
            by_prompt.setdefault((text['domain'], text['prompt']), {})[label] = text['sample']
    return [
        {'domain': domain, 'prompt': prompt, 'texts': texts} for (domain, prompt), texts in by_prompt.items()
    ]


def _routing(runs: dict[str, list[Run]]) -> dict[str, list[list[float]]]:
    """label -> (layers, E) share of the assignments that each expert took at the end, of the first seed; routed models only."""
    found = {label: members[0].validations[-1].get('expert_load') for label, members in runs.items()}
    return {label: load for label, load in found.items() if load}
