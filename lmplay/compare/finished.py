"""Comparison of runs that are finished already."""

from pathlib import Path

from ..errors import UserError, unknown
from ..runs.finished import FinishedRun
from .grouping import (
    check_causal,
    check_comparable,
    check_contracts,
    find_runs,
    find_unfinished,
    fingerprints_of,
    group,
)
from .judge import judge
from .outcome import Comparison
from .report import write_report
from .tuning import apart_from_tuning
from .words import title


def compare_runs(places: list[str], *, metric: str, baseline: str | None, out: Path | None) -> Comparison:
    """What the runs at or below `places` show, its report written.

    Runs of one experiment with equal settings are its seeds. baseline: a label; that of the first run unless
    given. Raises UserError for runs that cannot be compared.
    """
    found = find_runs([Path(p) for p in places])
    apart = apart_from_tuning(found)
    groups = group(apart)
    if baseline is not None and baseline not in groups:
        raise UserError(unknown('baseline', baseline, groups, 'these runs'))
    first = baseline or next(iter(groups))
    if len(groups) < 2:
        raise UserError(f'All these runs are of one experiment, {first}; a comparison needs two.')
    runs = {first: groups[first]} | groups
    check_comparable(fingerprints_of(runs), metric)
    check_causal(runs)
    check_contracts(runs)
    _check_seeds(runs, first)
    stopped = find_unfinished([Path(p) for p in places], runs)
    left_out = [
        f'{label} seed {seed} ended early and is left out: {why}'
        for label, of_seed in stopped.items()
        for seed, why in of_seed.items()
    ]
    findings = judge(
        runs, metric=metric, notes=[*_notes(runs), *_tuned(found, apart), *left_out], stopped=stopped
    ) | {
        'title': title(first, [label for label in runs if label != first]),
        'plan': ', '.join(sorted({r.summary['plan'] for members in runs.values() for r in members})),
        'budget': None,
        'tuning': None,
    }
    folder = out or Path('compare') / '+'.join(label.replace('/', '_') for label in runs)
    _make(folder)
    return Comparison(findings, runs, write_report(findings, runs, folder))


def _make(folder: Path) -> None:
    """Makes a report's folder. Raises UserError where that is impossible, or it holds another comparison."""
    if (folder / 'comparison.json').exists():
        raise UserError(f"'{folder}' holds a comparison that trained its own runs; give another --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Can't write the comparison '{folder}': {error.strerror}.") from error


def _check_seeds(runs: dict[str, list[FinishedRun]], baseline: str) -> None:
    """Raises UserError where a seed occurs twice in an experiment, or none is the baseline's."""
    base = {r.seed for r in runs[baseline]}
    for label, members in runs.items():
        seeds = [r.seed for r in members]
        if len(set(seeds)) < len(seeds):
            twice = next(s for s in seeds if seeds.count(s) > 1)
            raise UserError(
                f'Two runs of {label} have seed {twice}: '
                f'{" and ".join(str(r.folder) for r in members if r.seed == twice)}. Leave one out.'
            )
        if not base & set(seeds):
            raise UserError(
                f'{label} and {baseline} have no seed in common, and differences are paired by seed: train '
                'both with the same --seed.'
            )


def _tuned(runs: list[FinishedRun], apart: list[FinishedRun]) -> list[str]:
    whole, left = len(runs[0].documents['hash']), len(apart[0].documents['hash'])
    if left == whole:
        return []
    return [
        f'Settings of these runs were chosen with {whole - left} of the {whole} held-out documents; '
        f'only the other {left} are judged by.'
    ]


def _notes(runs: dict[str, list[FinishedRun]]) -> list[str]:
    """Whether experiments differ in tokens. Seeds may: where sequences vary in length, so do their tokens."""
    spent = {label: {r.seed: int(r.cost['tokens'] or 0) for r in members} for label, members in runs.items()}
    baseline, *others = spent.values()
    if all(baseline[seed] == own[seed] for own in others for seed in own.keys() & baseline.keys()):
        return []
    parts = [
        f'{label} {min(own.values()):,}' + (f' to {max(own.values()):,}' if len({*own.values()}) > 1 else '')
        for label, own in spent.items()
    ]
    return [
        f'These runs were not trained on the same number of tokens: {", ".join(parts)}. A longer run with '
        'another schedule is another experiment.'
    ]
