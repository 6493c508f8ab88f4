"""Runs a plan, stage after stage: builds or carries on the model, opens the data, trains, saves."""

import contextlib
import fcntl
import json
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..base.base_model import BasicModelRunner, LMBase
from ..base.runner_list import find_entry, find_runner
from ..device import amp_dtype, find_device, keep_freed_memory, peak_flops
from ..errors import CheckpointError, ExperimentError, PlanError, UserError
from ..runs.checkpoint import (
    OPTIMIZER,
    STATE,
    Checkpoints,
    find_checkpoint,
    load_model,
    load_optimizer,
    load_weights,
    point,
    read_state,
)
from ..runs.fingerprints import STAGES, record_stage, stage_facts
from ..runs.recorder import LOGS, Recorder
from ..tokenizers import Tokenizer, as_tokenizer, load_tokenizer
from .console import View
from .describe import check_runnable
from .evaluate import Evaluation
from .optimizer import make_optimizer, restore_moments
from .plan import Plan, Stage
from .stage_data import open_data, open_tokenizer, row_length
from .trainer import Progress, StopTraining, Trainer

log = logging.getLogger(__name__)


@dataclass
class Settings:
    """What a run is told beside its plan. overrides: stage keys from the command line; model: model parameters from there."""

    exp: str = 'gpt2ish'
    device: str = 'auto'
    amp: bool = False
    compile_model: bool | None = None  # None: where it pays within the run
    seed: int | None = None
    run_dir: str = ''
    report_to: list[str] = field(default_factory=list)
    reset_history: bool = False
    initial_model: str | None = None
    ignore_optimizer: bool = False
    default_freeze: bool = False
    check_grads: bool = False
    keep: int = 2
    overrides: dict = field(default_factory=dict)
    model: dict = field(default_factory=dict)


