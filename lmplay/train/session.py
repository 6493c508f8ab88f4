"""A run: the stages of a plan in order, in one directory that can be continued."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict

from ..device import Compute, keep_freed_memory, reset_peak_memory
from ..errors import UserError
from ..runs.checkpoint import Checkpoints, point
from ..runs.directory import RunDirectory
from ..runs.environment import environment
from ..runs.recorder import Recorder
from .assemble import RunContext, prepare_stage
from .console import ConsoleReporter
from .finish import finish
from .plan import Plan
from .resolve import ResolvedStage, Settings, check_stages, resolve
from .resume import SavedRun, changed_settings, find_saved
from .stage_data import open_tokenizer
from .state import TrainState
from .stopping import Interrupted, StopSignal, StopTraining
from .trainer import Trainer


class Session:
    """Trains a plan from where the run in its directory stands to its end."""

    def __init__(self, plan: Plan, settings: Settings, *, console: ConsoleReporter):
        self.plan, self.settings, self.console = plan, settings, console
        self.compute = Compute.of(settings.device, amp=settings.amp)
        self.seed = settings.seed if settings.seed is not None else plan.seed
        self.directory = RunDirectory(settings.run_dir)
        keep_freed_memory()
        reset_peak_memory(self.compute.device)

    def resolve(self) -> list[ResolvedStage]:
        """The plan's stages, each checked as far as can be without its data."""
        stages = resolve(self.plan, self.settings, open_tokenizer(self.plan, self.console.line))
        check_stages(stages)
        return stages

    def train(self) -> int:
        """The exit code: 0 at the plan's end, 130 after Ctrl-C, 143 after SIGTERM,
        1 where training had to stop."""
        with self.directory.opened() as new:
            saved = find_saved(self.directory.path, self.directory.checkpoints)
            state = TrainState()
            if saved is not None and not self.settings.reset_history:
                state = saved.train_state
                saved.check(list(self.plan.stages), seed=self.seed)
            try:
                stages = self.resolve()
                with self._running(saved, state) as run:
                    return self._train(run, stages, saved)
            except UserError:
                if new and not state.total_step:
                    self.directory.take_back()
                raise

    @contextlib.contextmanager
    def _running(self, saved: SavedRun | None, state: TrainState) -> Iterator[RunContext]:
        """The run's records and checkpoints, opened where the saved run left them,
        and its signal handlers."""
        directory, settings = self.directory, self.settings
        background = not self.compute.is_cpu
        checkpoints = Checkpoints(directory.checkpoints, keep=settings.keep, background=background)
        if saved is not None and settings.reset_history:
            checkpoints.forget_links()
        recorder = Recorder(
            directory.path,
            report_to=settings.report_to,
            offsets=saved.state['logs'] if saved is not None and not settings.reset_history else None,
            run_name=directory.path.name,
            config=asdict(settings) | {'plan': self.plan.raw},
        )
        stop = StopSignal(self.console)
        opened = (directory, recorder, checkpoints, self.console, stop)
        with stop.installed():
            try:
                yield RunContext(settings, self.seed, self.compute, state, *opened)
            finally:
                checkpoints.close()
                recorder.close()

    def _train(self, run: RunContext, stages: list[ResolvedStage], saved: SavedRun | None) -> int:
        try:
            self._record_settings(run, stages)
            trainer = self._stages(run, stages, saved)
            self.console.close()
            finish(self.directory, trainer, exp=stages[-1].entry_name, plan=self.plan.name)
            return 0
        except StopTraining as stopped:
            self.console.close()
            if not isinstance(stopped, Interrupted):
                run.event('stopped', stages[run.state.stage].name, f'Stopped: {stopped}.')
            last = self.directory.checkpoints / 'last'
            self.console.line(f"State saved in '{last}'; rerun the same command to resume.")
            return run.stop.exit_code
        except KeyboardInterrupt:
            if run.stop.stepping or run.stop.number is None:
                raise
            self.console.close()
            self.console.line('Stopped; rerun the same command to resume.')
            return run.stop.exit_code

    def _stages(self, run: RunContext, stages: list[ResolvedStage], saved: SavedRun | None) -> Trainer:
        """Trains what is left of the stages; the last one's trainer."""
        trainer: Trainer | None = None
        resumes = saved is not None and not self.settings.reset_history
        for stage in stages[run.state.stage :]:
            if not resumes:
                run.state.begin_stage(stage.index)
            trainer = prepare_stage(run, stage, previous=trainer, saved=saved)
            if resumes:
                self.console.line(f'Resuming stage "{stage.name}" after {run.state.step:,} steps.')
            saved, resumes = None, False  # later stages start from the one before
            self._train_stage(run, stage, trainer)
            if stage is not stages[-1]:
                run.stop.check()  # after a signal in the stage's last step
        assert trainer is not None  # a plan has at least one stage
        return trainer

    def _train_stage(self, run: RunContext, stage: ResolvedStage, trainer: Trainer) -> None:
        self.console.stage(stage, trainer.model, trainer.length, run.state, self.compute)
        with run.stop.waits_for_the_step():
            try:
                trainer.fit()
            except StopTraining:
                trainer.checkpoints.save()
                run.checkpoints.wait()
                raise
            run.checkpoints.wait()
        evaluation = trainer.final_evaluation()
        if self.settings.check_grads:
            self.console.gradients(trainer.model, trainer.stage)
        folder = self.directory.checkpoints
        point(folder / f'stage-{stage.name}', (folder / 'last').resolve())
        self.directory.write_held_out(stage.name, evaluation.documents)

    def _record_settings(self, run: RunContext, stages: list[ResolvedStage]) -> None:
        """Writes the settings, and records which of them a resumed run changes."""
        told = [stage.settings.model_dump() for stage in stages]
        if run.state.total_step:
            for sentence in changed_settings(self.directory.path, told, first=run.state.stage):
                run.event('settings', stages[run.state.stage].name, sentence)
        settings = asdict(self.settings) | {'seed': self.seed, 'stages': told}
        self.directory.write(settings=settings, plan=self.plan.raw, environment=environment())
