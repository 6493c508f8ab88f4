"""Evaluation from Python; the command lmp_eval is a thin layer over this."""

import contextlib
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..base.base_model import LMBase
from ..device import Compute, keep_freed_memory
from ..errors import CheckpointError, UserError
from ..files import from_json, user_path
from ..modules.matmul import speed_up_linears
from ..runs.checkpoints import find_checkpoint
from ..runs.finished import SUMMARY, StartedRun, read_started
from ..runs.load import load_model
from ..runs.text import Documents, held_out_documents, named_documents
from ..tokenizers import as_tokenizer
from .agreement import agreement_items
from .results import FOLDER, TaskResult, as_result, write_result
from .texts import HEAD, MAX_BYTES, PASSAGE, PASSAGES, bits_per_byte_items, cloze_items, heads

if TYPE_CHECKING:
    from .tasks import Items

SEED = 0  # of what tasks draw
SHIPPED = ('cloze', 'agreement', 'bits_per_byte')


def evaluate(
    path: str | Path,
    tasks: Sequence[str] = SHIPPED,
    *,
    data: Sequence[str] = (),
    max_bytes: int = MAX_BYTES,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 32,
    device: str = 'auto',
    amp: bool = False,
    exp: str | None = None,
    out: str | Path | None = None,
) -> dict[str, TaskResult]:
    """task -> what the model of a run or checkpoint scores, written to `out` ('evaluation' in the run).

    tasks        names of ours and of lm-evaluation-harness, task files, folders of such
    data         the text of cloze and bits_per_byte: datasets and files (default: the run's held-out text)
    max_bytes    of text that bits_per_byte scores
    limit        the first items of each task only
    num_fewshot  examples before each item, of tasks that have them
    exp          the experiment of a run, if it has been renamed or moved

    Raises UserError for what cannot be loaded, asked or written.
    """
    require_lm_eval()
    from lm_eval.evaluator import evaluate as lm_evaluate

    from .model import EvaluatedModel
    from .scoring import items_of, scored
    from .tasks import load_tasks, set_examples

    keep_freed_memory()
    compute = Compute.of(device, amp=amp)
    subject = Subject.open(path, str(compute.device), exp)
    speed_up_linears(subject.model)
    model = EvaluatedModel(subject.model, compute, batch_size=batch_size)
    random.seed(SEED)  # tasks may shuffle their choices
    np.random.seed(SEED)
    with _quiet():
        loaded = load_tasks(tasks, subject.shipped(data, max_bytes))
        set_examples(loaded, num_fewshot)
        by_name = {task.task_name: task for task in loaded}
        found = lm_evaluate(lm=model, task_dict={'tasks': by_name}, limit=limit, bootstrap_iters=0)
    assert found is not None and 'samples' in found
    folder = user_path(out) if out else subject.folder / FOLDER
    contents = {
        name: subject.about | scored(task, found) | {'limit': limit} for name, task in by_name.items()
    }
    _write(folder, contents, {name: items_of(found['samples'][name]) for name in contents})
    return {name: as_result(content) for name, content in contents.items()}


def _write(folder: Path, contents: dict[str, dict], items: dict[str, Any]) -> None:
    """Writes each task's result. Raises UserError where that is impossible."""
    try:
        for name, content in contents.items():
            write_result(folder, content, items[name])
    except OSError as error:
        raise UserError(f"Can't write to '{folder}': {error.strerror or error}.") from error


def require_lm_eval() -> None:
    """Raises UserError unless lm-evaluation-harness is installed."""
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise UserError(
            "lmp_eval needs lm-evaluation-harness: pip install 'lmplay[eval]' (in a checkout: pip install -c "
            "constraints.txt -e '.[eval]')."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without lm_eval's progress bars and notes; the model shows its own progress."""
    from lm_eval.api import task

    log, shown = logging.getLogger('lm_eval'), task.tqdm
    level = log.level
    log.setLevel(logging.ERROR)
    task.tqdm = partial(shown, disable=True)
    try:
        yield
    finally:
        log.setLevel(level)
        task.tqdm = shown


@dataclass(frozen=True)
class Subject:
    """The model that is evaluated, and the run it belongs to; about: what results say of it."""

    model: LMBase
    run: StartedRun | None
    stage: str
    checkpoint: Path
    about: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path, device: str, exp: str | None) -> 'Subject':
        model, state = load_model(path, device=device, exp=exp)
        try:
            checkpoint = find_checkpoint(path)
        except CheckpointError:  # a file in a format of others
            checkpoint = Path(path)
        run = read_started(checkpoint.resolve().parent.parent) if state.get('stage') else None
        about = {
            'checkpoint': checkpoint.resolve().name,
            'step': (state.get('progress') or {}).get('total_step'),
            'run': _seal_of(run),
        }
        return cls(model, run, state.get('stage', ''), checkpoint, about)

    @property
    def folder(self) -> Path:
        return self.run.folder if self.run else Path()

    def shipped(self, data: Sequence[str], max_bytes: int) -> 'dict[str, Items]':
        """Our tasks: name -> function that makes its items."""
        tokenizer = as_tokenizer(self.model.tokenizer)

        def cloze() -> list[dict[str, Any]]:
            size = {'max_bytes': PASSAGES * PASSAGE, 'least': PASSAGE, 'most': PASSAGE}
            return cloze_items(heads(self._documents(data), tokenizer, **size))

        def bits_per_byte() -> list[dict[str, Any]]:
            found = heads(self._documents(data), tokenizer, max_bytes=max_bytes, least=HEAD)
            return bits_per_byte_items(found)

        return {'cloze': cloze, 'agreement': agreement_items, 'bits_per_byte': bits_per_byte}

    def _documents(self, data: Sequence[str]) -> Documents:
        tokenizer = as_tokenizer(self.model.tokenizer)
        if data:
            return named_documents(data, self.run, tokenizer)
        if self.stage:
            return held_out_documents(self.run, self.stage, tokenizer, self.checkpoint)
        # a file of others, that no run tells a text of
        return [(s, s.split(0.02)[1]) for s, _ in named_documents(['embedded'], None, tokenizer)]


def _seal_of(run: StartedRun | None) -> str | None:
    """The checksum of a finished run's summary."""
    try:
        return from_json((run.folder / SUMMARY).read_bytes()).get('checksum') if run else None
    except (OSError, ValueError):
        return None
