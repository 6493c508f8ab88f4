"""One comparison, from request to report; everything is kept in its directory, so that it can resume."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..errors import UserError
from ..runs.finished import FinishedRun
from ..train.plan import load_plan
from .folder import Folder, earlier_looks, read_job, write_looks, write_strict_json
from .grouping import check_causal, check_comparable, check_contracts, fingerprints_of
from .hopeless import Watch, why_stopped, wrongly_stopped
from .judge import judge, noise
from .launcher import Launcher
from .outcome import Comparison
from .prepare import Budget, Prepared, Spec, apply_budget, parse_spec, prepare, safe
from .receipt import write_receipt
from .report import NUMBERS, write_report
from .rungs import TOKENS_PER_PARAMETER
from .runner import Job, Workers, run_jobs
from .search import runs_of, tune
from .sequential import Sequential
from .statistics import ALPHA
from .sweep import TRIALS
from .tuning import check_text, part_of
from .words import few_documents, so_far, title


@dataclass
class Request:
    """What was asked for. experiments: specs as written, the baseline first; seeds: how many, or the rule
    that adds them."""

    experiments: list[str]
    plan: str
    seeds: int | Sequential = 3
    budget: Budget | None = None
    metric: str = 'loss'
    device: str = 'auto'
    amp: bool = False
    tune: list[str] = field(default_factory=list)  # settings to search first
    trials: int = TRIALS
    settings: list[str] = field(default_factory=list)  # KEY=VALUE for every experiment
    jobs: int | None = None
    launcher: str = 'local'
    slurm: str = ''
    out: Path | None = None
    ladder: tuple[int, float] | None = None  # rungs, and the span of their compute
    tokens_per_parameter: float = TOKENS_PER_PARAMETER
    stop_early: bool = False
    yes: bool = False  # train although the memory is estimated not to suffice

    @property
    def asked(self) -> dict:
        """What must not change between two starts in one directory."""
        rule = self.seeds if isinstance(self.seeds, Sequential) else None
        return {
            'baseline': self.experiments[0],
            'plan': self.plan,
            'budget': str(self.budget) if self.budget else None,
            'metric': self.metric,
            'amp': self.amp,
            'tune': ','.join(self.tune) or None,
            'trials': self.trials if self.tune not in ([], ['lr']) else None,
            'set': self.settings,
            'rule for seeds': str(rule) if rule else None,
            'smallest effect': rule.smallest_effect if rule else None,
            'ladder': '{}:{:g}'.format(*self.ladder) if self.ladder else None,
            'stop early': self.stop_early or None,
            'tokens per parameter': self.tokens_per_parameter if self.ladder else None,
        }


def launcher_of(request: Request, out: Path, say: Callable[[str], None]) -> Launcher:
    return Launcher(request.launcher, request.slurm, request.device, request.jobs, out, say)


def check_different(specs: list[Spec]) -> None:
    """Raises UserError unless these are two experiments or more, each given once."""
    labels = [s.label for s in specs]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(
                f"'{label}' is given twice; a comparison is between different experiments. Copy one "
                'under another name with lmp_new.'
            )
    if len(labels) < 2:
        raise UserError('A comparison needs a baseline and at least one more experiment.')


def _why_stopped(jobs: Mapping[str, list[Job]], *, hopeless: bool) -> dict[str, dict[int, str]]:
    """label -> seed -> why its run ended early, by itself or because it was hopeless."""
    return {
        label: {
            seed: job.stopped for seed, job in enumerate(members) if job.stopped and job.hopeless == hopeless
        }
        for label, members in jobs.items()
    }


class ComparisonSession:
    """Trains what is missing, then judges. say: receives lines about what happens."""

    def __init__(self, request: Request, say: Callable[[str], None]):
        self.request, self.say = request, say
        self.plan = load_plan(request.plan)
        self.specs: list[Spec] = [parse_spec(text, request.settings) for text in request.experiments]
        check_different(self.specs)
        labels = '+'.join(safe(spec.label) for spec in self.specs)
        self.out = request.out or Path('compare') / f'{labels}-{self.plan.name}'
        self.folder = Folder(self.out, self.plan.name, say, yes=request.yes)
        self.launcher = launcher_of(request, self.out, say)
        if request.budget and request.budget.kind == 'seconds':
            self.launcher.check_timed('--budget seconds')
        if request.stop_early and not self.launcher.local:
            raise UserError(
                '--stop-early watches runs on this machine and does not go with --launcher slurm.'
            )
        self.alpha = ALPHA / (len(self.specs) - 1)
        self.rule = request.seeds if isinstance(request.seeds, Sequential) else None
        seeds = request.seeds
        self.first = seeds.first(self.alpha) if isinstance(seeds, Sequential) else seeds
        self.notes: list[str] = []
        self.watch: Watch | None = None
        self.jobs: dict[str, list[Job]] = {}  # label -> its run with each seed

    def run(self) -> Comparison:
        """What was found, its report written.

        Raises UserError for what cannot be compared, if possible before training.
        """
        prepared = self._prepare()
        with self.folder.held():
            return self._run(prepared)

    def _prepare(self) -> list[Prepared]:
        """The experiments within the budget, after every check that can be made before training."""
        prepared = prepare(
            self.specs, self.plan, device=self.launcher.devices[0], amp=self.request.amp, progress=self.say
        )
        check_comparable({p.spec.label: p.fingerprints for p in prepared}, self.request.metric)
        if self.request.budget is None and prepared[0].unit == 'seconds':
            self.launcher.check_timed(f'A plan in seconds ({self.plan.where})')
        documents = prepared[0].documents
        if self.request.tune:
            check_text(*(documents[name] for name in ('domain', 'hash', 'tokens')))
        self._earlier_looks()
        for p in prepared:
            apply_budget(p, self.request.budget)
        self.launcher.memory = max(p.memory for p in prepared)
        return prepared

    def dry_run(self) -> str:
        """What `run` would train, having checked all that it would refuse; writes nothing."""
        from .rehearsal import comparison_text

        prepared = self._prepare()
        search, verdict = self._all_runs(prepared)
        return comparison_text(
            self.request,
            out=self.out,
            plan=self.plan.name,
            launcher=self.launcher,
            speed=self.launcher.speed(self.request.amp),
            verdict=verdict,
            search=search,
            notes=self._few_documents(prepared),
        )

    def _all_runs(self, prepared: list[Prepared]) -> tuple[list, list]:
        """(runs of the search, runs of the verdict): experiment, as it would be trained -> its jobs."""
        search = [runs for p in prepared for runs in runs_of(self.request, p, self.folder)]
        return search, [(p, self._jobs(p, self.first)) for p in prepared]

    def _say_what_it_takes(self, prepared: list[Prepared]) -> None:
        """Where that is much."""
        from .rehearsal import in_all, may_be_long

        if self.launcher.local and may_be_long(prepared, self.first + self.request.trials):
            search, verdict = self._all_runs(prepared)
            self.jobs.clear()  # which a search may change
            speed = self.launcher.speed(self.request.amp)
            self.say(in_all((*search, *verdict), self.launcher, speed))

    @staticmethod
    def _few_documents(prepared: list[Prepared]) -> list[str]:
        documents = prepared[0].documents
        return few_documents(documents['tokens'], documents['hash'])

    def _run(self, prepared: list[Prepared]) -> Comparison:
        self._remember()
        for warning in self._few_documents(prepared):
            self.say(warning)
        self._say_what_it_takes(prepared)
        tuning = None
        if self.request.tune:
            tuning, notes = tune(self.request, prepared, self.folder, self.launcher)
            self.notes += notes
            write_strict_json(self.out / 'tuning.json', tuning)
        seeds = {p.spec.label: self.first for p in prepared}
        ahead = 0  # seeds trained before they are looked at, where there are workers for them
        while True:
            most = (self.rule and self.rule.maximum) or max(seeds.values()) + ahead
            trained = self._train(prepared, {label: min(n + ahead, most) for label, n in seeds.items()})
            findings, runs = self._judge(seeds)
            findings['tuning'] = tuning
            going = [
                e['label']
                for e in findings['experiments']
                if self.rule and 'comparison' in e and not e['comparison']['sequence']['ended']
            ]
            if trained or not going:
                report = write_report(findings, runs, self.out)
            if not going:
                write_receipt(self.folder, prepared, self._looked_at(seeds), NUMBERS)
                return Comparison(findings, runs, report)
            if trained:
                self.say(so_far(findings))
            ahead = max(0, self.launcher.at_a_time // (len(going) + 1) - 1)
            for label in (self.specs[0].label, *going):
                seeds[label] += 1

    def _looked_at(self, seeds: Mapping[str, int]) -> dict[str, list[Job]]:
        return {label: self.jobs[label][:n] for label, n in seeds.items()}

    def _judge(self, seeds: Mapping[str, int]) -> tuple[dict, dict[str, list[FinishedRun]]]:
        """(findings, label -> finished runs) of so many seeds."""
        jobs = self._looked_at(seeds)
        runs = {label: found for label, members in jobs.items() if (found := self._finished(members))}
        stopped = [job for members in jobs.values() for job in members if job.stopped]
        if self.specs[0].label not in runs or len(runs) < 2:
            raise UserError(
                f'There is nothing to compare, because runs stopped early: '
                f'{" ".join(str(j.stopped) for j in stopped)}'
            )
        check_comparable(fingerprints_of(runs), self.request.metric)
        check_causal(runs)
        check_contracts(runs)
        findings = judge(
            runs,
            metric=self.request.metric,
            notes=[
                *self.notes,
                *(f'{job.name} stopped early and is left out: {job.stopped}' for job in stopped),
            ],
            stopped=_why_stopped(jobs, hopeless=False),
            hopeless=_why_stopped(jobs, hopeless=True),
            design=self.rule,
        )
        write_strict_json(self.out / 'noise.json', findings['noise'])
        return findings | {
            'title': title(self.specs[0].label, [s.label for s in self.specs[1:]]),
            'plan': self.plan.name,
            'budget': str(self.request.budget) if self.request.budget else None,
        }, runs

    def _earlier_looks(self) -> list[int]:
        return earlier_looks(self.out / 'comparison.json', self.request.asked)

    def _remember(self) -> None:
        """Records what was asked for."""
        looks = self._earlier_looks()
        if isinstance(self.request.seeds, int) and self.request.seeds not in looks[-1:]:
            looks = [*looks, self.request.seeds]
        content = {'asked': self.request.asked, 'experiments': self.request.experiments, 'seeds': looks}
        write_looks(self.out / 'comparison.json', content)
        if len(looks) > 1:
            self.notes.append(
                f'The number of seeds was changed after earlier looks ({", then ".join(map(str, looks))}). '
                f'Adding seeds until a verdict appears makes a false one likelier than {ALPHA:.0%}; a fresh '
                'comparison with the last number settles it, or one with --seeds auto, which allows for that.'
            )

    def _jobs(self, p: Prepared, seeds: int) -> list[Job]:
        """The runs of an experiment that the verdict is about."""
        known = self.jobs.setdefault(p.spec.label, [])
        known += [
            self.folder.job(p, 'runs', seed, f'{p.spec.label} seed {seed}')
            for seed in range(len(known), seeds)
        ]
        for job in known if self.request.stop_early else ():
            if not job.finished and (why := why_stopped(job.folder)):
                job.stopped, job.hopeless = why, True
        return known[:seeds]

    def _finished(self, jobs: list[Job]) -> list[FinishedRun]:
        runs = [read_job(job) for job in jobs if job.finished]
        return [part_of(run, tuning=False) for run in runs] if self.request.tune else runs

    def _train(self, prepared: list[Prepared], seeds: Mapping[str, int]) -> bool:
        """Trains what is missing of so many seeds, the baseline first; returns whether anything was."""
        for p in prepared:
            self.folder.write_plan(p)
        jobs = {p.spec.label: self._jobs(p, seeds[p.spec.label]) for p in prepared}
        baseline, *others = jobs.values()
        most = max(map(len, others))
        ordered = [*baseline, *(own[seed] for seed in range(most) for own in others if seed < len(own))]
        missing = any(not (job.finished or job.stopped) for job in ordered)
        if len(baseline) == self.first:
            self._report_noise(baseline)
        left = [job for job in ordered if not job.stopped]
        pool = self.launcher.pool(left)
        judge_runs = None
        if self.request.stop_early and isinstance(pool, Workers):
            judge_runs = partial(pool.give_up, lambda job: self._give_up(job, baseline, others))
        run_jobs(
            left,
            pool,
            say=self.say,
            on_finish=lambda job: self._report_noise(baseline) if job in baseline[: self.first] else None,
            judge=judge_runs,
        )
        return missing

    def _give_up(self, job: Job, baseline: list[Job], others: list[list[Job]]) -> str | None:
        """Why a run should be stopped early; the first seed of each experiment is always trained whole."""
        if not all(own.finished for own in baseline) or not any(job in members[1:] for members in others):
            return None
        if self.watch is None:
            self.watch = Watch(self._finished(baseline), self.out)
            runs = self.watch.recorded
            wrong, of = wrongly_stopped(runs)
            note = (
                f'--stop-early judges by {len(runs)} finished runs; of the {of} that ended no worse than '
                f'comparable ones, its rule would have stopped {wrong}.'
            )
            self.say(note)
            self.notes.append(note)
        return self.watch(job.folder)

    def _report_noise(self, baseline: list[Job]) -> None:
        """Says how far apart the baseline's seeds are, once all of them are there."""
        if not all(job.finished for job in baseline):
            return
        runs = self._finished(baseline)
        measured = noise(self.specs[0].label, runs, self.request.metric, alpha=self.alpha)
        write_strict_json(self.out / 'noise.json', measured)
        if measured['sd'] is not None:
            self.say(
                f'The noise of {measured["label"]} from seed to seed is {measured["sd"]:.4f} (standard '
                f'deviation over {len(baseline)} seeds): differences below about '
                f'{measured["detectable"]:.4f} may stay within noise.'
            )
