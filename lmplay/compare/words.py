"""Findings in words: the verdict's sentence, and what to know before trusting it."""

import math
from collections.abc import Sequence

from ..runs.finished import FinishedRun
from .statistics import FEW_DOCUMENTS, MOST_SEEDS, seeds_needed

# The figures that are reported because they cannot all be matched, and their headings.
FIGURES = {
    'total_parameters': 'parameters',
    'trainable_parameters': 'trainable',
    'active_parameters': 'active per token',
    'flops_per_token': 'training FLOPs per token',
    'tokens': 'tokens trained',
    'flops': 'training FLOPs',
    'seconds': 'seconds of training',
    'tokens_per_second': 'tokens per second',
    'memory': 'peak memory',
}
MEASURED = ('seconds', 'tokens_per_second', 'memory')  # never the same twice; marked in their table only
# Settings whose difference may explain a difference in loss.
SUSPECT_SETTINGS = (
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
)


def signed(value: float | None) -> str:
    """A difference with its sign: four decimals, or two significant digits where those would all be zero."""
    if value is None:
        return '–'
    return (f'{value:+.4f}' if not value or abs(value) >= 5e-5 else f'{value:+.1e}').replace('-', '\u2212')


def _percent(alpha: float) -> str:
    return f'{100 * (1 - alpha):.3g} %'


def title(baseline: str, others: Sequence[str]) -> str:
    return f'{", ".join(others)} compared with {baseline}'


def sentence(entry: dict, baseline: dict, unit: str, alpha: float) -> str:
    """The verdict on one experiment in words."""
    found, label, base = entry['comparison'], entry['label'], baseline['label']
    if found['mean'] is None:
        return _without_a_mean(found, label, base)
    if found['verdict'] == 'no verdict':
        return _of_one_seed(found, label, unit, alpha)
    low, high = signed(found['low']), signed(found['high'])
    interval = f'{_percent(alpha)} interval {low} to {high}, {len(found["seeds"])} seeds'
    if found['verdict'] == 'within noise':
        text = f'{label} and {base} are within noise: difference {signed(found["mean"])} {unit} ({interval}).'
        return text + _why_within_noise(found) + _at_what_cost(entry, baseline)
    direction = 'lower' if found['mean'] < 0 else 'higher'
    return (
        f'{label} is {found["verdict"]} than {base}: its held-out loss is {signed(abs(found["mean"]))[1:]} '
        f'{unit} {direction} ({interval}).' + _at_what_cost(entry, baseline)
    )


def _without_a_mean(found: dict, label: str, base: str) -> str:
    if not found['seeds']:
        return f'No verdict: {label} and {base} have no finished seed in common.'
    diverged = {who: ', '.join(map(str, seeds)) for who, seeds in found['diverged'].items()}
    if found['verdict'] == 'diverged':
        return (
            f'{label} diverged on seed {diverged["experiment"]}, where its held-out loss is not finite; '
            f'{base} did not.'
        )
    return f'No verdict: the held-out loss of {base} is not finite on seed {diverged["baseline"]}.'


def _of_one_seed(found: dict, label: str, unit: str, alpha: float) -> str:
    documents = found['documents']
    which, interval = 'the two models are level', ''
    if documents is not None:
        low, high = documents
        interval = f' ({_percent(alpha)} interval over documents {signed(low)} to {signed(high)})'
        if low > 0 or high < 0:
            which = f'the model of {label} is {"better" if found["mean"] < 0 else "worse"} on this text'
    return (
        f'One seed gives no verdict about {label} as a method. With seed {found["seeds"][0]}, {which}: '
        f"difference {signed(found['mean'])} {unit}{interval}. How much of that is the seed's luck is "
        'unknown; use --seeds 3 or more.'
    )


def _why_within_noise(found: dict) -> str:
    needed, n = found['seeds_needed'], len(found['seeds'])
    if not found['mean'] and not found['sd']:
        return ' Their losses are identical.'
    if found['low'] > 0 or found['high'] < 0:
        return (
            ' The seeds agree on the sign, but the difference does not hold over the held-out documents; use '
            'more held-out text.'
        )
    if needed is None:
        return f' Resolving a difference of this size would take more than {MOST_SEEDS:,} seeds.'
    if needed <= n:
        return (
            f' With {needed} seeds, a difference of this size is found in 4 of 5 comparisons; either this '
            'was the fifth, or there is none.'
        )
    return f' Resolving a difference of this size would take about {needed} seeds.'


