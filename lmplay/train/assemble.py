"""Puts a stage's trainer together: model, weights, data, optimizer, length."""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..base.base_model import LMBase
from ..base.runner_list import find_entry
from ..checks import require_experiment
from ..device import Compute, compiling_pays, expected_seconds, measured_flops
from ..modules.matmul import speed_up_linears
from ..runs.checkpoint import load_optimizer
from ..runs.checkpoints import Checkpoints
from ..runs.directory import RunDirectory
from ..runs.fingerprints import fingerprints, model_facts
from ..runs.links import LAST
from ..runs.recorder import NoRecorder, Recorder
from ..tokenizers import Tokenizer, as_tokenizer
from .console import ConsoleReporter
from .cost import first_mini_batch
from .evaluate import Evaluator
from .length import SampleLength, StageLength, TimeLength, stage_length
from .loader import Loader
from .objective import Objective
from .optimizer import Optimizer, make_optimizer, parameter_groups, restore_moments, unfinished_warmup
from .parallel import Engine
from .plan import Stage
from .ranks import Ranks
from .record import data_record
from .resolve import ResolvedStage, Settings
from .resume import SavedRun
from .saving import StageCheckpoints
from .stage_data import StageData, open_data
from .state import TrainState
from .stopping import StopSignal
from .trainer import Trainer
from .warm_start import freeze_all_but_marked, starting_model

# steps between logging points where reading a number waits for the device; on a CPU every step is one
LOG_EVERY = 10


@dataclass(frozen=True)
class RunContext:
    """What all stages of a run share.

    record  what every checkpoint of it records (record.py)
    data    of the stages that are still to come, by their numbers
    """

    settings: Settings
    seed: int
    compute: Compute
    state: TrainState
    record: dict[str, Any]
    data: dict[int, StageData]
    directory: RunDirectory
    recorder: Recorder | NoRecorder
    checkpoints: Checkpoints
    console: ConsoleReporter
    stop: StopSignal
    ranks: Ranks

    @property
    def sharded(self) -> bool:
        """Whether each rank keeps a part of the model."""
        return self.settings.parallel != 'ddp' and not self.ranks.alone

    def event(self, name: str, stage: str, message: str) -> None:
        """Something worth a line in the records and on the screen."""
        self.recorder.event({'event': name, 'stage': stage} | self.state.where() | {'message': message})
        self.console.line(message)


@contextlib.contextmanager
def opened_run(
    settings: Settings,
    *,
    directory: RunDirectory,
    ranks: Ranks,
    compute: Compute,
    offsets: dict[str, int] | None,
    config: dict[str, Any],
    **shared: Any,
) -> Iterator[RunContext]:
    """The context of a run, with its records and checkpoints open.

    offsets: where the logs of a resumed run end; config: what trackers are told; shared: as of RunContext.
    """
    checkpoints = Checkpoints(directory.checkpoints, keep=settings.keep, background=not compute.is_cpu)
    recorder = NoRecorder()
    if ranks.first:
        recorder = Recorder(
            directory.path,
            report_to=settings.report_to,
            offsets=offsets,
            run_name=directory.path.name,
            config=config,
        )
    own = dict(directory=directory, recorder=recorder, checkpoints=checkpoints, ranks=ranks)
    try:
        yield RunContext(settings=settings, compute=compute, **own, **shared)
    finally:
        checkpoints.close()
        recorder.close()


