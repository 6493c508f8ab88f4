"""The dry run of a comparison: what it would train, and for about how long."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..cli import count, duration
from ..train.cost import LONG, SLOW
from .launcher import Launcher
from .prepare import Prepared
from .rungs import Rung
from .runner import Job
from .scaling import expected_widths
from .sequential import Sequential
from .statistics import RECOMMENDED_SEEDS

if TYPE_CHECKING:
    from .comparison import Request

AROUND = 8.0  # seconds that a small run takes besides its steps: checks, evaluations, samples, pictures
LADDER_SD, LADDER_SLOPE = 0.015, 0.2  # nats per token, as measured on small ladders (docs/ladder.md)
Runs = Sequence[tuple[Prepared, Sequence[Job]]]  # experiment, as it would be trained -> its runs


def comparison_text(
    request: 'Request',
    *,
    out: Path,
    plan: str,
    launcher: Launcher,
    speed: float,
    verdict: Runs,
    search: Runs,
    notes: Sequence[str],
) -> str:
    """The runs, seeds, budget, tokens and expected time. speed: FLOP/s that training reaches."""
    budget = str(request.budget) if request.budget else "the plan's own"
    lines = [f'Plan {plan}, budget {budget}, on {launcher.devices[0]}, kept in {out}.']
    if search:
        lines += [f'The search over {", ".join(request.tune)}: {_counted(search)}. For each experiment:']
        by_label: dict[str, list] = {}
        for p, jobs in search:
            by_label.setdefault(p.spec.label, []).append((p, jobs))
        lines += [_line(label, runs, speed) for label, runs in by_label.items()]
    lines += [
        f'The comparison, with {_seeds(request.seeds, verdict)}: {_counted(verdict)}. For each experiment:'
    ]
    lines += [_line(p.spec.label, [(p, jobs)], speed) for p, jobs in verdict]
    lines += [in_all((*search, *verdict), launcher, speed), *notes, 'Nothing was trained or written.']
    return '\n'.join(lines)


def in_all(runs: Runs, launcher: Launcher, speed: float) -> str:
    """How many runs are left to train, their tokens and time."""
    left = [(p, job) for p, jobs in runs for job in jobs if not job.finished]
    whole = sum(_seconds(p, speed) for p, _ in left) / launcher.abreast
    tokens = [_tokens(p) for p, _ in left]
    about = f'{count(sum(t for t in tokens if t))} tokens, ' if all(tokens) and tokens else ''
    basis = f', at half of the {2 * speed / 1e9:,.0f} GFLOP/s that a matrix product reaches here'
    basis = basis if all(tokens) else ''
    about += f'about {duration(whole)} with {launcher.at_a_time} at a time'
    about += ', which share a device' if launcher.at_a_time > launcher.abreast else ''
    return f'In all: {len(left)} runs to train, {about}{basis}.'


def may_be_long(prepared: Sequence[Prepared], runs: int) -> bool:
    """Whether so many runs of each may take more than an hour; without measuring this machine."""
    return runs * sum(_seconds(p, SLOW) for p in prepared) > LONG


def _seeds(seeds: int | Sequential, verdict: Runs) -> str:
    if isinstance(seeds, int):
        return f'{seeds} seed{"s" if seeds > 1 else ""}; at least {RECOMMENDED_SEEDS} recommended'
    first = len(verdict[0][1])
    if seeds.maximum:
        return f'{first} seeds first, then one at a time until the verdict is known, at most {seeds.maximum}'
    ends = '' if seeds.smallest_effect else '; without --smallest-effect, equal experiments never end it'
    return f'{first} seeds first, then one at a time until the verdict is known, without a maximum{ends}'


def _counted(runs: Runs) -> str:
    jobs = [job for _, members in runs for job in members]
    finished = sum(job.finished for job in jobs)
    return f'{len(jobs)} runs' + (f', {finished} of them finished' if finished else '')


def _line(label: str, runs: Runs, speed: float) -> str:
    prepared, _ = runs[0]
    tokens, flops = _tokens(prepared), _flops(prepared)
    size = f'{count(tokens)} tokens, {flops:.2g} FLOPs, ' if tokens and flops else ''
    return f'  {label}: {sum(len(jobs) for _, jobs in runs)} runs, each {size}' + (
        f'about {duration(_seconds(prepared, speed))}'
    )


def _tokens(p: Prepared) -> float | None:
    """None where the clock ends a run."""
    return sum(p.lengths) if p.unit == 'tokens' else None


def _flops(p: Prepared) -> float | None:
    return sum(n * f for n, f in zip(p.lengths, p.flops_per_token)) if p.unit == 'tokens' else None


def _seconds(p: Prepared, speed: float) -> float:
    flops = _flops(p)
    return AROUND + (sum(p.lengths) if flops is None else flops / speed)


def ladder_text(
    ladder: Sequence[Rung],
    request: 'Request',
    *,
    out: Path,
    launcher: Launcher,
    speed: float,
    runs: Runs,
) -> str:
    """The rungs with parameters, tokens, FLOPs and time, the runs that are left, the interval to expect."""
    labels = [p.spec.label for p in ladder[0].prepared]
    lines = [f'A ladder of {len(ladder)} rungs, on {launcher.devices[0]}, kept in {out}. Each run:']
    for rung in ladder:
        for p in rung.prepared:
            size = ', '.join(f'{k} {v}' for k, v in rung.model[p.spec.label].items())
            lines.append(
                f'  rung {rung.index + 1}, {p.spec.label}: {size}; {count(rung.parameters[p.spec.label])} '
                f'parameters, {count(rung.tokens)} tokens, {_flops(p):.2g} FLOPs, about '
                f'{duration(_seconds(p, speed))}'
            )
    left = [(p, job) for p, jobs in runs for job in jobs if not job.finished]
    whole = sum(_seconds(p, speed) for p, _ in left) / launcher.abreast
    lines.append(
        f'In all: {_counted(runs)}; {len(left)} to train, about {duration(whole)} with '
        f'{launcher.at_a_time} at a time, at half of the {2 * speed / 1e9:,.0f} GFLOP/s that a matrix '
        'product reaches here.'
    )
    if isinstance(request.seeds, int) and request.seeds > 1:
        x = np.log([float(_flops(rung.prepared[0]) or 1) for rung in ladder])
        widths = expected_widths(x, slope=LADDER_SLOPE, sd=LADDER_SD, seeds=request.seeds)
        lines.append(
            f'Expect intervals of the compute ratio of about ±{widths[len(x) // 2]:.2f} in the middle and '
            f'±{widths[-1]:.2f} at the last rung, if losses differ by {LADDER_SD:g} from seed to seed and '
            f'fall by {LADDER_SLOPE:g} for each factor of e in compute; the width is proportional to their '
            'quotient and to 1/√seeds.'
        )
    few = f'With fewer than 3 rungs no trend is claimed: {len(ladder)}.' if len(ladder) < 3 else ''
    others = f'{labels[0]} is the baseline; its parameters determine the tokens.'
    return '\n'.join([*lines, *filter(None, [few, others]), 'Nothing was trained or written.'])
