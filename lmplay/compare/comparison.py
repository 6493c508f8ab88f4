"""One comparison from what was asked for to its report. Everything it does is kept in its directory, so that it can go on."""

import copy
import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError, UserError
from ..train.plan import load_plan
from .judge import early_warning, judge, noise
from .prepare import Budget, Prepared, Spec, apply_budget, parse_spec, prepare, safe, scale_lr
from .report import write_report
from .results import Run, check_comparable, fingerprints_of, read_run
from .runner import Job, run_jobs
from .statistics import ALPHA

TUNE_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
TUNE_SHARE = 0.2  # of the budget, for each learning rate tried
TUNE_SEED = 987_654  # none of the comparison's


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


def write_json(file: Path, content) -> None:
    temporary = file.with_name(f'.{file.name}')
    temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + '\n', encoding='utf-8')
    os.replace(temporary, file)


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
    """The devices that runs are spread over: those named, or every GPU where 'cuda' or 'auto' finds some."""
    from ..device import find_device

    names = given.split(',')
    found = [find_device(n) for n in names]
    if len(found) == 1 and found[0].type == 'cuda' and found[0].index is None:
        import torch

        return [f'cuda:{i}' for i in range(torch.cuda.device_count())]
    if len({d.type for d in found}) > 1:
        raise UserError(f"--device: the runs of a comparison need devices of one kind; given: '{given}'.")
    return [str(d) for d in found]