def prepare_stage(
    run: RunContext,
    stage: ResolvedStage,
    *,
    previous: Trainer | None = None,
    resumed: tuple[SavedRun, LMBase] | None = None,
) -> Trainer:
    """The trainer of a stage.

    previous: of the stage before, in this process; resumed: the checkpoint to continue from, and its model.

    Raises UserError where the weights do not fit, the model breaks the contract, or the data can't be opened.
    """
    model = resumed[1] if resumed is not None else _first_model(run, stage, previous)
    if run.settings.default_freeze:
        freeze_all_but_marked(model)
    device, document_mask = run.compute.device, stage.settings.document_mask
    require_experiment(model, stage.exp, stage.runner, device=device, document_mask=document_mask)
    _tell_what_is_unusual(run, stage, model)
    tokenizer = as_tokenizer(model.tokenizer)
    data = _data(run, stage, tokenizer)
    prints = fingerprints(stage.name, data.mixture, data.held_out, tokenizer)
    moments = None if run.settings.ignore_optimizer else _moments(run, stage, model, previous, resumed)
    record = run.record | data_record(stage, data, prints)
    trainer = _trainer(run, stage, model, data, moments, checkpoint_header(stage, model, run.seed, record))
    if note := unfinished_warmup(stage.settings, trainer.length.total_steps(run.state)):
        run.event('schedule', stage.name, note)
    if run.ranks.first:
        facts = _facts(stage, model, data, trainer.length) | {'fingerprints': prints}
        run.directory.record_stage(stage.name, facts, index=stage.index)
    return trainer


def _facts(stage: ResolvedStage, model: LMBase, data: StageData, length: StageLength) -> dict[str, Any]:
    """What stages.json says of a stage, but for its fingerprints."""
    counted = isinstance(length, SampleLength)
    return model_facts(model, exp=stage.entry_name) | {
        'row_length': stage.row_length,
        'samples': length.samples if counted else None,
        'steps': length.steps if counted else None,
        'not_applied': stage.lacking,
        'held_out': data.held_out.counts(),
    }


def _first_model(run: RunContext, stage: ResolvedStage, previous: Trainer | None) -> LMBase:
    return starting_model(
        stage,
        previous.model if previous is not None else None,
        device=run.compute.device,
        seed=run.seed,
        checkpoints=run.directory.checkpoints,
        tell=lambda line: run.event('warm_start', stage.name, line),
    )


def _data(run: RunContext, stage: ResolvedStage, tokenizer: Tokenizer) -> StageData:
    """The stage's data as it was opened before the run began; again where imported weights have brought
    another tokenizer."""
    data = run.data.pop(stage.index, None)
    if data is not None and data.mixture.sources[0].store.meta['tokenizer'] == tokenizer.fingerprint:
        return data
    return open_data(stage, tokenizer, seed=run.seed, progress=run.console.line)


def _moments(
    run: RunContext,
    stage: ResolvedStage,
    model: LMBase,
    previous: Trainer | None,
    resumed: tuple[SavedRun, LMBase] | None,
) -> dict | None:
    """States of optimizer and gradient scaler to continue with;
    carried over where model and optimizer stay the same."""
    if resumed is not None:
        return resumed[0].load_optimizer()
    if (
        previous is None
        or model is not previous.model
        or previous.stage.optimizer != stage.settings.optimizer
    ):
        return None
    if run.sharded:  # whole in the last checkpoint alone
        return load_optimizer(run.directory.checkpoints / LAST) | {'scaler': {}}
    return {'optimizer': previous.optimizer.state_dict(), 'scaler': {}}


def _flops_per_token(stage: ResolvedStage, model: LMBase) -> float:
    """Counted on a copy of a small model, else on the meta device, which costs no arithmetic but imports
    torch's compiler."""
    if 2 * model.total_parameters() * stage.row_length < 5e10:  # half a second on a slow CPU
        return copy.deepcopy(model).training_flops_per_token(stage.row_length)
    return stage.flops_per_token


def _tell_what_is_unusual(run: RunContext, stage: ResolvedStage, model: LMBase) -> None:
    for note in stage.notes:
        run.console.line(note)
    if not model.causal:
        run.console.line(
            f'Stage "{stage.name}": {model.name} declares itself non-causal. Its loss is not a next-token '
            'loss, and it is never ranked against causal models.'
        )


def _optimizer(
    engine: Engine, groups: list[dict], settings: Stage, compute: Compute, moments: dict | None
) -> tuple[Optimizer, torch.amp.GradScaler]:
    """The optimizer and the scale of the loss, as they were saved where `moments` are given."""
    optimizer = make_optimizer(engine.objective.model, settings, engine.placed(groups))
    scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.dtype is torch.float16)
    if moments is not None:
        restore_moments(optimizer, engine.placed_moments(moments['optimizer'], optimizer))
        if moments['scaler']:
            scaler.load_state_dict(moments['scaler'])
    return optimizer, scaler


