"""A run: the stages of a plan in order, in one directory that can be continued."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict

from ..base.base_model import LMBase
from ..device import Compute, keep_freed_memory, reset_peak_memory, return_freed_memory
from ..errors import CheckpointError, UserError
from ..runs.checkpoint import read_state
from ..runs.checkpoints import Checkpoints
from ..runs.directory import RunDirectory
from ..runs.links import LAST, point
from ..runs.recorder import NoRecorder, Recorder
from .assemble import RunContext, prepare_stage
from .beginning import Beginner, Beginning, write_down
from .console import ConsoleReporter
from .cost import check_memory, time_left
from .finish import finish
from .parallel import check_shardable
from .plan import Plan
from .profiling import StepProfile
from .ranks import Ranks
from .readiness import check_stages
from .resolve import ResolvedStage, Settings, resolve
from .resume import SavedRun, find_saved
from .saving import StageCheckpoints
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
        """The exit code: 0 at the plan's end, 130 after Ctrl-C, 143 after SIGTERM,
        1 where training had to stop."""
        with self.ranks.connected(self.compute.device):
            return self._run(StopSignal(self.console))

    def _run(self, stop: StopSignal) -> int:
        with self._opened() as new, stop.installed():
            state, aside = TrainState(), None
            try:
                with self.ranks.in_turn():
                    beginning = self._begin()
                self._check_agreement(beginning)
                state = beginning.state
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

    def _opened(self) -> contextlib.AbstractContextManager[bool]:
        """The directory, which only rank 0 writes; see RunDirectory.opened."""
        return self.directory.opened() if self.ranks.first else contextlib.nullcontext(False)

    def _check_agreement(self, beginning: Beginning) -> None:
        """Raises UserError where ranks would begin at different points."""
        state = beginning.state
        first, *others = self.ranks.gathered((state.stage, state.step, state.samples, state.total_step))
        if any(other != first for other in others):
            raise UserError(
                f"Not all processes find the same checkpoint in '{self.directory.path}': --run-dir must be "
                'on a file system that all machines share.'
            )

    def _begin(self) -> Beginning:
        """What the run begins with, all of it checked before anything in its directory changes."""
        self.directory.complete_reset()
        saved = find_saved(self.directory.path, self.directory.checkpoints)
        resets = self.settings.reset_history and saved is not None and not saved.is_being_reset
        if saved is not None and not resets:
            saved.check(list(self.plan.stages), seed=self.seed)
        stages = self.resolve()
        if self.settings.parallel != 'ddp':
            for stage in stages:
                check_shardable(stage.settings, self.compute)
        left = stages[saved.train_state.stage if saved is not None and not resets else 0 :]
        check_memory(left, self.settings, self.compute, self.ranks.size)
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

    @contextlib.contextmanager
    def _running(self, beginning: Beginning, stop: StopSignal) -> Iterator[RunContext]:
        """The run's records and checkpoints, opened where the saved run left them."""
        directory, settings, saved = self.directory, self.settings, beginning.saved
        background = not self.compute.is_cpu
        checkpoints = Checkpoints(directory.checkpoints, keep=settings.keep, background=background)
        recorder = NoRecorder()
        if self.ranks.first:
            recorder = Recorder(
                directory.path,
                report_to=settings.report_to,
                # a resumed run's logs are cut back to where they were when its checkpoint was written
                offsets=saved.state['logs'] if saved is not None else None,
                run_name=directory.path.name,
                config=asdict(settings) | {'plan': self.plan.raw},
            )
        try:
            yield RunContext(
                settings,
                self.seed,
                self.compute,
                state=beginning.state,
                record=beginning.record,
                data=beginning.data,
                directory=directory,
                recorder=recorder,
                checkpoints=checkpoints,
                console=self.console,
                stop=stop,
                ranks=self.ranks,
            )
        finally:
            checkpoints.close()
            recorder.close()

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
                trainer.model = self._whole(stage)
            if stage is not beginning.stages[-1]:
                run.stop.check()  # after a signal in the stage's last step
        assert trainer is not None  # a plan has at least one stage
        return trainer

    def _whole(self, stage: ResolvedStage) -> LMBase:
        """The model at the end of a stage, of which each rank has trained a part."""
        last = self.directory.checkpoints / LAST
        return SavedRun(self.directory.path, last, read_state(last)).load_model(stage, self.compute.device)

    def _train_stage(self, run: RunContext, stage: ResolvedStage, trainer: Trainer) -> None:
        left = time_left(trainer)
        self.console.stage(stage, trainer.model, trainer.length, run.state, self.compute, left)
        with run.stop.waits_for_the_step():
            try:
                trainer.fit()
            except StopTraining:
                self._rescue(trainer.checkpoints)
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

    def _rescue(self, checkpoints: StageCheckpoints) -> None:
        """Where files of the run have been removed, saves it elsewhere. Raises CheckpointError then."""
        if (removed := checkpoints.removed()) is None:
            return
        first = str(self.directory.rescued().path) if self.ranks.first else ''
        elsewhere = RunDirectory(self.ranks.gathered(first)[0])
        checkpoints.rescue(elsewhere)
        raise CheckpointError(
            f"'{removed}' was removed from '{self.directory.path}' while the run was training, so the "
            f"run was stopped. Its records and weights are saved in '{elsewhere.path}'; to resume, give "
            'that as --run-dir.'
        )
