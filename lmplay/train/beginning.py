"""What a run begins with: from scratch, from its last checkpoint, or again from that one's weights."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..base.base_model import LMBase
from ..base.runner_list import find_entry
from ..device import Compute
from ..errors import UserError
from ..runs.directory import SETTINGS, RunDirectory
from ..runs.environment import environment
from ..runs.fingerprints import fingerprints
from ..runs.source import keep_source
from ..tokenizers import as_tokenizer
from .assemble import RunContext, checkpoint_header
from .ranks import Ranks
from .readiness import check_starts, open_stages
from .record import as_trained, changes, data_record, differs, require_same, run_record
from .resolve import ResolvedStage, Settings
from .resume import SavedRun, start_history_again
from .stage_data import StageData, open_data
from .state import TrainState


@dataclass(frozen=True)
class Beginning:
    """A run that is about to train.

    record   what each of its checkpoints records (record.py)
    data     of its stages, by their numbers
    saved    the checkpoint that it continues, and `model`, the model of that
    changes  (event, sentence) for each thing that differs from the checkpoint
    told     the settings of its stages, of those that are over as they were trained
    """

    stages: list[ResolvedStage]
    state: TrainState
    record: dict[str, Any]
    data: dict[int, StageData]
    told: list[dict]
    saved: SavedRun | None = None
    model: LMBase | None = None
    changes: list[tuple[str, str]] = field(default_factory=list)

    @property
    def resumed(self) -> tuple[SavedRun, LMBase] | None:
        return (self.saved, self.model) if self.saved is not None and self.model is not None else None

    @property
    def shared(self) -> dict[str, Any]:
        """What RunContext takes of it; the logs of a resumed run are cut back to where they were when its
        checkpoint was written."""
        offsets = self.saved.state['logs'] if self.saved is not None else None
        return {'state': self.state, 'record': self.record, 'data': self.data, 'offsets': offsets}


@dataclass(frozen=True)
class Beginner:
    """Begins the run in a directory.

    Each way of it checks all that the run needs, and raises UserError before anything is written.
    """

    directory: RunDirectory
    stages: list[ResolvedStage]
    settings: Settings
    seed: int
    compute: Compute
    tell: Callable[[str], None]
    ranks: int = 1

    def fresh(self) -> Beginning:
        """From the plan's first stage. That one's own start is not tried: it comes before the first step."""
        self._check_starts(first=1, over=0)
        imports = self.stages[0].init_from not in ('previous', 'scratch')  # and may bring its tokenizer
        data = self._open(int(imports))
        told = [stage.settings.to_dict() for stage in self.stages]
        return Beginning(self.stages, TrainState(), self._record(told), data, told)

    def resumed(self, saved: SavedRun) -> Beginning:
        """Where the checkpoint stands; a run that may not change as it has is refused."""
        saved.check_logs()
        state, before = saved.train_state, saved.record
        model, data, now = self._at(self.stages[state.stage], saved)
        require_same(self.directory.path, before, now)
        if 'stages' not in before:
            before = before | {'stages': _recorded_settings(self.directory.path)}
        told = as_trained(before.get('stages'), now['stages'], first=state.stage)
        found = changes(before, now, stage=state.stage)
        if self.settings.ignore_optimizer:
            found.append(('options', "The optimizer's saved state is not loaded."))
        record = self._record(told, reset=saved.is_being_reset)
        return Beginning(self.stages, state, record, data, told, saved, model, found)

    def again(self, saved: SavedRun) -> Beginning:
        """A new history from the weights of the checkpoint; the old one is moved, once all is checked."""
        first = self.stages[0]
        model, data, now = self._at(first, saved)
        header = checkpoint_header(first, model, self.seed, now | {'reset': True})
        again, history = start_history_again(self.directory, saved, model, header)
        found = [('reset', _reset_sentence(saved, history, now))]
        record = self._record(now['stages'], reset=True)
        return Beginning(self.stages, TrainState(), record, data, now['stages'], again, model, found)

    def _at(
        self, stage: ResolvedStage, saved: SavedRun
    ) -> tuple[LMBase, dict[int, StageData], dict[str, Any]]:
        """(the saved model, data of this stage and later ones, what a checkpoint would record now)."""
        self._check_starts(first=stage.index + 1, over=stage.index)
        model = saved.load_model(stage, self.compute.device)
        tokenizer = as_tokenizer(model.tokenizer)
        data = open_data(stage, tokenizer, seed=self.seed, progress=self.tell)
        prints = fingerprints(stage.name, data.mixture, data.held_out, tokenizer)
        told = [stage.settings.to_dict() for stage in self.stages]
        now = self._record(told) | data_record(stage, data, prints)
        return model, {stage.index: data} | self._open(stage.index + 1), now

    def _check_starts(self, *, first: int, over: int) -> None:
        check_starts(self.stages, first=first, over=over, checkpoints=self.directory.checkpoints)

    def _open(self, first: int) -> dict[int, StageData]:
        return open_stages(self.stages, first=first, seed=self.seed, progress=self.tell)

    def _record(self, told: list[dict], *, reset: bool = False) -> dict[str, Any]:
        return run_record(self.stages, told, self.settings, self.compute, self.ranks) | {'reset': reset}


def write_down(beginning: Beginning, run: RunContext, *, plan: dict) -> None:
    """Writes a run's settings, keeps its models' source, and records what differs from its checkpoint.

    To be called when the first stage is ready, for a run that is refused must not change.
    """
    stages = beginning.stages
    for event, sentence in beginning.changes:
        run.event(event, stages[run.state.stage].name, sentence)
    settings = asdict(run.settings) | {'seed': run.seed, 'stages': beginning.told}
    run.directory.write(settings=settings, plan=plan, environment=environment())
    keep_source(run.directory.path, [find_entry(stage.exp) for stage in stages])


def _reset_sentence(saved: SavedRun, history: Path, now: dict[str, Any]) -> str:
    told = (
        f'The history starts again from the weights after {saved.train_state.total_step:,} steps; what was '
        f"here is in '{history.name}'."
    )
    if not differs(saved.record, now, 'text'):
        return told
    return f'{told} The held-out text is another: the weights may have been trained on some of it.'


def _recorded_settings(run_dir: Path) -> Any:
    """The stages of settings.json, which older checkpoints do not record; None where it is mangled."""
    try:
        return json.loads((run_dir / SETTINGS).read_text())['stages']
    except (OSError, ValueError, KeyError, TypeError):
        return None


def require_agreement(state: TrainState, ranks: Ranks, directory: RunDirectory) -> None:
    """Raises UserError where ranks would begin at different points."""
    first, *others = ranks.gathered((state.stage, state.step, state.samples, state.total_step))
    if any(other != first for other in others):
        raise UserError(
            f"Not all processes find the same checkpoint in '{directory.path}': --run-dir must be on a file "
            'system that all machines share.'
        )