class Comparison:
    """Trains what is missing, then judges. `say` is told what happens."""

    def __init__(self, request: Request, say: Callable[[str], None]):
        self.request, self.say = request, say
        self.plan = load_plan(request.plan)
        self.specs: list[Spec] = [parse_spec(text, request.settings) for text in request.experiments]
        labels = [s.label for s in self.specs]
        for label in labels:
            if labels.count(label) > 1:
                raise UserError(
                    f"'{label}' is given twice; a comparison is of different experiments. Copies differ by name: "
                    f'lmp_new.'
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
                f'{what} needs a device for every job, for runs on one device slow each other down; jobs {self.request.jobs}, '
                f'devices {len(set(self.devices))}.'
            )

    def run(self) -> Path:
        """The report's path. Raises UserError for what can't be compared, before anything is trained where that is possible."""
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
                    f"Another lmp_compare works in '{self.out}'. Wait for it, or give another --out."
                ) from None
            return self._run(prepared)

    def _run(self, prepared: list[Prepared]) -> Path:
        self._remember()
        for p in prepared:
            apply_budget(p, self.request.budget)
        tuning = self._tune(prepared) if self.request.tune else None
        runs = self._train(prepared)
        check_comparable(fingerprints_of(runs), self.request.metric)
        findings = judge(runs, metric=self.request.metric, notes=self.notes)
        write_json(self.out / 'noise.json', findings['noise'])
        findings |= {
            'title': ' against '.join([self.specs[0].label, ', '.join(s.label for s in self.specs[1:])]),
            'plan': self.plan.name,
            'budget': str(self.request.budget) if self.request.budget else None,
            'tuning': tuning,
        }
        return write_report(findings, runs, self.out)

    def _remember(self) -> None:
        """Keeps what was asked for; refuses to mix it with something else that was asked for in the same directory."""
        file = self.out / 'comparison.json'
        looks = []
        if file.is_file():
            known = read_json(file, 'asked', 'seeds')
            for key, value in self.request.asked.items():
                if known['asked'].get(key) != value:
                    raise UserError(
                        f"'{self.out}' holds a comparison with another {key}: {known['asked'].get(key)} there, "
                        f'{value} now. Give another --out.'
                    )
            looks = known['seeds']
        looks = looks if self.request.seeds in looks[-1:] else [*looks, self.request.seeds]
        write_json(
            file, {'asked': self.request.asked, 'experiments': self.request.experiments, 'seeds': looks}
        )
        if len(looks) > 1:
            self.notes.append(
                f'The number of seeds was changed after earlier looks ({", then ".join(map(str, looks))}). Adding '
                f'seeds until a verdict '
                f'appears makes a false one likelier than {0.05:.0%}; a fresh comparison with the last number '
                f'settles it.'
            )

    def _jobs(self, p: Prepared, folder: str, seeds: list[int], *extra: str) -> list[Job]:
        plan = self.out / 'plans' / p.folder / f'{self.plan.name}.json'
        plan.parent.mkdir(parents=True, exist_ok=True)
        write_json(plan, p.plan)
        arguments = ['--exp', p.spec.exp, '--training-plan', str(plan), *(['--amp'] if p.amp else []), *extra]
        for key, value in p.spec.model.items():
            arguments += ['--set', f'{key}={json.dumps(value)}']
        return [
            Job(
                f'{p.spec.label} seed {seed}' if folder == 'runs' else f'{p.spec.label} {folder}',
                self._place(p, folder, seed),
                [*arguments, '--seed', str(seed)],
                p.unit,
                sum(p.lengths),
            )
            for seed in seeds
        ]

    def _place(self, p: Prepared, folder: str, seed: int) -> Path:
        """Where a run is or will be kept; a finished one with the same settings serves, also of another comparison beside this."""
        own = self.out / folder / p.folder / f'seed-{seed}'
        if (own / 'summary.json').is_file():
            return own
        others = sorted(self.out.resolve().parent.glob(f'*/{folder}/*-{p.digest}/seed-{seed}/summary.json'))
        if others:
            self.say(f'{p.spec.label} seed {seed}: {others[0].parent} is used again.')
            return others[0].parent
        return own

    def _tune(self, prepared: list[Prepared]) -> dict:
        """Gives every experiment the learning rate that did best in the same short search; the search is logged."""
        trials = []
        for p in prepared:
            for factor in TUNE_FACTORS:
                trial = copy.deepcopy(p)
                apply_budget(trial, Budget(trial.unit, TUNE_SHARE * sum(trial.lengths)))
                scale_lr(trial, factor)
                job = self._jobs(trial, 'tuning', [TUNE_SEED])[0]
                job.name = f'{p.spec.label} lr x {factor:g}'
                trials.append((p, factor, trial, job))
        self.say(
            f'Trying {len(TUNE_FACTORS)} learning rates with each experiment, on {TUNE_SHARE:.0%} of the budget.'
        )
        run_jobs([job for *_, job in trials], devices=self.devices, workers=self.request.jobs, say=self.say)
        log = {}
        for p in prepared:
            points = []
            for owner, factor, trial, job in trials:
                if owner is p:
                    rates = [s['lr'] for s in trial.plan['stages'].values()]
                    loss = (
                        self._own_run(job, p.spec.label).loss(self.request.metric) if job.finished else None
                    )
                    points.append(
                        {
                            'factor': factor,
                            'lr': rates,
                            'loss': loss if loss is not None and loss == loss else None,
                        }
                    )
            usable = [x for x in points if x['loss'] is not None]
            if not usable:
                raise UserError(
                    f'No learning rate worked for {p.spec.label}: every trial diverged or stopped. See '
                    f'{self.out / "tuning"}.'
                )
            best = min(usable, key=lambda x: x['loss'])
            scale_lr(p, best['factor'])
            log[p.spec.label] = {
                'points': points,
                'chosen': best['lr'],
                'share': TUNE_SHARE,
                'seed': TUNE_SEED,
            }
            self.say(f'{p.spec.label}: learning rate {", ".join(f"{r:g}" for r in best["lr"])} did best.')
            if best['factor'] in (TUNE_FACTORS[0], TUNE_FACTORS[-1]):
                self.notes.append(
                    f'{p.spec.label}: the best learning rate ({best["lr"][0]:g}) is at the edge of those tried; a '
                    f'better one may lie beyond.'
                )
        write_json(self.out / 'tuning.json', log)
        return log

    @staticmethod
    def _own_run(job: Job, label: str) -> Run:
        try:
            return read_run(job.folder, label)
        except DataError as error:
            raise DataError(f'{error} Delete that folder, and the next start trains it again.') from error

    def _train(self, prepared: list[Prepared]) -> dict[str, list[Run]]:
        seeds = list(range(self.request.seeds))
        jobs = {p.spec.label: self._jobs(p, 'runs', seeds) for p in prepared}
        baseline, *others = jobs.values()
        ordered = [*baseline, *(job for of_seed in zip(*others) for job in of_seed)]
        owner = {job.name: label for label, members in jobs.items() for job in members}
        metric, alpha = self.request.metric, ALPHA / (len(self.specs) - 1)

        def finished(label: str) -> list[Run]:
            return [self._own_run(j, label) for j in jobs[label] if j.finished]

        def tell_noise() -> None:
            measured = noise(finished(self.specs[0].label), metric, alpha=alpha)
            write_json(self.out / 'noise.json', measured)
            if measured['sd'] is not None:
                self.say(
                    f'The noise of {measured["label"]} from seed to seed is {measured["sd"]:.4f} (standard deviation over '
                    f'{len(seeds)} seeds): '
                    f'differences below about {measured["detectable"]:.4f} may stay within noise.'
                )

        def on_finish(job: Job) -> None:
            label, base = owner[job.name], self.specs[0].label
            if job.stopped or not all(j.finished for j in baseline):
                return
            if label == base:
                tell_noise()
            elif len(finished(label)) < len(seeds) and (
                text := early_warning(finished(label), finished(base), metric, alpha=alpha)
            ):
                self.say(text)

        if all(j.finished for j in baseline):
            tell_noise()
        run_jobs(ordered, devices=self.devices, workers=self.request.jobs, say=self.say, on_finish=on_finish)
        for job in ordered:
            if job.stopped:
                self.notes.append(f'{job.name} stopped early and is left out: {job.stopped}')
        runs = {label: found for label in jobs if (found := finished(label))}
        if self.specs[0].label not in runs or len(runs) < 2:
            raise UserError(
                'There is nothing to compare, for runs stopped early: '
                + ' '.join(j.stopped for j in ordered if j.stopped)
            )
        return runs
