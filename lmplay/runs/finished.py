"""Reads run directories: what a run was started with, and what a finished one left behind.

    run = read_run('runs/mine')
    tokens, loss = run.metrics('validation', 'loss').tokens, run.loss('bits_per_byte')
    model = run.model()

Needs NumPy alone; only `model` imports torch.
"""

import math
import re
import zipfile
import zlib
from collections.abc import Container
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from ..errors import DataError, unknown
from ..files import CHECKSUMS, damage, from_json, seal_is_broken, user_path
from . import formats
from .recorder import read_metrics
from .source import changed_source, kept_source

if TYPE_CHECKING:
    from ..base.base_model import LMBase

SUMMARY, STAGES, SETTINGS, PLAN, ENVIRONMENT = (
    'summary.json',
    'stages.json',
    'settings.json',
    'plan.json',
    'environment.json',
)
# Settings that say where a run ran or was kept, not what it did, and those that are resolved elsewhere.
NOT_SETTINGS = (
    'run_dir',
    'seed',
    'report_to',
    'reset_history',
    'check_grads',
    'keep',
    'overrides',
    'model',
    'stages',
    'exp',
    'ignore_optimizer',
)
HISTORY = re.compile(r'(^|/)history-\d+/')  # where --reset-history moves what a run wrote before
RAN_AWAY = 30.0  # nats per token: as of a guess among 10^13 entries
MODEL_METRIC = 'model/'  # what precedes the name of a metric that the model reports of itself
# What reading a damaged file raises.
DAMAGE = (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, MemoryError)
DAMAGE += (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)


def metric_key(recorded: Container[str], name: str) -> str:
    """The key under which `recorded`, a record or its keys, holds the metric `name`.

    What a model reports of itself stands under 'model/NAME', in older runs under 'NAME'; either name finds
    either. Where it is under neither, `name` itself.
    """
    bare = name.removeprefix(MODEL_METRIC)
    return next((key for key in (name, MODEL_METRIC + bare, bare) if key in recorded), name)


class Curve(NamedTuple):
    """A metric over a run's P records: samples (P,), tokens (P,), values (P, ...) with NaN for null."""

    samples: np.ndarray
    tokens: np.ndarray
    values: np.ndarray


@dataclass
class StartedRun:
    """A run, finished or not: its plan as it was read, and its settings with every stage resolved."""

    folder: Path
    plan: dict = field(repr=False)
    settings: dict = field(repr=False)

    @property
    def stage_settings(self) -> dict[str, dict]:
        """Stage -> its settings as resolved from version, plan and command line, in the plan's order."""
        return {stage['name']: stage for stage in self.settings['stages']}

    @property
    def datasets(self) -> dict[str, dict]:
        """The datasets that the plan defines; others are named ones or paths."""
        return self.plan.get('datasets', {})

    @property
    def validation_fraction(self) -> float:
        """The share of the documents that is held out, by default that of `train.plan.Plan`."""
        return self.plan.get('validation_fraction', 0.02)

    @property
    def checkpoints(self) -> Path:
        return self.folder / 'checkpoints'

    @cached_property
    def source(self) -> dict[str, str]:
        """The source of the models that it trains, as the run keeps it: relative path -> text.

        Empty for a run that kept none. It is there to be read; nothing of it is ever executed.
        """
        return kept_source(self.folder)

    def source_changed(self) -> list[str]:
        """The files of `source` that are edited, new or gone where they came from."""
        return changed_source(self.folder)

    def origin(self, stage: str) -> str:
        """Where a stage's weights came from: 'scratch', 'stage:NAME', 'pretrained:NAME', or a path."""
        names = list(self.stage_settings)
        index, source = names.index(stage), self.stage_settings[stage]['init_from']
        if index == 0:
            source = self.settings.get('initial_model') or source
            return 'scratch' if source == 'previous' else source
        return f'stage:{names[index - 1]}' if source == 'previous' else source


