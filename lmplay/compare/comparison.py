"""One comparison, from request to report; everything is kept in its directory, so that it can resume."""

import copy
import fcntl
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError, UserError
from ..files import write_text
from ..runs.finished import FinishedRun, read_run
from ..train.plan import load_plan
from .grouping import check_causal, check_comparable, check_contracts, fingerprints_of
from .judge import judge, noise
from .outcome import Comparison
from .prepare import Budget, Prepared, Spec, apply_budget, parse_spec, prepare, safe, scale_lr
from .report import write_report
from .runner import Job, run_jobs
from .statistics import ALPHA
from .words import early_warning, title

TUNE_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
TUNE_SHARE = 0.2  # of the budget, for each learning rate
TUNE_SEED = 987_654  # not among the comparison's


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
    """One learning rate tried with an experiment. rates: by stage."""

    owner: Prepared
    factor: float
    rates: list[float]
    job: Job


def write_json(file: Path, content) -> None:
    """Strict JSON, in one step."""
    write_text(file, json.dumps(content, indent=1, allow_nan=False) + '\n')


def read_json(file: Path, *keys: str) -> dict:
    """What `write_json` wrote. Raises DataError for a file that is damaged."""
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
        if not isinstance(content, dict) or not content.keys() >= set(keys):
            raise ValueError('not what lmp_compare writes there')
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
        prepared = prepare(
            self.specs, self.plan, device=self.devices[0], amp=self.request.amp, progress=self.say
        )
        check_comparable({p.spec.label: p.fingerprints for p in prepared}, self.request.metric)
        if self.request.budget is None and prepared[0].unit == 'seconds':
            self._check_devices(f'A plan in seconds ({self.plan.where})')
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            lock = open(self.out / '.lock', 'w')  # noqa: SIM115  held as long as the comparison
        except OSError as error:
            raise UserError(f"Can't write the comparison '{self.out}': {error.strerror}.") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"Another lmp_compare is running in '{self.out}'. Wait for it, or give another --out."
                ) from None
            return self._run(prepared)

    def _run(self, prepared: list[Prepared]) -> Comparison:
        self._remember()
        for p in prepared:
            apply_budget(p, self.request.budget)
        tuning = self._tune(prepared) if self.request.tune else None
        runs = self._train(prepared)
        check_comparable(fingerprints_of(runs), self.request.metric)
        check_causal(runs)
        check_contracts(runs)
        findings = judge(runs, metric=self.request.metric, notes=self.notes)
        write_json(self.out / 'noise.json', findings['noise'])
        findings |= {
            'title': title(self.specs[0].label, [s.label for s in self.specs[1:]]),
            'plan': self.plan.name,
            'budget': str(self.request.budget) if self.request.budget else None,
            'tuning': tuning,
        }
        return Comparison(findings, runs, write_report(findings, runs, self.out))

    def _remember(self) -> None:
        """Records what was asked for. Raises UserError where the directory holds another comparison."""
        file = self.out / 'comparison.json'
        looks = []
        if file.is_file():
            known = read_json(file, 'asked', 'seeds')
            for key, value in self.request.asked.items():
                if known['asked'].get(key) != value:
                    raise UserError(
                        f"'{self.out}' holds a comparison with another {key}: {known['asked'].get(key)} "
                        f'there, {value} now. Give another --out.'
                    )
            looks = known['seeds']
        looks = looks if self.request.seeds in looks[-1:] else [*looks, self.request.seeds]
        write_json(
            file, {'asked': self.request.asked, 'experiments': self.request.experiments, 'seeds': looks}
        )
        if len(looks) > 1:
            self.notes.append(
                f'The number of seeds was changed after earlier looks ({", then ".join(map(str, looks))}). '
                f'Adding seeds until a verdict appears makes a false one likelier than {ALPHA:.0%}; a fresh '
                'comparison with the last number settles it.'
            )

    def _job(self, p: Prepared, folder: str, seed: int, name: str) -> Job:
        """The run of an experiment as it is prepared now, kept below `folder`."""
        plan = self.out / 'plans' / p.folder / f'{self.plan.name}.json'
        plan.parent.mkdir(parents=True, exist_ok=True)
        write_json(plan, p.plan)
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
        """Gives every experiment the best learning rate of the same short search; returns its log."""
        trials = [self._trial(p, factor) for p in prepared for factor in TUNE_FACTORS]
        self.say(
            f'Trying {len(TUNE_FACTORS)} learning rates with each experiment, on {TUNE_SHARE:.0%} of the '
            'budget.'
        )
        run_jobs([t.job for t in trials], devices=self.devices, workers=self.request.jobs, say=self.say)
        log = {p.spec.label: self._choose_rate(p, [t for t in trials if t.owner is p]) for p in prepared}
        write_json(self.out / 'tuning.json', log)
        return log

    def _trial(self, p: Prepared, factor: float) -> Trial:
        trial = copy.deepcopy(p)
        apply_budget(trial, Budget(trial.unit, TUNE_SHARE * sum(trial.lengths)))
        scale_lr(trial, factor)
        job = self._job(trial, 'tuning', TUNE_SEED, f'{p.spec.label} lr x {factor:g}')
        return Trial(p, factor, [s['lr'] for s in trial.plan['stages'].values()], job)

    def _choose_rate(self, p: Prepared, trials: list[Trial]) -> dict:
        """Gives an experiment its best trial's learning rate. Raises UserError where none is usable."""
        label, points = p.spec.label, []
        for trial in trials:
            run = self._read(trial.job) if trial.job.finished else None
            loss = run.loss(self.request.metric) if run else math.nan
            points.append(
                {'factor': trial.factor, 'lr': trial.rates, 'loss': loss if math.isfinite(loss) else None}
            )
        usable = [point for point in points if point['loss'] is not None]
        if not usable:
            raise UserError(
                f'No learning rate worked for {label}: every trial diverged or stopped. See '
                f'{self.out / "tuning"}.'
            )
        best = min(usable, key=lambda point: point['loss'])
        scale_lr(p, best['factor'])
        self.say(f'{label}: learning rate {", ".join(f"{r:g}" for r in best["lr"])} did best.')
        if best['factor'] in (TUNE_FACTORS[0], TUNE_FACTORS[-1]):
            self.notes.append(
                f'{label}: the best learning rate ({best["lr"][0]:g}) is at the edge of those tried; a '
                'better one may lie beyond.'
            )
        return {'points': points, 'chosen': best['lr'], 'share': TUNE_SHARE, 'seed': TUNE_SEED}

    @staticmethod
    def _read(job: Job) -> FinishedRun:
        try:
            return read_run(job.folder)
        except DataError as error:
            raise DataError(
                f'{error} Delete that folder, and rerun the same command to train it again.'
            ) from error

    def _finished(self, jobs: list[Job]) -> list[FinishedRun]:
        return [self._read(job) for job in jobs if job.finished]

    def _train(self, prepared: list[Prepared]) -> dict[str, list[FinishedRun]]:
        """label -> finished runs; the baseline is trained first. Raises UserError below two labels."""
        jobs = {
            p.spec.label: [
                self._job(p, 'runs', seed, f'{p.spec.label} seed {seed}')
                for seed in range(self.request.seeds)
            ]
            for p in prepared
        }
        baseline, *others = jobs.values()
        ordered = [*baseline, *(job for of_seed in zip(*others) for job in of_seed)]
        labels = {job.name: label for label, members in jobs.items() for job in members}
        if all(job.finished for job in baseline):
            self._report_noise(baseline)
        run_jobs(
            ordered,
            devices=self.devices,
            workers=self.request.jobs,
            say=self.say,
            on_finish=lambda job: self._look(job, labels[job.name], jobs),
        )
        stopped = [job for job in ordered if job.stopped]
        self.notes += [f'{job.name} stopped early and is left out: {job.stopped}' for job in stopped]
        runs = {label: found for label, members in jobs.items() if (found := self._finished(members))}
        if self.specs[0].label not in runs or len(runs) < 2:
            raise UserError(
                f'There is nothing to compare, because runs stopped early: '
                f'{" ".join(j.stopped for j in stopped)}'
            )
        return runs

    def _look(self, job: Job, label: str, jobs: dict[str, list[Job]]) -> None:
        """After a run: says what can be said early, once the baseline's seeds are all there."""
        base = self.specs[0].label
        if job.stopped or not all(j.finished for j in jobs[base]):
            return
        if label == base:
            self._report_noise(jobs[base])
            return
        members, baseline = self._finished(jobs[label]), self._finished(jobs[base])
        if len(members) < len(jobs[label]):
            measured = self._noise(baseline)
            text = early_warning(
                label, members, baseline, measured, self.request.metric, alpha=self._shared_alpha
            )
            if text:
                self.say(text)

    @property
    def _shared_alpha(self) -> float:
        return ALPHA / (len(self.specs) - 1)

    def _noise(self, baseline: list[FinishedRun]) -> dict:
        return noise(self.specs[0].label, baseline, self.request.metric, alpha=self._shared_alpha)

    def _report_noise(self, baseline: list[Job]) -> None:
        measured = self._noise(self._finished(baseline))
        write_json(self.out / 'noise.json', measured)
        if measured['sd'] is not None:
            self.say(
                f'The noise of {measured["label"]} from seed to seed is {measured["sd"]:.4f} (standard '
                f'deviation over {len(baseline)} seeds): differences below about '
                f'{measured["detectable"]:.4f} may stay within noise.'
            )