def _trainer(
    run: RunContext,
    stage: ResolvedStage,
    model: LMBase,
    data: StageData,
    moments: dict | None,
    header: dict[str, Any],
) -> Trainer:
    settings, compute, state, ranks = stage.settings, run.compute, run.state, run.ranks
    if compute.is_cpu and compute.dtype is None:
        speed_up_linears(model)
    flops_per_token = _flops_per_token(stage, model)
    step_flops = flops_per_token * settings.batch_size * data.mixture.tokens_per_row
    length = _length(stage, data, state, compute, step_flops / ranks.size, ranks)
    objective = _objective(run, settings, model, length, step_flops / ranks.size)
    groups = parameter_groups(model, settings)
    engine = Engine(objective, ranks, kind=run.settings.parallel, compute=compute)
    optimizer, scaler = _optimizer(engine, groups, settings, compute, moments)
    if not state.mini_batch_size or settings.mini_batch_size != 'auto':
        state.mini_batch_size = first_mini_batch(stage, compute, ranks.size)  # else what "auto" settled on
    return Trainer(
        model=model,
        optimizer=optimizer,
        scaler=scaler,
        stage=settings,
        seed=run.seed,
        loader=Loader(data.mixture, pin=compute.device.type == 'cuda', ranks=ranks),
        length=length,
        state=state,
        engine=engine,
        evaluator=Evaluator(data.held_out, compute, data.padding_scored),
        compute=compute,
        flops_per_token=flops_per_token,
        recorder=run.recorder,
        console=run.console,
        checkpoints=StageCheckpoints(
            run.checkpoints, header, model, optimizer, scaler, state, run.recorder, ranks, run.sharded
        ),
        stop=run.stop,
    )


def _length(
    stage: ResolvedStage,
    data: StageData,
    state: TrainState,
    compute: Compute,
    step_flops: float,
    ranks: Ranks,
) -> SampleLength | TimeLength:
    """step_flops: of each rank."""
    log_every = 1 if compute.is_cpu else LOG_EVERY
    if stage.settings.seconds is None:
        return stage_length(stage.settings, data.mixture, log_every=log_every)
    # How many steps fit, until two have been timed: at half the speed of a matrix product.
    fit = round(stage.settings.seconds * 0.5 * measured_flops(compute.device, compute.dtype) / step_flops)
    guess, elapsed = int(ranks.largest(max(2, fit))[0]), state.stage_seconds
    return stage_length(stage.settings, data.mixture, log_every=log_every, first_guess=guess, elapsed=elapsed)


def _objective(
    run: RunContext, settings: Stage, model: LMBase, length: SampleLength | TimeLength, step_flops: float
) -> Objective:
    """step_flops: of each rank."""
    objective = Objective(model, document_mask=settings.document_mask)
    if _compiles(run.settings.compile_model, run.compute, length, step_flops):
        objective.compile_pass(dynamic=False if settings.packing == 'pack' else None)
    return objective


def _compiles(
    wanted: bool | None, compute: Compute, length: SampleLength | TimeLength, step_flops: float
) -> bool:
    if wanted is not None:
        return wanted
    if isinstance(length, TimeLength):
        return compiling_pays(compute.device, length.seconds)
    return compiling_pays(compute.device, expected_seconds(compute.device, step_flops * length.steps))


def checkpoint_header(
    stage: ResolvedStage, model: LMBase, seed: int, record: dict[str, Any]
) -> dict[str, Any]:
    """What state.json of a checkpoint says of the run, but for how far it is."""
    tokenizer = as_tokenizer(model.tokenizer)
    entry = find_entry(stage.exp)
    by_path = entry.module.endswith('.py')
    return {
        'exp': entry.name,
        'exp_file': f'{Path(entry.file).resolve()}:{entry.name}' if by_path else None,
        'model': model.name,
        'parameters': {k: v for k, v in stage.runner.given.items() if k not in ('tokenizer', 'version')},
        'hyperparameters': model.hyperparameters,
        'tokenizer': {'name': tokenizer.name, 'fingerprint': tokenizer.fingerprint},
        'seed': seed,
        'stage': stage.name,
        'record': record,
    }
