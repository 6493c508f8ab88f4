"""Does it hold at scale? The same experiments at several sizes, from request to report."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..runs.finished import FinishedRun
from ..train.plan import load_plan
from .comparison import Request, check_different, launcher_of
from .folder import Folder, earlier_looks, read_job, read_json, write_looks, write_strict_json
from .grouping import check_causal, check_comparable, check_contracts, fingerprints_of
from .ladder_findings import Runs, climb
from .ladder_report import write_ladder
from .prepare import Spec, parse_spec, safe
from .rungs import Rung, plan_rungs
from .runner import Job, run_jobs
from .scaling import Ladder, predict_next
from .search import runs_of, tune
from .tuning import check_text, part_of


@dataclass(frozen=True)
class Climb:
    """The outcome of a ladder: all that the page shows, and the page."""

    findings: dict = field(repr=False)
    report: Path

    def __str__(self) -> str:
        lines = [entry['sentence'] for entry in self.findings['experiments']]
        lines += [f'  note: {warning}' for warning in self.findings['warnings']]
        return '\n'.join([*lines, f'Report: {self.report}'])


class LadderSession:
    """Trains what is missing, rung by rung, then judges. say: receives lines about what happens."""

    def __init__(self, request: Request, say: Callable[[str], None]):
        assert request.ladder is not None
        if not isinstance(request.seeds, int):
            raise UserError(
                f'--ladder takes a number of seeds, such as --seeds 3; given: --seeds {request.seeds}, for a '
                'comparison at one size.'
            )
        if request.stop_early:
            raise UserError('--stop-early is for a comparison at one size, not for --ladder.')
        if request.budget:
            raise UserError(
                f'With --ladder, --tokens-per-parameter sets the length of the runs; leave --budget out '
                f'(given: {request.budget}).'
            )
        self.request, self.say = request, say
        self.seeds = request.seeds
        self.plan = load_plan(request.plan)
        self.specs: list[Spec] = [parse_spec(text, request.settings) for text in request.experiments]
        check_different(self.specs)
        labels = '+'.join(safe(spec.label) for spec in self.specs)
        self.out = request.out or Path('compare') / f'{labels}-{self.plan.name}-ladder'
        self.folder = Folder(self.out, self.plan.name, say, yes=request.yes)
        self.launcher = launcher_of(request, self.out, say)

    def _prepare(self) -> list[Rung]:
        """The rungs, after every check that can be made before training."""
        assert self.request.ladder is not None
        rungs, span = self.request.ladder
        earlier_looks(self.out / 'comparison.json', self.request.asked)
        ladder = plan_rungs(
            self.specs,
            self.plan,
            rungs=rungs,
            span=span,
            tokens_per_parameter=self.request.tokens_per_parameter,
            device=self.launcher.devices[0],
            amp=self.request.amp,
            progress=self.say,
        )
        for rung in ladder:
            check_comparable({p.spec.label: p.fingerprints for p in rung.prepared}, self.request.metric)
        documents = ladder[0].prepared[0].documents
        if self.request.tune:
            check_text(*(documents[name] for name in ('domain', 'hash', 'tokens')))
        self.launcher.memory = max(p.memory for rung in ladder for p in rung.prepared)
        return ladder

    def run(self) -> Climb:
        """What was found, its report written. Raises UserError for what cannot be compared."""
        ladder = self._prepare()
        with self.folder.held():
            content = {'asked': self.request.asked, 'experiments': self.request.experiments}
            write_looks(self.out / 'comparison.json', content | {'seeds': [self.seeds]})
            runs: Runs = []
            notes: list[str] = []
            for rung in ladder:
                if rung is ladder[-1] and len(runs) > 1:
                    write_strict_json(self.out / 'prediction.json', self._predict(runs, rung))
                notes += self._tune(rung)
                trained, stopped = self._train(rung)
                runs.append(trained)
                notes += stopped
            file = self.out / 'prediction.json'
            findings = climb(
                ladder,
                runs,
                metric=self.request.metric,
                prediction=read_json(file, 'losses') if len(ladder) > 2 and file.is_file() else None,
                notes=notes,
            )
            findings |= {'plan': self.plan.name, 'tokens_per_parameter': self.request.tokens_per_parameter}
            return Climb(findings, write_ladder(findings, self.out))

    def dry_run(self) -> str:
        """The rungs, and what `run` would train, having checked all that it would refuse; writes nothing."""
        from .rehearsal import ladder_text

        ladder = self._prepare()
        runs = [(p, jobs) for rung in ladder for p, jobs in zip(rung.prepared, self._jobs(rung).values())]
        for rung in ladder:
            runs += [found for p in rung.prepared for found in runs_of(self.request, p, self.folder)]
        return ladder_text(
            ladder,
            self.request,
            out=self.out,
            launcher=self.launcher,
            speed=self.launcher.speed(self.request.amp),
            runs=runs,
        )

    def _tune(self, rung: Rung) -> list[str]:
        """Gives every experiment of a rung its learning rate, where that was asked for."""
        if not self.request.tune:
            return []
        log, notes = tune(self.request, rung.prepared, self.folder, self.launcher)
        write_strict_json(self.out / f'tuning-{rung.index + 1}.json', log)
        return [f'Rung {rung.index + 1}: {note}' for note in notes]

    def _jobs(self, rung: Rung) -> dict[str, list[Job]]:
        """label -> the runs of a rung, by seed."""
        return {
            p.spec.label: [
                self.folder.job(p, 'runs', seed, f'{p.spec.label} rung {rung.index + 1} seed {seed}')
                for seed in range(self.seeds)
            ]
            for p in rung.prepared
        }

    def _train(self, rung: Rung) -> tuple[dict[str, list[FinishedRun]], list[str]]:
        """(label -> finished runs of a rung, why others stopped early)."""
        for p in rung.prepared:
            self.folder.write_plan(p)
        jobs = self._jobs(rung)
        ordered = [job for of_seed in zip(*jobs.values()) for job in of_seed]
        run_jobs(ordered, self.launcher.pool(ordered), say=self.say)
        runs = {label: [read_job(j) for j in members if j.finished] for label, members in jobs.items()}
        if self.request.tune:
            runs = {label: [part_of(r, tuning=False) for r in members] for label, members in runs.items()}
        finished = {label: members for label, members in runs.items() if members}
        check_comparable(fingerprints_of(finished), self.request.metric)
        check_causal(finished)
        check_contracts(finished)
        return runs, [f'{job.name} stopped early: {job.stopped}' for job in ordered if job.stopped]

    def _predict(self, runs: Runs, top: Rung) -> dict:
        """The losses of the last rung as those below predict them; written before it is trained."""
        metric, labels = self.request.metric, [spec.label for spec in self.specs]
        whole = [
            label
            for label in labels
            if all(len(r[label]) == self.seeds and not any(own.diverged for own in r[label]) for r in runs)
        ]
        ladders = [
            Ladder(
                np.log([np.mean(np.array([own.cost['flops'] for own in r[label]], float)) for r in runs]),
                np.array([[own.loss(metric) for own in r[label]] for r in runs]),
            )
            for label in whole
        ]
        planned = {
            p.spec.label: math.log(sum(n * f for n, f in zip(p.lengths, p.flops_per_token)))
            for p in top.prepared
        }
        losses = predict_next(ladders, [planned[label] for label in whole]) if whole else []
        return {'rungs': len(runs), 'losses': dict(zip(whole, losses))}