def _at_what_cost(entry: dict, baseline: dict) -> str:
    words = {
        'active_parameters': 'the active parameters',
        'flops_per_token': 'the FLOPs per token',
        'tokens': 'the tokens',
    }
    parts = [f'{entry["unequal"][k]:.2f} times {what}' for k, what in words.items() if k in entry['unequal']]
    if not parts:
        return ''
    return f' It has {" and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))} of {baseline["label"]}.'


def early_warning(
    label: str,
    members: Sequence[FinishedRun],
    baseline: Sequence[FinishedRun],
    noise: dict,
    metric: str,
    *,
    alpha: float,
) -> str | None:
    """What can be said of an experiment while most of its seeds are still to come; None where nothing can.

    noise: of the baseline, from `judge.noise`.
    """
    pairs = [(r.loss(metric), b.loss(metric)) for r in members for b in baseline if r.seed == b.seed]
    if not pairs or noise['sd'] is None or not all(math.isfinite(v) for pair in pairs for v in pair):
        return None
    difference = sum(r - b for r, b in pairs) / len(pairs)
    limit, seeds = noise['detectable'], len(noise['losses'])
    so_far = f'{label} after {len(pairs)} of {seeds} seeds: {signed(difference)}'
    if abs(difference) >= limit:
        return (
            f'{so_far}; {seeds} seeds can resolve about {limit:.4f} if it is as steady as {noise["label"]}.'
        )
    needed = seeds_needed(difference, noise['sd'] * math.sqrt(2), alpha=alpha)
    return (
        f'{so_far}. Warning: that is below what {seeds} seeds can resolve (about {limit:.4f}, from the noise '
        f'of {noise["label"]}); a difference of this size would need '
        f'{f"about {needed}" if needed else f"more than {MOST_SEEDS:,}"} seeds, fewer if the pairs agree.'
    )


def warnings(runs: dict[str, list[FinishedRun]], experiments: list[dict], settings: list[dict]) -> list[str]:
    """What to know before trusting the verdicts. settings: those that differ."""
    baseline, *others = experiments
    return [
        *(text for entry in others for text in _mismatches(entry, baseline)),
        *_few_documents(runs[baseline['label']][0]),
        *_not_applied(runs),
        *_skipped_steps(runs),
        *(
            f'The experiments differ in {row["setting"]}: '
            + ', '.join(f'{label} {value}' for label, value in row['values'].items())
            + '.'
            for row in settings
            if row['setting'].rsplit('.', 1)[-1] in SUSPECT_SETTINGS
        ),
    ]


def _mismatches(entry: dict, baseline: dict) -> list[str]:
    label, base, found = entry['label'], baseline['label'], []
    parts = [f'{FIGURES[k]} ({r:.2f} times)' for k, r in entry['unequal'].items() if k not in MEASURED]
    if parts:
        found.append(f'{label} is not matched to {base} in {", ".join(parts)}.')
    if missing := set(baseline['losses']) ^ set(entry['losses']):
        found.append(
            f'Seeds run for only one of {base} and {label} are left out of the difference: '
            f'{", ".join(sorted(missing))}.'
        )
    return found


def _few_documents(run: FinishedRun) -> list[str]:
    tokens = run.documents['tokens']
    effective = float(tokens.sum() ** 2 / max(1, (tokens**2).sum()))  # Kish's effective sample size
    if effective >= FEW_DOCUMENTS:
        return []
    return [
        f'The held-out text has {len(tokens)} documents, but a few long ones outweigh the rest, as if there '
        f'were {effective:.1f}: what holds over them may not hold for text in general. A larger '
        'validation_bytes gives more.'
    ]


def _not_applied(runs: dict[str, list[FinishedRun]]) -> list[str]:
    """What the plan sets and a model lacks."""
    lacking = {label: sorted({k for r in members for k in r.not_applied}) for label, members in runs.items()}
    return [
        f'{label} lacks model parameters that the plan sets, which applied to the others alone: '
        f'{", ".join(names)}.'
        for label, names in lacking.items()
        if names
    ]


def _skipped_steps(runs: dict[str, list[FinishedRun]]) -> list[str]:
    skipped = {label: sum(r.summary['skipped_steps'] for r in members) for label, members in runs.items()}
    return [
        f'{label}: {n} optimizer steps were skipped because the gradient was not finite.'
        for label, n in skipped.items()
        if n
    ]
