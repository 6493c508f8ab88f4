"""A run: the stages of a plan in order, in one directory that can be continued."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict

from ..device import Compute, keep_freed_memory, reset_peak_memory
from ..errors import UserError
from ..runs.checkpoints import Checkpoints
from ..runs.directory import RunDirectory
from ..runs.links import point
from ..runs.recorder import Recorder
from .assemble import RunContext, prepare_stage
from .beginning import Beginner, Beginning, write_down
from .console import ConsoleReporter
from .finish import finish
from .plan import Plan
from .readiness import check_stages
from .resolve import ResolvedStage, Settings, resolve
from .resume import find_saved
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
        """The plan's stages, each checked as far as can be without its data and weights from elsewhere."""
        stages = resolve(self.plan, self.settings, open_tokenizer(self.plan, self.console.line))
        check_stages(stages)
        return stages

    def train(self) -> int:
        """The exit code: 0 at the plan's end, 130 after Ctrl-C, 143 after SIGTERM,
        1 where training had to stop."""
        stop = StopSignal(self.console)
        with self.directory.opened() as new, stop.installed():
            state, aside = TrainState(), None
            try:
                beginning = self._begin()
                state = beginning.state
                aside = self.directory.set_aside() if beginning.saved is None else None
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
        how = (self.settings, self.seed, self.compute, self.console.line)
        beginner = Beginner(self.directory, self.resolve(), *how)
        if saved is None:
            return beginner.fresh()
        return beginner.again(saved) if resets else beginner.resumed(saved)

    @contextlib.contextmanager
    def _running(self, beginning: Beginning, stop: StopSignal) -> Iterator[RunContext]:
        """The run's records and checkpoints, opened where the saved run left them."""
        directory, settings, saved = self.directory, self.settings, beginning.saved
        background = not self.compute.is_cpu
        checkpoints = Checkpoints(directory.checkpoints, keep=settings.keep, background=background)
        recorder = Recorder(
            directory.path,
            report_to=settings.report_to,
            offsets=saved.state['logs'] if saved is not None else None,
            run_name=directory.path.name,
            config=asdict(settings) | {'plan': self.plan.raw},
        )
        opened = (directory, recorder, checkpoints, self.console, stop)
        known = (beginning.state, beginning.record, beginning.data)
        try:
            yield RunContext(settings, self.seed, self.compute, *known, *opened)
        finally:
            checkpoints.close()
            recorder.close()

    def _train(self, run: RunContext, beginning: Beginning) -> int:
        stages = beginning.stages
        try:
            trainer = self._stages(run, beginning)
            self.console.close()
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
            previous, trainer = trainer, prepare_stage(run, stage, previous=trainer, resumed=resumed)
            if previous is None:
                write_down(beginning, run, plan=self.plan.raw)
            if resumed is not None:
                self.console.line(f'Resuming stage "{stage.name}" after {run.state.step:,} steps.')
            resumed = None  # later stages start from the one before
            self._train_stage(run, stage, trainer)
            if stage is not beginning.stages[-1]:
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
