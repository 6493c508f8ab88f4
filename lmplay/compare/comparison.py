"""One comparison, from request to report; everything is kept in its directory, so that it can resume."""

import contextlib
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError, UserError
from ..files import locked, seal_is_broken, sealed, write_text
from ..runs.finished import FinishedRun, read_run
from ..runs.formats import Form, checked, read
from ..train.plan import load_plan
from .grouping import check_causal, check_comparable, check_contracts, fingerprints_of
from .judge import judge, noise
from .outcome import Comparison
from .prepare import Budget, Prepared, Spec, apply_budget, parse_spec, prepare, safe, scale_lr
from .report import write_report
from .runner import Job, run_jobs
from .statistics import ALPHA
from .tuning import FACTORS, SEEDS, check_text, choose, part_of, said
from .words import few_documents, title


@dataclass
class Request:
    """What was asked for. experiments: specs as written, the baseline first."""

    experiments: list[str]
    plan: str
    seeds: int = 3
    budget: Budget | None = None
    metric: str = 'loss'
    device: str = 'auto'
    amp: bool = False
    tune: str | None = None
    settings: list[str] = field(default_factory=list)  # KEY=VALUE for every experiment
    jobs: int = 1
    out: Path | None = None

    @property
    def asked(self) -> dict:
        """What must not change between two starts in one directory."""
        return {
            'baseline': self.experiments[0],
            'plan': self.plan,
            'budget': str(self.budget) if self.budget else None,
            'metric': self.metric,
            'amp': self.amp,
            'tune': self.tune,
            'set': self.settings,
        }


@dataclass
class Trial:
    """One learning rate tried with an experiment, with each seed of the search. rates: by stage."""

    owner: Prepared
    prepared: Prepared
    factor: float
    rates: list[float]
    jobs: list[Job]


def write_json(file: Path, content) -> None:
    """Strict JSON, in one step."""
    write_text(file, json.dumps(content, indent=1, allow_nan=False) + '\n')


class Looks(Form):
    """comparison.json: what was asked for, and the numbers of seeds it was looked at with."""

    asked: dict[str, Any]
    experiments: list[str] = []
    seeds: list[int]


def read_looks(file: Path) -> dict[str, Any]:
    """What a comparison.json holds. Raises DataError for one that is damaged."""
    try:
        content = read(file, Looks)
        if seal_is_broken(content):
            raise ValueError('it has changed since it was written')
    except (OSError, ValueError) as error:
        raise DataError(f"'{file}' is damaged ({error}). Delete it, or give another --out.") from error
    return content


def devices_of(given: str) -> list[str]:
    """The devices to spread runs over: those named, or every GPU for 'cuda' and 'auto'."""
    from ..device import find_device

    names = given.split(',')
    found = [find_device(n) for n in names]
    if len(found) == 1 and found[0].type == 'cuda' and found[0].index is None:
        import torch

        return [f'cuda:{i}' for i in range(torch.cuda.device_count())]
    if len({d.type for d in found}) > 1:
        raise UserError(f"--device: the runs of a comparison need devices of one kind; given: '{given}'.")
    return [str(d) for d in found]