@dataclass
class FinishedRun(StartedRun):
    """A finished run.

    stages     stage -> facts about its model, data and fingerprints
    documents  name -> (documents,) over the held-out documents of the last stage: hash, domain, loss (summed
               nats), right (tokens predicted right), tokens, bytes
    records    metrics.jsonl, in order
    """

    stages: dict[str, dict] = field(repr=False)
    summary: dict = field(repr=False)
    environment: dict = field(repr=False)
    documents: dict[str, np.ndarray] = field(repr=False)
    records: list[dict] = field(repr=False)

    @property
    def seed(self) -> int:
        return self.summary['seed']

    @property
    def exp(self) -> str:
        """The experiment that the last stage trained."""
        return self.last_stage['exp']

    @property
    def last_stage(self) -> dict:
        """The facts of the last stage."""
        return list(self.stages.values())[-1]

    @property
    def causal(self) -> bool:
        """Whether the loss is a next-token loss; runs recorded before this was said are."""
        return self.last_stage.get('causal', True)

    @property
    def diverged(self) -> bool:
        """Whether its loss is no number, or one that no model has that learns, or most steps were skipped
        because their gradient was not finite."""
        skipped = 2 * self.summary.get('skipped_steps', 0) > self.summary.get('steps', math.inf)
        return skipped or not self.loss() <= RAN_AWAY

    @property
    def broken_contract(self) -> list[str]:
        """What of the contract the trained model breaks; empty for one that diverged,
        whose loss says so already."""
        if not math.isfinite(self.loss()):
            return []
        return self.summary.get('contract', {}).get('broken', [])

    @property
    def not_applied(self) -> dict:
        """Model parameters that the plan sets and the model of some stage lacks."""
        return {k: v for stage in self.stages.values() for k, v in stage.get('not_applied', {}).items()}

    @property
    def fingerprints(self) -> dict[str, str]:
        """Those of data and tokenizer over all stages, those of the held-out tokens and text at the end."""
        each = [stage['fingerprints'] for stage in self.stages.values()]
        joined = {name: ' '.join(f[name] for f in each) for name in ('data', 'tokenizer')}
        return joined | {name: each[-1][name] for name in ('evaluation', 'text')}

    @cached_property
    def validations(self) -> list[dict]:
        return [r for r in self.records if r['kind'] == 'validation']

    def metrics(self, kind: Literal['train', 'validation'] = 'validation', name: str = 'loss') -> Curve:
        """The metric `name` over the records of that kind; raises DataError where none holds it.

        Of a metric that changes its shape with the model, as expert loads do between stages, the last shape
        is given.
        """
        records = [r for r in self.records if r['kind'] == kind]
        found = [(r, r[metric_key(r, name)]) for r in records if metric_key(r, name) in r]
        if not found:
            known = {key for r in records for key in r} - {'kind', 'stage', 'domains'}
            raise DataError(unknown('metric', name, known, f"the {kind} records of '{self.folder}'"))
        points = [(r, np.array(value, float)) for r, value in found]
        points = [(r, values) for r, values in points if values.shape == points[-1][1].shape]
        return Curve(
            np.array([r['samples'] for r, _ in points]),
            np.array([r['tokens'] for r, _ in points]),
            np.stack([values for _, values in points]),
        )

    def sums(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """(summed loss, what it is divided by) of each held-out document, for 'loss' or 'bits_per_byte'."""
        if metric == 'loss':
            return self.documents['loss'], self.documents['tokens']
        return self.documents['loss'] / math.log(2), self.documents['bytes']

    def loss(self, metric: str = 'loss', domain: str | None = None) -> float:
        """The held-out loss in nats per token, or its 'bits_per_byte', of all documents or of one domain.

        NaN where nothing of them is scored.
        """
        losses, weights = self.sums(metric)
        chosen = slice(None) if domain is None else self.documents['domain'] == domain
        total = float(weights[chosen].sum())
        return float(losses[chosen].sum()) / total if total else math.nan

    def model(
        self, which: Literal['best', 'last'] = 'best', *, device: str = 'cpu', exp: str | None = None
    ) -> 'LMBase':
        """The model of the run's best or last checkpoint; exp: its experiment, needed where that is a file.

        Raises UserError.
        """
        from .checkpoints import find_checkpoint
        from .load import load_model

        return load_model(find_checkpoint(self.folder, prefer=which), device=device, exp=exp)[0]

    @cached_property
    def cost(self) -> dict[str, float | None]:
        """What training took: tokens, FLOPs, seconds, tokens per second, and the peak memory in bytes."""
        last = self.validations[-1]
        return {
            'tokens': last['tokens'],
            'flops': last['flops'],
            'seconds': last['seconds'],
            'memory': max((r['memory'] for r in self.records if r.get('memory')), default=None),
            'tokens_per_second': last['tokens'] / last['seconds'] if last['seconds'] else None,
        }

    @cached_property
    def configuration(self) -> dict:
        """Every setting that could make a difference, flat."""
        found = {'experiment': self.exp} | {k: v for k, v in self.settings.items() if k not in NOT_SETTINGS}
        found |= {f'model.{k}': v for k, v in self.last_stage['hyperparameters'].items()}
        found['tokenizer'] = self.last_stage['tokenizer']
        for name, stage in self.stage_settings.items():
            found |= {f'{name}.{k}': v for k, v in stage.items() if k not in ('name', 'model', 'exp')}
            found[f'{name}.row_length'] = self.stages[name]['row_length']
        found |= {k: self.environment.get(k) for k in ('python', 'platform', 'cpu', 'float32_products')}
        found['devices'] = ', '.join(self.environment.get('devices') or []) or None
        found |= {f'package {k}': v for k, v in self.environment.get('packages', {}).items()}
        git = (self.environment.get('git') or {}).get('lmplay') or {}
        return found | {
            'lmplay commit': git.get('commit', '')[:12] + (' with changes' if git.get('dirty') else '')
        }


def find_below(place: Path, pattern: str) -> list[Path]:
    """The files of runs at and below a directory, sorted; those of earlier histories are left out."""
    return sorted(f for f in place.rglob(pattern) if not HISTORY.search(f.relative_to(place).as_posix()))


def read_run(folder: str | Path) -> FinishedRun:
    """The finished run in a directory. Raises DataError where there is none, or a damaged one."""
    folder = user_path(folder)
    if not folder.is_dir():
        raise DataError(f"No run at '{folder}'.")
    if not (folder / SUMMARY).is_file():
        raise DataError(f"'{folder}' holds no finished run: it has no {SUMMARY}.")
    try:
        run = _read(folder)
        _check(run)
    except DAMAGE as error:
        raise _damaged(folder, error) from error
    return run


def _read(folder: Path) -> FinishedRun:
    summary = formats.read(folder / SUMMARY, formats.Summary)
    _require_unchanged(folder, summary)
    stages = formats.read(folder / STAGES, formats.STAGES_FILE)
    with np.load(folder / f'held_out-{list(stages)[-1]}.npz') as arrays:
        documents = {name: arrays[name] for name in formats.DOCUMENT_COLUMNS if name in arrays}
    return FinishedRun(
        folder,
        formats.read(folder / PLAN, formats.KeptPlan),
        formats.read(folder / SETTINGS, formats.RunSettings),
        stages,
        summary,
        formats.read(folder / ENVIRONMENT, formats.Environment),
        dict(formats.checked_documents(documents)),
        read_metrics(folder),
    )


def _require_unchanged(folder: Path, summary: dict) -> None:
    """Raises ValueError where a record has changed since the run finished; older runs have no checksums."""
    if seal_is_broken(summary):
        raise ValueError(f'{SUMMARY} has changed since the run finished')
    found = damage(folder, {}, summary.get(CHECKSUMS, {}))
    if found:
        raise ValueError(found)


def what_changed(folder: Path, name: str) -> str:
    """What is wrong with a record of a finished run, one sentence; empty where nothing is known to be."""
    try:
        summary = formats.read(folder / SUMMARY, formats.Summary)
        sums = summary.get(CHECKSUMS, {})
        return damage(folder, {}, {name: sums[name]} if name in sums else {}) or ''
    except (OSError, ValueError):
        return ''


def _check(run: FinishedRun) -> None:
    """Touches whatever a reader may ask for, so that damage shows when the run is read."""
    _ = run.seed, run.exp, run.fingerprints, run.configuration
    recorded, summed_up = run.cost['tokens'], run.summary['tokens']
    if recorded != summed_up:
        raise ValueError(f'metrics.jsonl ends at {recorded:,} tokens, {SUMMARY} says {summed_up:,}')


def read_started(folder: str | Path) -> StartedRun | None:
    """The run in a directory, finished or not, or None. Raises DataError for a damaged one."""
    folder = user_path(folder)
    if not (folder / PLAN).is_file() or not (folder / SETTINGS).is_file():
        return None
    try:
        run = StartedRun(
            folder,
            formats.read(folder / PLAN, formats.KeptPlan),
            formats.read(folder / SETTINGS, formats.RunSettings),
        )
        if (folder / SUMMARY).is_file():
            _require_unchanged(folder, formats.read(folder / SUMMARY, formats.Summary))
    except DAMAGE as error:
        raise _damaged(folder, error) from error
    return run


def read_fingerprints(folder: str | Path) -> dict[str, str]:
    """The fingerprints of the stage that a run has reached; empty where none are recorded."""
    try:
        stages = from_json((Path(folder) / STAGES).read_bytes())
        return {k: str(v) for k, v in list(stages.values())[-1]['fingerprints'].items()}
    except DAMAGE:
        return {}


def _damaged(folder: Path, error: Exception) -> DataError:
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
    return DataError(f"The run in '{folder}' is damaged ({reason}).")
