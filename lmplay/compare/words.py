"""Findings in words: the verdict's sentence, and what to know before trusting it."""

from collections.abc import Sequence

import numpy as np

from ..runs.finished import FinishedRun
from .statistics import ALPHA, FEW_DOCUMENTS, MOST_SEEDS, RECOMMENDED_SEEDS, effective_documents, grouped

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
    """The verdict on one experiment in words, 'so far' where seeds are still added."""
    sequence = entry['comparison'].get('sequence')
    if not sequence or entry['comparison']['mean'] is None:
        return _sentence(entry, baseline, unit, alpha)
    if not sequence['ended']:
        return f'So far: {_sentence(entry, baseline, unit, alpha)}'
    return _sentence(entry, baseline, unit, alpha) + _why_ended(sequence, len(entry['comparison']['seeds']))


def _why_ended(sequence: dict, seeds: int) -> str:
    """What the rule that added seeds says of its end."""
    return {
        'difference': f' Seeds were added until this was known (--seeds {sequence["rule"]}).',
        'equivalence': f' Seeds were added until this was known (--seeds {sequence["rule"]}).',
        'text': ' More seeds would hardly narrow this; more held-out text would.',
        'maximum': f' {seeds} seeds, the maximum, can say no more (--seeds {sequence["rule"]}).',
    }[sequence['ended']]


def so_far(findings: dict) -> str:
    """A line about each experiment that seeds are still added to."""
    entries = [
        e
        for e in findings['experiments']
        if not e.get('comparison', {'sequence': {'ended': 1}})['sequence']['ended']
    ]
    return '\n'.join(entry['sentence'] for entry in entries)


def sequence_text(sequence: dict) -> str:
    """The rule that adds seeds, for the page."""
    if sequence['maximum'] is None:
        rule = 'whatever the number of seeds, the e-process of the t-test decides'
    else:
        rule = f'p at most {sequence["level"]:g} at any look up to {sequence["maximum"]} seeds decides'
    smallest = sequence['smallest_effect']
    alike = (
        f'; so does an interval within ±{smallest:g}, which is no difference that matters' if smallest else ''
    )
    return f'Seeds are added until the verdict is known, with one look after each: {rule}{alike}.'


def _sentence(entry: dict, baseline: dict, unit: str, alpha: float) -> str:
    found, label, base = entry['comparison'], entry['label'], baseline['label']
    if found['mean'] is None:
        return _without_a_mean(found, label, base)
    if len(found['seeds']) < 2:
        return _of_one_seed(found, label, unit, alpha)
    if found['verdict'] == 'no verdict':
        return (
            f'No verdict: the held-out text counts as fewer than {FEW_DOCUMENTS} documents of equal size. On '
            f'it, the difference of {label} from {base} is {signed(found["mean"])} {unit}. A larger '
            'validation_bytes, or data with more and shorter documents, allows one.'
        )
    low, high = signed(found['low']), signed(found['high'])
    interval = f'{_percent(alpha)} interval {low} to {high}, {len(found["seeds"])} seeds'
    sequence = found.get('sequence')
    if sequence and sequence['ended'] == 'equivalence':
        return (
            f'{label} and {base} differ by less than {sequence["smallest_effect"]:g} {unit} on text like '
            f'this held-out text: difference {signed(found["mean"])} ({interval}).'
            + _at_what_cost(entry, baseline)
        )
    if found['verdict'] == 'within noise':
        text = f'{label} and {base} are within noise: difference {signed(found["mean"])} {unit} ({interval}).'
        return text + _why_within_noise(found) + _at_what_cost(entry, baseline)
    direction = 'lower' if found['mean'] < 0 else 'higher'
    return (
        f'{label} is {found["verdict"]} than {base} on text like this held-out text: its loss is '
        f'{signed(abs(found["mean"]))[1:]} {unit} {direction} ({interval}).' + _at_what_cost(entry, baseline)
    )


def _without_a_mean(found: dict, label: str, base: str) -> str:
    if seeds := found.get('hopeless'):
        told = f'{_seeds(seeds)}, stopped early because no finished run here ever closed such a gap'
        if found['verdict'] == 'worse':
            return f'{label} is worse than {base}: on every seed that was finished, and on {told}.'
        return f'No verdict: {label} has {told}, and a finished seed on which it is not worse.'
    reasons = []
    for who, name in (('experiment', label), ('baseline', base)):
        if seeds := found['stopped'][who]:
            reasons.append(f'{name} stopped early on {_seeds(seeds)}')
        if seeds := found['diverged'][who]:
            reasons.append(f'{name} diverged on {_seeds(seeds)}, where its held-out loss is not finite')
    if not reasons:
        return f'No verdict: {label} and {base} have no finished seed in common.'
    alone = f' {base} did not.' if found['verdict'] == 'diverged' else ''
    return f'No verdict: {"; ".join(reasons)}.{alone}'


def _seeds(seeds: Sequence[int]) -> str:
    return f'seed{"s" if len(seeds) > 1 else ""} {", ".join(map(str, seeds))}'


def _of_one_seed(found: dict, label: str, unit: str, alpha: float) -> str:
    documents, difference = found['documents'], f'the difference is {signed(found["mean"])} {unit}'
    if documents is not None:
        low, high = documents
        which = 'the two models are level'
        if low > 0 or high < 0:
            which = f'the model of {label} is {"better" if found["mean"] < 0 else "worse"} on text like this'
        difference = f'{which}: difference {signed(found["mean"])} {unit}'
        difference += f' ({_percent(alpha)} interval over documents {signed(low)} to {signed(high)})'
    return (
        f'One seed gives no verdict about {label} as a method. With seed {found["seeds"][0]}, '
        f'{difference}. How much of that is due to the seed is unknown; use --seeds 3 or more.'
    )


