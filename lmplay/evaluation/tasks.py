"""From what --tasks names to tasks of lm-evaluation-harness: ours, its own, and files."""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from ..cli import plain_line
from ..errors import DataError, UserError, unknown
from ..files import user_path

FEWSHOT_SEED = 1234  # lm_eval's own
Items = Callable[[], list[dict[str, Any]]]
CHOICE = {
    'output_type': 'multiple_choice',
    'doc_to_target': 'answer',
    'doc_to_choice': 'choices',
    'target_delimiter': '',
    'metric_list': [{'metric': 'acc', 'aggregation': 'mean', 'higher_is_better': True}],
}
# metadata: `group_by` names the field of an item whose equals count as one, `part_by` that of its part
SHIPPED: dict[str, dict[str, Any]] = {
    'cloze': CHOICE
    | {'doc_to_text': 'context', 'metadata': {'version': 1.0, 'group_by': 'group', 'part_by': 'domain'}},
    'agreement': CHOICE
    | {'doc_to_text': '', 'metadata': {'version': 1.0, 'group_by': 'group', 'part_by': 'kind'}},
    'bits_per_byte': {
        'output_type': 'loglikelihood_rolling',
        'doc_to_text': '',
        'doc_to_target': 'text',
        'metric_list': [
            {'metric': 'bits_per_byte', 'aggregation': 'bits_per_byte', 'higher_is_better': False}
        ],
        'metadata': {'version': 1.0, 'group_by': 'document', 'part_by': 'domain'},
    },
}


def load_tasks(asked: Sequence[str], shipped: Mapping[str, Items]) -> list[Task]:
    """The tasks that names, task files and folders of such stand for, each once; those of groups too.

    shipped: the items of our own tasks, made where they are asked for. Raises UserError for what is unknown
    or cannot be loaded.
    """
    found: dict[str, Task] = {}
    for name in asked:
        for task in _load(name, shipped):
            found.setdefault(task.task_name, task)
    for name, task in found.items():
        for trait, why in (
            ('UNSAFE_CODE', 'runs code that the model writes'),
            ('MULTIMODAL', 'asks about more than text'),
        ):
            if getattr(task, trait, False):
                raise UserError(f"The task '{name}' {why}; lmp_eval does not.")
    return list(found.values())


def set_examples(tasks: Iterable[Task], number: int | None) -> None:
    """How many examples precede an item; None: as many as the task says. One that says none has none."""
    for task in tasks:
        own = task.get_config('num_fewshot')
        task.set_config('num_fewshot', (own or 0) if number is None or own == 0 else number)
        task.set_fewshot_seed(FEWSHOT_SEED)


def _load(name: str, shipped: Mapping[str, Items]) -> list[Task]:
    path = user_path(name).resolve()
    if name in shipped:
        return [_shipped(name, shipped[name])]
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        if path.suffix not in ('.yaml', '.yml'):
            raise UserError(f"'{name}' is no task: a task is a .yaml file, which names its data.")
        return _built(str(path), TaskManager(include_defaults=False, include_path=path.parent), path)
    manager = TaskManager()
    names = manager.match_tasks([name])
    if not names:
        raise UserError(unknown('task', name, [*SHIPPED, *manager.all_tasks]))
    return [task for each in names for task in _built(each, manager, None)]


def _shipped(name: str, items: Items) -> Task:
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    data = {'test': Dataset.from_list(items())}
    return ConfigurableTask(
        config=SHIPPED[name]
        | {'task': name, 'test_split': 'test', 'num_fewshot': 0, 'custom_dataset': lambda **_: data}
    )


def _folder(folder: Path) -> list[Task]:
    """Every task of the files below it, an absolute path. Raises UserError for a file that is damaged, and
    where there is none."""
    import yaml

    manager = TaskManager(include_defaults=False, include_path=folder)
    for file in sorted(folder.rglob('*.yaml')):  # lm_eval passes over what it cannot read
        try:
            list(yaml.parse(file.read_bytes()))
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"The task file '{file}' can't be read: {plain_line(error)}.") from error
    if not manager.all_subtasks:
        raise UserError(f"There is no task in '{folder}': no .yaml file below it has the key 'task'.")
    files = {name: manager.task_index[name].yaml_path for name in manager.all_subtasks}
    return [task for name, file in files.items() for task in _built(name, manager, file)]


def _built(name: str, manager: TaskManager, file: Path | None) -> list[Task]:
    """The tasks of a name; paths in a file are relative to its folder or else, as lm_eval has it, to the
    directory of the command."""
    places = [Path()] if file is None else [file.parent, Path()]
    for place in places:
        try:
            with contextlib.chdir(place):
                return list(manager.load([name])['tasks'].values())
        except FileNotFoundError as error:
            missing = error
        except Exception as error:  # noqa: BLE001  a task's own code and data raise anything
            raise _cannot(name, error) from error
    raise _cannot(name, missing)


def _cannot(name: str, error: Exception) -> DataError:
    reason = plain_line(error).strip().rstrip('.') or 'no reason given'
    return DataError(f"The task '{name}' can't be loaded: {type(error).__name__}: {reason[:300]}.")