class Run:
    """One run directory and all that happens in it. `train()` runs the plan from where it stands to its end."""

    def __init__(self, plan: Plan, settings: Settings, *, view: View):
        self.plan, self.settings, self.view = plan, settings, view
        self.device = find_device(settings.device)
        self.amp_dtype = amp_dtype(self.device, settings.amp)
        self.peak_flops = peak_flops(self.device, self.amp_dtype)
        self.seed = settings.seed if settings.seed is not None else plan.seed
        self.dir = Path(settings.run_dir)
        self.checkpoints = self.dir / 'checkpoints'
        self.saver = Checkpoints(self.checkpoints, keep=settings.keep, background=self.device.type != 'cpu')
        self.progress = Progress()
        self.stop_signal: int | None = None
        self.training = False  # whether there is a step to wait for
        self.evaluation: Evaluation | None = None
        self.recorder: Recorder  # while it trains
        self.runner: BasicModelRunner  # of the stage at hand
        self.exp = ''
        keep_freed_memory()
        if self.device.type == 'cuda' and self.amp_dtype is not None:
            torch.set_float32_matmul_precision(
                'high'
            )  # TF32 for the little that mixed precision leaves in fp32

    # ---- the model

    def runner_of(self, exp: str, stage_model: dict, tokenizer: Tokenizer | None) -> BasicModelRunner:
        """A version's runner with its parameters resolved: version < plan < stage < command line."""
        registered = find_runner(exp)
        parameters = self.plan.model | stage_model | self.settings.model
        if tokenizer is not None and 'tokenizer' not in parameters:
            if 'tokenizer' not in registered.function().declared:
                own = as_tokenizer(registered.function(**parameters).build('meta').tokenizer)
                if own.fingerprint != tokenizer.fingerprint:
                    raise PlanError(
                        f"{self.plan.where}: the plan's tokenizer is {tokenizer.name}, but experiment '{exp}' always uses "
                        f"{own.name}: give its model a parameter `tokenizer`, or leave the plan's out."
                    )
            else:
                parameters = parameters | {'tokenizer': tokenizer}
        return registered.function(**parameters)

    def overridden(self, index: int) -> dict:
        """What a stage's version sets of its model and the plan sets otherwise: parameter -> (the version's, the plan's)."""
        own = find_runner(self.stage_exp(index)).function().given
        plan = self.plan.model | self.stage(index).model
        return {
            k: (own[k], v)
            for k, v in plan.items()
            if k in own and own[k] != v and k not in self.settings.model
        }

    def check_stages(self, tokenizer: Tokenizer | None) -> list[LMBase]:
        """The models of all stages, on the meta device. Raises UserError for a model, a row length or a start that a later stage could
        not have, before the first one trains."""
        models: dict[str, LMBase] = {}
        for i, name in enumerate(self.plan.stages):
            stage = self.stage(i)
            try:
                model = self.runner_of(self.stage_exp(i), stage.model, tokenizer).build('meta')
            except UserError as error:
                raise type(error)(f'Stage "{name}": {error}') from error
            row_length(stage, model.max_len)
            earlier = (
                next(reversed(models.values()), None)
                if stage.init_from == 'previous'
                else models.get(stage.init_from.removeprefix('stage:'))
            )
            if earlier is not None and not (hasattr(model, 'import_pretrained') or _alike(earlier, model)):
                raise _no_start(self.stage_exp(i), earlier.name)
            models[name] = model
        return list(models.values())

    def flops_per_token(self, length: int) -> float:
        """Training FLOPs per token of the run's model in rows of that length."""
        return self.runner.build('meta').training_flops_per_token(length)

    def stage_exp(self, index: int) -> str:
        """The experiment that a stage trains: its own, or the one before it, or the run's."""
        for i in range(index, -1, -1):
            if list(self.plan.stages.values())[i].get('exp'):
                return list(self.plan.stages.values())[i]['exp']
        return self.settings.exp

    def stage(self, index: int) -> Stage:
        version = find_runner(self.stage_exp(index)).function().training
        if index > 0:
            version = {
                k: v for k, v in version.items() if k != 'init_from'
            }  # of later stages the plan decides
        return self.plan.stage(index, version, self.settings.overrides)

    def build(self, index: int, stage: Stage, previous: LMBase | None, tokenizer: Tokenizer | None) -> LMBase:
        """The model that stage `index` begins with."""
        self.exp = self.stage_exp(index)
        self.runner = self.runner_of(self.exp, stage.model, tokenizer)
        torch.manual_seed(self.seed)
        source = (
            self.settings.initial_model if index == 0 and self.settings.initial_model else stage.init_from
        )
        if (
            source == 'previous'
            and previous is not None
            and self.stage_exp(index - 1) == self.exp
            and not stage.model
        ):
            return previous
        model = self.runner.build(self.device)
        if source == 'previous':
            source = previous
        elif source.startswith('stage:'):
            source = self.checkpoints / f'stage-{source.removeprefix("stage:")}'
        if source is not None and source != 'scratch':
            self._warm_start(model, source)
        if self.settings.default_freeze:
            _freeze_all_but_marked(model)
        return model

    def _warm_start(self, model: LMBase, source) -> None:
        if isinstance(source, (str, Path)) and not str(source).startswith('pretrained:'):
            path = Path(source)
            if (path / 'config.json').is_file():  # a folder in Hugging Face's format
                source = str(path)
            else:
                folder = find_checkpoint(path, prefer='best')
                state = read_state(folder)
                if find_runner(state['exp_file'] or state['exp']).function().model_class is type(model):
                    try:
                        load_weights(model, folder)
                        self.event('warm_start', f'weights from {folder}')
                        return
                    except CheckpointError:
                        if not hasattr(model, 'import_pretrained'):
                            raise
                source, _ = load_model(folder)
        if not hasattr(model, 'import_pretrained'):
            if isinstance(source, LMBase) and _alike(source, model):
                model.load_state_dict(source.state_dict())
                return
            raise _no_start(self.exp, source.name if isinstance(source, LMBase) else source)
        warm_start: Callable = getattr(model, 'import_pretrained')  # noqa: B009
        for line in warm_start(source) or []:
            self.event('warm_start', line)
        model.to(self.device)

    # ---- saving and resuming

    def event(self, name: str, message: str) -> None:
        self.recorder.event(
            {
                'event': name,
                'stage': list(self.plan.stages)[self.progress.stage],
                'step': self.progress.total_step,
                'samples': self.progress.total_samples,
                'tokens': self.progress.tokens,
                'message': message,
            }
        )
        self.view.line(message)

    def state(self, model: LMBase) -> dict:
        """What state.json of a checkpoint holds."""
        tokenizer = as_tokenizer(model.tokenizer)
        entry = find_entry(self.exp)
        parameters = {k: v for k, v in self.runner.given.items() if k not in ('tokenizer', 'version')}
        return {
            'exp': entry.name,
            'exp_file': f'{Path(entry.file).resolve()}:{entry.name}'
            if entry.module.endswith('.py')
            else None,
            'model': model.name,
            'parameters': parameters,
            'hyperparameters': model.hyperparameters,
            'tokenizer': {'name': tokenizer.name, 'fingerprint': tokenizer.fingerprint},
            'seed': self.seed,
            'stage': list(self.plan.stages)[self.progress.stage],
            'progress': self.progress.to_dict(),
            'logs': self.recorder.offsets(),
        }

    def save(self, model: LMBase, optimizer, scaler=None, *, link: str | None = None) -> None:
        """Writes a checkpoint of now, and lets `last` (and `best`, if it is) name it."""
        p = self.progress
        best = p.best_loss is not None and p.validation_loss == p.best_loss and not p.best_is_saved
        p.best_is_saved = p.best_is_saved or best
        states = {'optimizer': optimizer.state_dict(), 'scaler': scaler.state_dict() if scaler else {}}
        links = [
            *(['best'] if best else []),
            *([link] if link else []),
            'last',
        ]  # `last` last: resuming trusts it
        self.saver.save(p.total_step, model, states, self.state(model), links)

    def _resume(self) -> dict | None:
        """The state of the run's last checkpoint, or None where there is none to go on from."""
        last = self.checkpoints / 'last'
        if (last / STATE).is_file():
            return read_state(last)
        # A run killed in its first save may leave one step without `last`; more of them mean that `last` got lost (links not copied).
        if last.is_symlink() or len({f.name[:13] for f in self.checkpoints.glob('step-*')}) > 1:
            raise CheckpointError(
                f"The run in '{self.dir}' has no usable checkpoint '{last}': it names none that is whole. Let it name one of the others "
                f"(ln -sfn step-... '{last}'), or use another --run-dir."
            )
        return None

    # ---- the run

    def train(self) -> int:
        """Trains to the plan's end; the exit code: 0, 130 after Ctrl-C, 143 after SIGTERM, 1 where training had to stop."""
        try:
            new = _make(self.dir)
            lock = open(self.dir / '.lock', 'w')  # noqa: SIM115  held as long as the run
        except OSError as error:
            raise UserError(f"Can't write the run directory '{self.dir}': {error.strerror}.") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Another process is training in '{self.dir}'. Wait for it, or give this run another --run-dir."
            ) from None
        with lock:
            try:
                return self._train()
            except UserError:
                if new and not self.progress.total_step:
                    self._take_back()
                raise

    def _take_back(self) -> None:
        """After a start that failed: removes what it wrote into its new directory and, unless others put something there, that."""
        for name in ('.lock', 'settings.json', 'plan.json', 'environment.json', STAGES, *LOGS):
            (self.dir / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.dir.rmdir()

    def _train(self) -> int:
        state = self._resume()
        keep_weights = state is not None and self.settings.reset_history
        history = None if keep_weights else state
        if keep_weights:
            for link in self.checkpoints.iterdir():
                if link.is_symlink() and link.name != 'last':
                    link.unlink()  # of the history that is forgotten
        if history is not None:
            self.progress = Progress(**history['progress'])
            if history['seed'] != self.seed:
                raise CheckpointError(
                    f"The run in '{self.dir}' was begun with seed {history['seed']}; given: {self.seed}. Use another --run-dir."
                )
            if history['stage'] not in list(self.plan.stages)[self.progress.stage : self.progress.stage + 1]:
                raise CheckpointError(
                    f"The run in '{self.dir}' is in its stage {self.progress.stage + 1}, \"{history['stage']}\", and this plan's stages are "
                    f'{", ".join(self.plan.stages)}. Use another --run-dir, or --reset-history to begin this plan with its weights.'
                )
        tokenizer = open_tokenizer(self.plan, self.view.line)
        self.check_stages(tokenizer)
        self.recorder = Recorder(
            self.dir,
            report_to=self.settings.report_to,
            offsets=history['logs'] if history is not None else None,
            run_name=self.dir.name,
            config=asdict(self.settings) | {'plan': self.plan.raw},
        )
        handlers = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._write_settings()
            model, optimizer = None, None
            for index in range(self.progress.stage, len(self.plan.stages)):
                resuming = history is not None and index == history['progress']['stage']
                model, optimizer = self._stage(
                    index,
                    model,
                    optimizer,
                    tokenizer,
                    resuming=resuming,
                    weights_only=keep_weights and index == 0,
                )
            self.view.close()
            from .finish import finish

            assert model is not None  # a plan has at least one stage
            finish(self, model)
            return 0
        except StopTraining as stop:
            self.view.close()
            if self.stop_signal is None:
                self.event('stopped', f'Stopped: {stop}.')
            self.view.line(
                f"State saved in '{self.checkpoints / 'last'}'; the same command goes on from there."
            )
            return 128 + self.stop_signal if self.stop_signal else 1
        except KeyboardInterrupt:
            if self.training or self.stop_signal is None:
                raise
            self.view.close()
            self.view.line('Stopped; the same command goes on.')
            return 128 + self.stop_signal
        finally:
            self.saver.close()
            self.recorder.close()
            for s, handler in handlers.items():
                signal.signal(s, handler)

    def _stage(
        self,
        index: int,
        previous: LMBase | None,
        optimizer,
        tokenizer: Tokenizer | None,
        *,
        resuming: bool,
        weights_only: bool,
    ):
        stage = self.stage(index)
        p = self.progress
        if not resuming:
            p.stage, p.step, p.samples, p.mini_batch_size, p.stage_seconds, p.first_seconds = (
                index,
                0,
                0,
                0,
                0.0,
                0.0,
            )
            p.validation_loss = p.best_loss = None  # another stage may be evaluated on other text
        if resuming or weights_only:
            self.exp = self.stage_exp(index)
            self.runner = self.runner_of(self.exp, stage.model, tokenizer)
            model = self.runner.build(self.device)
            saved = read_state(self.checkpoints / 'last')['tokenizer']
            if 'tokenizer' in self.runner.declared and 'tokenizer' not in self.runner.given:
                model.tokenizer = load_tokenizer(
                    saved['name'], self.checkpoints / 'last'
                )  # imported weights may have brought it
            if saved['fingerprint'] != as_tokenizer(model.tokenizer).fingerprint:
                raise CheckpointError(
                    f"The run in '{self.dir}' was trained with another tokenizer ({saved['name']}). Use another --run-dir."
                )
            self._check_same_model(model)
            try:
                load_weights(model, self.checkpoints / 'last')
            except CheckpointError as error:
                raise CheckpointError(f'{error} Use another --run-dir for this model.') from error
            if self.settings.default_freeze:
                _freeze_all_but_marked(model)
        else:
            model = self.build(index, stage, previous, tokenizer)
        check_runnable(model)
        if lost := self.overridden(index):
            self.view.line(
                f'Stage "{stage.name}": the plan sets '
                + ', '.join(f'{k} {v} ({own} in {self.exp})' for k, (own, v) in lost.items())
                + '.'
            )
        data = open_data(
            stage,
            self.plan,
            as_tokenizer(model.tokenizer),
            max_len=model.max_len,
            seed=self.seed,
            progress=self.view.line,
        )
        carried = optimizer.state_dict() if optimizer is not None and model is previous else None
        same_kind = index > 0 and self.stage(index - 1).optimizer == stage.optimizer
        optimizer = make_optimizer(model, stage)
        scaler_state = {}
        if (
            (resuming or weights_only)
            and not self.settings.ignore_optimizer
            and (self.checkpoints / 'last' / OPTIMIZER).is_file()
        ):
            states = load_optimizer(self.checkpoints / 'last')
            scaler_state = states['scaler']
            restore_moments(optimizer, states['optimizer'])
        elif carried is not None and same_kind and not self.settings.ignore_optimizer:
            restore_moments(optimizer, carried)
        if resuming:
            of = f' of {data.steps:,}' if data.steps else f', {p.stage_seconds:.0f} of {data.seconds:g} s'
            self.view.line(f'Resuming stage "{stage.name}" at step {p.step:,}{of}.')
        record_stage(
            self.dir, stage.name, stage_facts(stage, data, model, exp=find_entry(self.exp).name), index=index
        )
        self.view.stage(stage, data, model, self)
        trainer = Trainer(self, model, optimizer, stage, data)
        if scaler_state:
            trainer.scaler.load_state_dict(scaler_state)
        self.training = True
        try:
            trainer.train()
        except StopTraining:
            self.save(model, optimizer, trainer.scaler)
            self.saver.wait()
            raise
        self.saver.wait()
        self.training = False
        if self.evaluation is None:
            trainer.evaluate()  # killed after the stage's last checkpoint
        if self.settings.check_grads:
            self.view.gradients(model)
        point(self.checkpoints / f'stage-{stage.name}', (self.checkpoints / 'last').resolve())
        self.save_held_out(stage.name)
        return model, optimizer

    def _check_same_model(self, model: LMBase) -> None:
        """Refuses to go on as another model that happens to have weights of the same shapes."""
        saved = read_state(self.checkpoints / 'last')['hyperparameters']
        own = json.loads(json.dumps(model.hyperparameters, default=str))
        changed = [
            f'{k} was {saved.get(k)!r} and is {own.get(k)!r}'
            for k in {**saved, **own}
            if saved.get(k) != own.get(k)
        ]
        if changed:
            raise CheckpointError(
                f"The run in '{self.dir}' is of another architecture: {'; '.join(changed)}. Use another --run-dir for this model."
            )

    def save_held_out(self, stage: str) -> None:
        """The held-out losses by document at a stage's end, for paired comparisons between runs."""
        if self.evaluation is not None:
            temporary = self.dir / f'.held_out-{stage}.npz'
            np.savez_compressed(temporary, allow_pickle=False, **self.evaluation.documents)
            os.replace(temporary, self.dir / f'held_out-{stage}.npz')

    def _write_settings(self) -> None:
        from ..runs.environment import environment

        files = {
            'settings.json': asdict(self.settings)
            | {
                'seed': self.seed,
                'stages': [self.stage(i).model_dump() for i in range(len(self.plan.stages))],
            },
            'plan.json': self.plan.raw,
            'environment.json': environment(),
        }
        self._tell_changes(files['settings.json'])
        for name, content in files.items():
            temporary = self.dir / f'.{name}'
            temporary.write_text(json.dumps(content, indent=1, default=str))
            os.replace(temporary, self.dir / name)

    def _tell_changes(self, settings: dict) -> None:
        """Records what a resumed run does otherwise than before."""
        try:
            before = json.loads((self.dir / 'settings.json').read_text())['stages']
        except (OSError, ValueError, KeyError, TypeError):
            return
        now = json.loads(json.dumps(settings['stages'], default=str))
        if self.progress.total_step:
            for old, new in list(zip(before, now))[self.progress.stage :]:
                changed = [f'{k} from {old.get(k)} to {v}' for k, v in new.items() if old.get(k) != v]
                if changed:
                    self.event(
                        'settings',
                        f'Stage "{new["name"]}" goes on with other settings: {", ".join(changed)}.',
                    )

    def _on_signal(self, number, _frame) -> None:
        again, self.stop_signal = self.stop_signal is not None, int(number)
        if again or not self.training:
            raise KeyboardInterrupt
        self.view.line('Stopping after this step; once more to stop at once.')


def _make(folder: Path) -> bool:
    """Makes a directory where there is none; whether it did."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():
            raise
        return False
    return True


def _alike(a: LMBase, b: LMBase) -> bool:
    """Whether one can take the other's weights as they are."""
    shapes = ({k: v.shape for k, v in model.state_dict().items()} for model in (a, b))
    return type(a) is type(b) and next(shapes) == next(shapes)


def _no_start(exp: str, source) -> ExperimentError:
    return ExperimentError(
        f"Experiment '{exp}' can't start from {source}: its model has no import_pretrained, and the architectures differ."
    )


def _freeze_all_but_marked(model: LMBase) -> None:
    """--default-freeze: only what has `freeze = False`, on itself or on a module around it, trains."""
    free = {id(p) for m in model.modules() if getattr(m, 'freeze', None) is False for p in m.parameters()}
    for p in model.parameters():
        p.requires_grad_(id(p) in free or getattr(p, 'freeze', None) is False)