def _why_within_noise(found: dict) -> str:
    needed, n = found['seeds_needed'], len(found['seeds'])
    if not found['mean'] and not found['sd']:
        return ' Their losses are identical.'
    if found.get('sequence'):
        return ''
    low, high = found['over_seeds']
    if low > 0 or high < 0:
        return (
            ' The seeds agree on the sign, but on other text like this it may differ; use more held-out text.'
        )
    if needed is None:
        return (
            f' Resolving a difference of this size would take more than {MOST_SEEDS:,} seeds, or more '
            'held-out text.'
        )
    if needed <= n:
        return (
            f' With {needed} seeds, a difference of this size is found in 4 of 5 comparisons; either this '
            'is the fifth, or there is none.'
        )
    return f' Resolving a difference of this size would take {seeds_text(found)} seeds.'


def seeds_text(found: dict) -> str:
    """The seeds needed and the range in which their number lies in 4 of 5 cases, as `RANGE` has it."""
    needed, (low, high) = found['seeds_needed'], found['seeds_range'] or (None, None)
    if needed is None:
        return f'over {MOST_SEEDS:,}' + (f' (at least {low:,})' if low else '')
    if low == high:
        return f'about {needed:,}'
    return f'about {needed:,} ({low:,} to {f"{high:,}" if high else f"over {MOST_SEEDS:,}"})'


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


def warnings(
    runs: dict[str, list[FinishedRun]], experiments: list[dict], settings: list[dict], load: dict[str, dict]
) -> list[str]:
    """What to know before trusting the verdicts. settings: those that differ; load: of each label's runs."""
    baseline, *others = experiments
    return [
        *(text for entry in others for text in _mismatches(entry, baseline)),
        *_few_seeds(others),
        *_skewed(others),
        *_not_applied(runs),
        *few_documents(*(runs[baseline['label']][0].documents[name] for name in ('tokens', 'hash'))),
        *_skipped_steps(runs),
        *_edited(runs),
        *_ended_by_a_busy_clock(runs, load),
        *(
            f'The experiments differ in {row["setting"]}: '
            + ', '.join(f'{label} {value}' for label, value in row['values'].items())
            + '.'
            for row in settings
            if row['setting'].rsplit('.', 1)[-1] in SUSPECT_SETTINGS
        ),
    ]


def _few_seeds(others: list[dict]) -> list[str]:
    few = {e['label']: n for e in others if (n := len(e['comparison']['seeds'])) < RECOMMENDED_SEEDS}
    if not few:
        return []
    counted = ', '.join(f'{label} {n}' for label, n in few.items())
    return [f'At least {RECOMMENDED_SEEDS} seeds are recommended; compared here: {counted}.']


def _skewed(others: list[dict]) -> list[str]:
    """Where seeds were added by a rule that skewed differences mislead."""
    found = []
    for entry in others:
        skew = entry['comparison'].get('sequence', {}).get('skewness')
        if skew and skew['p'] < ALPHA:
            found.append(
                f'The differences of {entry["label"]} are skewed over seeds (skewness {skew["value"]:+.1f}, '
                f'p {skew["p"]:.2g}): --seeds auto keeps its error rate where they are symmetric, and was '
                'wrong in 10 to 25 % of simulations where they are strongly skewed.'
            )
    return found


def _ended_by_a_busy_clock(runs: dict[str, list[FinishedRun]], load: dict[str, dict]) -> list[str]:
    """Where the clock ended runs that other work on the machine may have slowed down."""
    return [
        f'{label} was trained for a fixed time on a busy machine (up to {load[label]["most"]:.1f} tasks per '
        'core): it may have taken fewer steps than on an idle one.'
        for label, members in runs.items()
        if load[label]['busy'] and any(s.get('seconds') for r in members for s in r.stage_settings.values())
    ]


def _edited(runs: dict[str, list[FinishedRun]]) -> list[str]:
    """Where the source that a run kept is no longer what is on disk."""
    found = []
    for label, members in runs.items():
        if files := sorted({file for run in members for file in run.source_changed()}):
            found.append(
                f'{label} has changed on disk since it was trained ({", ".join(files)}): this report is '
                'about the source kept with its runs.'
            )
    return found


def _mismatches(entry: dict, baseline: dict) -> list[str]:
    label, base, found = entry['label'], baseline['label'], []
    parts = [f'{FIGURES[k]} ({r:.2f} times)' for k, r in entry['unequal'].items() if k not in MEASURED]
    if parts:
        found.append(f'{label} is not matched to {base} in {", ".join(parts)}.')
    seeds, base_seeds = ({*e['losses'], *e['stopped']} for e in (entry, baseline))
    if (missing := seeds ^ base_seeds) and 'sequence' not in entry['comparison']:
        found.append(
            f'Seeds run for only one of {base} and {label} are left out of the difference: '
            f'{", ".join(sorted(missing))}.'
        )
    return found


def few_documents(tokens: np.ndarray, groups: np.ndarray) -> list[str]:
    """What to say where the held-out text can't carry a verdict. tokens, groups: (documents,)."""
    effective = effective_documents(grouped(tokens, groups))
    if effective >= FEW_DOCUMENTS:
        return []
    return [
        f'The held-out text has {len(tokens)} documents that count as {effective:.1f} of equal size; a '
        f'verdict takes {FEW_DOCUMENTS}. A larger validation_bytes, or data with more and shorter documents, '
        'gives more.'
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
