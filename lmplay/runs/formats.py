"""What the files of a run hold: the same models check them when they are written and when they are read.

Where a key is there, it has this type; keys of other versions pass.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..files import from_json

DOCUMENT_COLUMNS = {  # name -> kinds of numpy's types
    'hash': 'iu',
    'domain': 'U',
    'bytes': 'iuf',
    'loss': 'iuf',
    'right': 'iuf',
    'tokens': 'iuf',
}


class Form(BaseModel):
    model_config = ConfigDict(strict=True, extra='allow', protected_namespaces=())


class Fingerprints(Form):
    data: str
    tokenizer: str
    evaluation: str
    text: str


class StageFacts(Form):
    """A stage in stages.json."""

    exp: str
    model: str = ''
    hyperparameters: dict[str, Any]
    tokenizer: str
    causal: bool = True
    total_parameters: float
    trainable_parameters: float
    active_parameters: float
    row_length: int = Field(ge=1)
    samples: int | None = None
    steps: int | None = None
    not_applied: dict[str, Any] = {}
    fingerprints: Fingerprints


class StageSettings(Form):
    """A stage in settings.json: the keys that readers ask for of those in train/stage_keys.py."""

    name: str
    dataset: str | None
    mix: dict[str, float] | None
    init_from: str
    seconds: float | None = None
    row_length: int | None = None
    packing: str = 'pack'
    long_documents: str = 'split'
    include_prompts: bool = True
    score_padding: bool = False
    validation_bytes: int = Field(1, ge=1)
    validation_document_bytes: int | None = Field(None, ge=0)


class RunSettings(Form):
    """settings.json."""

    seed: int
    stages: list[StageSettings] = Field(min_length=1)
    initial_model: str | None = None


class KeptPlan(Form):
    """plan.json."""

    datasets: dict[str, dict[str, Any] | None] = {}
    validation_fraction: float = Field(0.02, ge=0, lt=1)


class GitState(Form):
    commit: str = ''
    dirty: bool = False


class Environment(Form):
    """environment.json."""

    devices: list[str] | None = None
    packages: dict[str, str] = {}
    git: dict[str, GitState | None] | None = None


class Contract(Form):
    broken: list[str] = []


class Summary(Form):
    """summary.json. Its `checksums` are those of the run's other records when it finished."""

    seed: int
    tokens: int
    plan: str = ''
    contract: Contract = Contract()
    checksums: dict[str, str] = {}


class Record(Form):
    """A line of metrics.jsonl."""

    kind: str
    stage: str | None = None
    event: str | None = None
    message: str | None = None
    step: int | None = None
    samples: int | None = None
    tokens: int | None = None
    flops: float | None = None
    seconds: float | None = None
    loss: float | None = None
    accuracy: float | None = None
    memory: float | None = None
    domains: dict[str, dict[str, Any]] | None = None


STAGES_FILE = TypeAdapter(dict[str, StageFacts])


def checked(form: type[Form] | TypeAdapter, content: Any) -> Any:
    """The content itself, which has that form. Raises ValueError, in one line, where it has another."""
    try:
        form.validate_python(content) if isinstance(form, TypeAdapter) else form.model_validate(content)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)[0]
        where = '.'.join(map(str, found['loc']))
        raise ValueError(f'{where}: {found["msg"]}' if where else found['msg']) from None
    return content


def read(file: Path, form: type[Form] | TypeAdapter) -> dict[str, Any]:
    """What a JSON file of that form holds. Raises OSError, and ValueError that names the file."""
    try:
        content = from_json(file.read_bytes())
        if not isinstance(content, dict):
            raise ValueError('it is not a JSON object')
        return checked(form, content)
    except ValueError as error:
        raise ValueError(f'{file.name}: {error}') from error


def checked_documents(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The columns of held_out-STAGE.npz, which have an entry for each document.

    Raises ValueError where they have not.
    """
    for name, kinds in DOCUMENT_COLUMNS.items():
        array = arrays.get(name)
        if array is None or array.ndim != 1 or array.size and array.dtype.kind not in kinds:
            kept = 'is missing' if array is None else f'holds {array.dtype} of shape {array.shape}'
            raise ValueError(f'the column {name} of the held-out documents {kept}')
    if len({len(arrays[name]) for name in DOCUMENT_COLUMNS}) > 1:
        raise ValueError('the columns of the held-out documents differ in length')
    return arrays