class ComparisonSession:
    """Trains what is missing, then judges. say: receives lines about what happens."""

    def __init__(self, request: Request, say: Callable[[str], None]):
        self.request, self.say = request, say
        self.plan = load_plan(request.plan)
        self.specs: list[Spec] = [parse_spec(text, request.settings) for text in request.experiments]
        labels = [s.label for s in self.specs]
        for label in labels:
            if labels.count(label) > 1:
                raise UserError(
                    f"'{label}' is given twice; a comparison is between different experiments. Copy one "
                    'under another name with lmp_new.'
                )
        if len(labels) < 2:
            raise UserError('A comparison needs a baseline and at least one more experiment.')
        self.devices = devices_of(request.device)
        if request.budget and request.budget.kind == 'seconds':
            self._check_devices('--budget seconds')
        self.out = (
            request.out or Path('compare') / f'{"+".join(safe(label) for label in labels)}-{self.plan.name}'
        )
        self.notes: list[str] = []
        self.stopped: dict[str, dict[int, str]] = {}  # label -> seed -> why

    def _check_devices(self, what: str) -> None:
        if self.request.jobs > len(set(self.devices)):
            raise UserError(
                f'{what} needs a device for every job, because runs on one device slow each other down; jobs '
                f'{self.request.jobs}, devices {len(set(self.devices))}.'
            )

    def run(self) -> Comparison:
        """What was found, its report written.

        Raises UserError for what cannot be compared, if possible before training.
        """
        prepared = self._prepare()
        with contextlib.ExitStack() as held:
            try:
                self.out.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(self.out / '.lock'))
            except BlockingIOError:
                raise UserError(
                    f"Another lmp_compare is running in '{self.out}'. Wait for it, or give another --out."
                ) from None
            except OSError as error:
                raise UserError(f"Can't write the comparison '{self.out}': {error.strerror}.") from error
            return self._run(prepared)

    def _prepare(self) -> list[Prepared]:
        """The experiments within the budget, all that can be refused before training refused."""
        prepared = prepare(
            self.specs, self.plan, device=self.devices[0], amp=self.request.amp, progress=self.say
        )
        check_comparable({p.spec.label: p.fingerprints for p in prepared}, self.request.metric)
        if self.request.budget is None and prepared[0].unit == 'seconds':
            self._check_devices(f'A plan in seconds ({self.plan.where})')
        documents = prepared[0].documents
        if self.request.tune:
            check_text(*(documents[name] for name in ('domain', 'hash', 'tokens')))
        self._earlier_looks()
        for p in prepared:
            apply_budget(p, self.request.budget)
        return prepared

    def dry_run(self) -> str:
        """What `run` would train, having checked all that it would refuse; writes nothing."""
        from ..device import Compute, measured_flops
        from .rehearsal import told

        prepared = self._prepare()
        trials = [t for p in prepared for t in self._trials(p)] if self.request.tune else []
        compute = Compute.of(self.devices[0], amp=self.request.amp)
        return told(
            self.request,
            out=self.out,
            plan=self.plan.name,
            device=self.devices[0],
            speed=0.5 * measured_flops(compute.device, compute.dtype),
            verdict=[(p, self._jobs(p)) for p in prepared],
            search=[(t.prepared, t.jobs) for t in trials],
            notes=self._few_documents(prepared),
        )

    @staticmethod
    def _few_documents(prepared: list[Prepared]) -> list[str]:
        documents = prepared[0].documents
        return few_documents(documents['tokens'], documents['hash'])

    def _run(self, prepared: list[Prepared]) -> Comparison:
        self._remember()
        for warning in self._few_documents(prepared):
            self.say(warning)
        tuning = self._tune(prepared) if self.request.tune else None
        runs = self._train(prepared)
        check_comparable(fingerprints_of(runs), self.request.metric)
        check_causal(runs)
        check_contracts(runs)
        findings = judge(runs, metric=self.request.metric, notes=self.notes, stopped=self.stopped)
        write_json(self.out / 'noise.json', findings['noise'])
        findings |= {
            'title': title(self.specs[0].label, [s.label for s in self.specs[1:]]),
            'plan': self.plan.name,
            'budget': str(self.request.budget) if self.request.budget else None,
            'tuning': tuning,
        }
        return Comparison(findings, runs, write_report(findings, runs, self.out))

    def _earlier_looks(self) -> list[int]:
        """The numbers of seeds asked for before. Raises UserError where another comparison is kept there."""
        file = self.out / 'comparison.json'
        if not file.is_file():
            return []
        known = read_looks(file)
        for key, value in self.request.asked.items():
            if known['asked'].get(key) != value:
                raise UserError(
                    f"'{self.out}' holds a comparison with another {key}: {known['asked'].get(key)} "
                    f'there, {value} now. Give another --out.'
                )
        return known['seeds']

    def _remember(self) -> None:
        """Records what was asked for."""
        looks = self._earlier_looks()
        looks = looks if self.request.seeds in looks[-1:] else [*looks, self.request.seeds]
        content = {'asked': self.request.asked, 'experiments': self.request.experiments, 'seeds': looks}
        write_json(self.out / 'comparison.json', sealed(checked(Looks, content)))
        if len(looks) > 1:
            self.notes.append(
                f'The number of seeds was changed after earlier looks ({", then ".join(map(str, looks))}). '
                f'Adding seeds until a verdict appears makes a false one likelier than {ALPHA:.0%}; a fresh '
                'comparison with the last number settles it.'
            )

    def _job(self, p: Prepared, folder: str, seed: int, name: str) -> Job:
        """The run of an experiment as it is prepared now, kept below `folder`."""
        plan = self._plan_file(p)
        arguments = ['--exp', p.spec.exp, '--training-plan', str(plan), *(['--amp'] if p.amp else [])]
        for key, value in p.spec.model.items():
            arguments += ['--set', f'{key}={json.dumps(value)}']
        return Job(
            name=name,
            folder=self._place(p, folder, seed),
            arguments=[*arguments, '--seed', str(seed)],
            unit=p.unit,
            length=sum(p.lengths),
        )

    def _plan_file(self, p: Prepared) -> Path:
        return self.out / 'plans' / p.folder / f'{self.plan.name}.json'

    def _write_plan(self, p: Prepared) -> None:
        file = self._plan_file(p)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, p.plan)

    def _jobs(self, p: Prepared) -> list[Job]:
        """The runs of an experiment that the verdict is about."""
        return [
            self._job(p, 'runs', seed, f'{p.spec.label} seed {seed}') for seed in range(self.request.seeds)
        ]

    def _place(self, p: Prepared, folder: str, seed: int) -> Path:
        """A run's directory; that of a finished run alike, also in comparisons beside this one."""
        own = self.out / folder / p.folder / f'seed-{seed}'
        if (own / 'summary.json').is_file():
            return own
        others = sorted(self.out.resolve().parent.glob(f'*/{folder}/*-{p.digest}/seed-{seed}/summary.json'))
        if others:
            self.say(f'{p.spec.label} seed {seed}: reusing {others[0].parent}.')
            return others[0].parent
        return own

    def _tune(self, prepared: list[Prepared]) -> dict:
        """Gives every experiment the learning rate that the same search chooses for it; returns its log."""
        trials = [trial for p in prepared for trial in self._trials(p)]
        self.say(
            f'Trying {len(FACTORS)} learning rates with each experiment, each with {len(SEEDS)} seeds at '
            f'full length: {sum(len(t.jobs) for t in trials)} runs.'
        )
        for trial in trials:
            self._write_plan(trial.prepared)
        for_seed = [job for jobs in zip(*(t.jobs for t in trials)) for job in jobs]
        run_jobs(for_seed, devices=self.devices, workers=self.request.jobs, say=self.say)
        log = {p.spec.label: self._choose_rate(p, [t for t in trials if t.owner is p]) for p in prepared}
        write_json(self.out / 'tuning.json', log)
        return log

    def _trials(self, p: Prepared) -> list[Trial]:
        found = []
        for factor in FACTORS:
            trial = copy.deepcopy(p)
            scale_lr(trial, factor)
            rates = [stage['lr'] for stage in trial.plan['stages'].values()]
            jobs = [
                self._job(trial, 'tuning', seed, f'{p.spec.label} lr x {factor:g} seed {seed}')
                for seed in SEEDS
            ]
            found.append(Trial(p, trial, factor, rates, jobs))
        return found

    def _choose_rate(self, p: Prepared, trials: list[Trial]) -> dict:
        """Gives an experiment its learning rate. Raises UserError where none is usable."""
        runs = {
            t.factor: [part_of(self._read(j), tuning=True) if j.finished else None for j in t.jobs]
            for t in trials
        }
        log = choose(p.spec.label, runs, self.request.metric)
        rates = {t.factor: t.rates for t in trials}
        for point in log['points']:
            point['lr'] = rates[point['factor']]
        log['chosen'] = rates[log['factor']]
        if log['factor'] != 1.0:
            scale_lr(p, log['factor'])
        text = said(p.spec.label, log, log['chosen'])
        self.say(text)
        if log['best'] != 1.0:
            self.notes.append(text)
        return log

    @staticmethod
    def _read(job: Job) -> FinishedRun:
        try:
            return read_run(job.folder)
        except DataError as error:
            raise DataError(
                f'{error} Delete that folder, and rerun the same command to train it again.'
            ) from error

    def _finished(self, jobs: list[Job]) -> list[FinishedRun]:
        runs = [self._read(job) for job in jobs if job.finished]
        return [part_of(run, tuning=False) for run in runs] if self.request.tune else runs

    def _train(self, prepared: list[Prepared]) -> dict[str, list[FinishedRun]]:
        """label -> finished runs; the baseline is trained first. Raises UserError below two labels."""
        for p in prepared:
            self._write_plan(p)
        jobs = {p.spec.label: self._jobs(p) for p in prepared}
        baseline, *others = jobs.values()
        ordered = [*baseline, *(job for of_seed in zip(*others) for job in of_seed)]
        self._report_noise(baseline)
        run_jobs(
            ordered,
            devices=self.devices,
            workers=self.request.jobs,
            say=self.say,
            on_finish=lambda job: self._report_noise(baseline) if job in baseline else None,
        )
        stopped = [job for job in ordered if job.stopped]
        self.notes += [f'{job.name} stopped early and is left out: {job.stopped}' for job in stopped]
        self.stopped = {
            label: {seed: job.stopped for seed, job in enumerate(members) if job.stopped}
            for label, members in jobs.items()
        }
        runs = {label: found for label, members in jobs.items() if (found := self._finished(members))}
        if self.specs[0].label not in runs or len(runs) < 2:
            raise UserError(
                f'There is nothing to compare, because runs stopped early: '
                f'{" ".join(j.stopped for j in stopped)}'
            )
        return runs

    def _report_noise(self, baseline: list[Job]) -> None:
        """Says how far apart the baseline's seeds are, once all of them are there."""
        if not all(job.finished for job in baseline):
            return
        alpha = ALPHA / (len(self.specs) - 1)
        measured = noise(self.specs[0].label, self._finished(baseline), self.request.metric, alpha=alpha)
        write_json(self.out / 'noise.json', measured)
        if measured['sd'] is not None:
            self.say(
                f'The noise of {measured["label"]} from seed to seed is {measured["sd"]:.4f} (standard '
                f'deviation over {len(baseline)} seeds): differences below about '
                f'{measured["detectable"]:.4f} may stay within noise.'
            )
