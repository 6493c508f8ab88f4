"""What a plan's stages need, checked before the first step: models, starts, data."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..base.base_model import LMBase
from ..checks import require_contract, require_document_mask
from ..device import Compute
from ..errors import ExperimentError, UserError
from ..tokenizers import as_tokenizer
from .cost import check_memory
from .parallel import check_shardable
from .resolve import ResolvedStage, Settings
from .stage_data import StageData, check_held_apart, open_data
from .warm_start import warm_start

LARGE = 5 * 10**7  # parameters of a model that is checked when its stage begins, for the sake of memory
Start = Callable[[str], LMBase] | str | Path  # a model on a device, or what `warm_start` reads


def check_stages(stages: Sequence[ResolvedStage]) -> None:
    """Raises UserError for a model, a sequence length, or a start from an earlier stage,
    that a stage could not have."""
    for stage in stages:
        try:
            _ = stage.skeleton
        except UserError as error:
            raise type(error)(f'Stage "{stage.name}": {error}') from error
        _ = stage.row_length
        if stage.index and not stage.continues:
            check_model(stage)
        earlier = _earlier(stage, stages)
        if earlier is None or stage.continues:
            continue
        if not stage.skeleton.can_start_from(earlier.skeleton):
            raise ExperimentError(
                f'Stage "{stage.name}": experiment \'{stage.exp}\' cannot start from '
                f'{earlier.skeleton.name}: its model defines no import_pretrained, and the architectures '
                'differ.'
            )
        _try_start(stage, earlier.runner.build)


def check_means(
    stages: Sequence[ResolvedStage],
    left: Sequence[ResolvedStage],
    settings: Settings,
    compute: Compute,
    ranks: int,
) -> None:
    """Raises UserError for stages that cannot be trained in the way that was asked for, or, of those that are
    left, in the memory that there is."""
    if settings.parallel != 'ddp':
        for stage in stages:
            check_shardable(stage.settings, compute)
    check_memory(left, settings, compute, ranks)


def check_model(stage: ResolvedStage) -> None:
    """Raises ExperimentError where the stage's model, unless it is large, breaks the contract."""
    if stage.skeleton.total_parameters() > LARGE:
        return
    with torch.random.fork_rng(devices=[]):
        try:
            require_contract(model := stage.runner.build(), stage.runner.build)
            if stage.settings.document_mask:
                require_document_mask(model)
        except ExperimentError as error:
            raise ExperimentError(f'Stage "{stage.name}": {error}') from error


def check_starts(stages: Sequence[ResolvedStage], *, first: int, over: int, checkpoints: Path) -> None:
    """Raises UserError where a stage from number `first` on cannot start from the weights that it names.

    They are read, fetched if need be, and tried on a model that is then dropped. Of the first `over` stages,
    which are over, the checkpoint is tried; starts from others are for `check_stages`.
    """
    for stage in stages[first:]:
        earlier = _earlier(stage, stages)
        if earlier is None and stage.init_from not in ('previous', 'scratch'):
            _try_start(stage, stage.init_from)
        elif earlier is not None and stage.init_from != 'previous' and earlier.index < over:
            _try_start(stage, checkpoints / f'stage-{earlier.name}')


def open_stages(
    stages: Sequence[ResolvedStage], *, first: int, seed: int, progress: Callable[[str], None]
) -> dict[int, StageData]:
    """Number -> data of each stage from `first` on, read and tokenized where that was not done before.

    Raises UserError for data that a stage could not be trained on, and for held-out text that a stage before
    it, whose weights it takes over, has trained on.
    """
    opened = {}
    for stage in stages[first:]:
        try:
            opened[stage.index] = open_data(
                stage, as_tokenizer(stage.skeleton.tokenizer), seed=seed, progress=progress
            )
            before = _earlier(stage, stages)
            while before is not None and before.index in opened:
                where = f'in stage "{before.name}"'
                if told := check_held_apart(opened[stage.index], opened[before.index], where):
                    progress(f'Stage "{stage.name}": {told}.')
                before = _earlier(before, stages)
        except UserError as error:
            raise type(error)(f'Stage "{stage.name}": {error}') from error
    return opened


def _earlier(stage: ResolvedStage, stages: Sequence[ResolvedStage]) -> ResolvedStage | None:
    """The stage that this one starts from; None where it starts from none."""
    if stage.init_from == 'previous':
        return stages[stage.index - 1] if stage.index else None
    name = stage.init_from.removeprefix('stage:')
    named = (other for other in stages[: stage.index] if other.name == name)
    return next(named, None) if stage.init_from.startswith('stage:') else None


def _try_start(stage: ResolvedStage, source: Start) -> None:
    """Starts a model of the stage from `source`.

    On the meta device, without weights, where its import can do that; else with weights, on the CPU. Raises
    UserError where it fails.
    """
    for device in ('meta', 'cpu'):
        try:
            model = stage.runner.build(device)
            with warnings.catch_warnings():  # that weights don't get onto the meta device is what is wanted
                warnings.filterwarnings('ignore', '.*copying from a non-meta parameter')
                warm_start(model, source(device) if callable(source) else source)
            return
        except UserError as error:
            raise type(error)(f'Stage "{stage.name}": {error}') from error
        except Exception as error:  # noqa: BLE001  an experiment's own import may raise anything
            failure = error
    reason = ' '.join(f'{type(failure).__name__}: {failure}'.split())[:300].rstrip('.')
    raise ExperimentError(
        f'Stage "{stage.name}": experiment \'{stage.exp}\' cannot start from the weights it names: its '
        f'import_pretrained raised {reason}.'
    ) from failure
