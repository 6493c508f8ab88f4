"""A run: the stages of a plan in order, in one directory that can be continued."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict

from ..device import Compute, keep_freed_memory, reset_peak_memory, return_freed_memory
from ..errors import UserError
from ..runs.directory import RunDirectory
from ..runs.links import point
from .assemble import RunContext, opened_run, prepare_stage
from .beginning import Beginner, Beginning, require_agreement, write_down
from .console import ConsoleReporter
from .cost import time_left
from .finish import finish
from .plan import Plan
from .profiling import StepProfile
from .ranks import Ranks
from .readiness import check_means, check_stages
from .resolve import ResolvedStage, Settings, resolve
from .resume import find_saved, whole_model
from .stage_data import open_tokenizer
from .state import TrainState
from .stopping import Interrupted, StopSignal, StopTraining
from .trainer import Trainer


class Session:
    """Trains a plan from where the run in its directory stands to its end."""

    def __init__(self, plan: Plan, settings: Settings, *, console: ConsoleReporter):
        self.plan, self.settings, self.console = plan, settings, console
        self.ranks = Ranks.of_environment(settings.rank_timeout)
        if not self.ranks.first:
            console.quiet = True
        self.compute = Compute.of(self.ranks.device(settings.device), amp=settings.amp)
        self.seed = settings.seed if settings.seed is not None else plan.seed
        self.directory = RunDirectory(settings.run_dir)
        keep_freed_memory()
        reset_peak_memory(self.compute.device)

    def resolve(self) -> list[ResolvedStage]:
        """The plan's stages, each checked as far as can be without its data and weights from elsewhere."""
        stages = resolve(self.plan, self.settings, open_tokenizer(self.plan, self.console.line))
        check_stages(stages)
        return stages

    def train(self) -> int:
        """The exit code: 0 at the end, 130 after Ctrl-C, 143 after SIGTERM, 1 where training had to stop."""
        with self.ranks.connected(self.compute.device):
            return self._run(StopSignal(self.console))

    def _run(self, stop: StopSignal) -> int:
        # rank 0 alone writes the directory
        opened = self.directory.opened() if self.ranks.first else nullcontext(False)
        with opened as new, stop.installed():
            state, aside = TrainState(), None
            try:
                with self.ranks.in_turn():
                    beginning = self._begin()
                state = beginning.state
                require_agreement(state, self.ranks, self.directory)
                aside = self.directory.set_aside() if beginning.saved is None and self.ranks.first else None
                with self._running(beginning, stop) as run:
                    return self._train(run, beginning)
            except KeyboardInterrupt:
                if stop.stepping or stop.number is None:
                    raise
                self.console.close()
                self.console.line('Stopped; rerun the same command to resume.')
                return stop.exit_code
            except UserError:
                if not state.total_step and aside is not None:
                    self.directory.put_back(aside)
                elif not state.total_step and new:
                    self.directory.take_back()
                raise

    def _begin(self) -> Beginning:
        """What the run begins with, all of it checked before anything in its directory changes."""
        self.directory.complete_reset()
        saved = find_saved(self.directory.path, self.directory.checkpoints)
        resets = self.settings.reset_history and saved is not None and not saved.is_being_reset
        if saved is not None and not resets:
            saved.check(list(self.plan.stages), seed=self.seed)
        stages = self.resolve()
        left = stages[saved.train_state.stage if saved is not None and not resets else 0 :]
        check_means(stages, left, self.settings, self.compute, self.ranks.size)
        beginner = Beginner(
            self.directory,
            stages,
            self.settings,
            self.seed,
            self.compute,
            tell=self.console.line,
            ranks=self.ranks.size,
        )
        if saved is None:
            return beginner.fresh()
        return beginner.again(saved) if resets else beginner.resumed(saved)

    def _running(self, beginning: Beginning, stop: StopSignal) -> AbstractContextManager[RunContext]:
        """The run's records and checkpoints, opened where the saved run left them."""
        return opened_run(
            self.settings,
            **beginning.shared,
            seed=self.seed,
            compute=self.compute,
            directory=self.directory,
            console=self.console,
            stop=stop,
            ranks=self.ranks,
            config=asdict(self.settings) | {'plan': self.plan.raw},
        )

    def _train(self, run: RunContext, beginning: Beginning) -> int:
        stages = beginning.stages
        try:
            trainer = self._stages(run, beginning)
            self.console.close()
            if self.ranks.first:
                finish(self.directory, trainer, stages, plan=self.plan.name)
            return 0
        except StopTraining as stopped:
            self.console.close()
            if not isinstance(stopped, Interrupted):
                run.event('stopped', stages[run.state.stage].name, f'Stopped: {stopped}.')
            last = self.directory.checkpoints / 'last'
            self.console.line(f"State saved in '{last}'; rerun the same command to resume.")
            return run.stop.exit_code

    def _stages(self, run: RunContext, beginning: Beginning) -> Trainer:
        """Trains what is left of the stages; the last one's trainer."""
        trainer: Trainer | None = None
        resumed = beginning.resumed
        for stage in beginning.stages[run.state.stage :]:
            if resumed is None:
                run.state.begin_stage(stage.index)
            first = trainer is None
            trainer = prepare_stage(run, stage, previous=trainer, resumed=resumed)  # frees the one before
            return_freed_memory()  # of that one, and of the checks
            if first and self.ranks.first:
                write_down(beginning, run, plan=self.plan.raw)
            if resumed is not None:
                self.console.line(f'Resuming stage "{stage.name}" after {run.state.step:,} steps.')
            if first and self.settings.profile and self.ranks.first:
                folder = self.directory.path / 'profile'
                trainer.profile = StepProfile(self.settings.profile, folder, self.compute, self.console.line)
            resumed = None  # later stages start from the one before
            self._train_stage(run, stage, trainer)
            if run.sharded:
                trainer.model = whole_model(self.directory, stage, self.compute.device)
            if stage is not beginning.stages[-1]:
                run.stop.check()  # after a signal in the stage's last step
        assert trainer is not None  # a plan has at least one stage
        return trainer

    def _train_stage(self, run: RunContext, stage: ResolvedStage, trainer: Trainer) -> None:
        left = time_left(trainer)
        self.console.stage(stage, trainer.model, trainer.length, run.state, self.compute, left)
        with run.stop.waits_for_the_step():
            try:
                trainer.fit()
            except StopTraining:
                trainer.checkpoints.rescue_what_was_removed(self.directory)
                trainer.checkpoints.save()
                run.checkpoints.wait()
                raise
            run.checkpoints.wait()
        evaluation = trainer.final_evaluation()
        if self.settings.check_grads:
            self.console.gradients(trainer.model, trainer.stage)
        if self.ranks.first:
            folder = self.directory.checkpoints
            point(folder / f'stage-{stage.name}', (folder / 'last').resolve())
            self.directory.write_held_out(stage.name, evaluation.documents)
