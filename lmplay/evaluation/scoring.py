"""From what lm-evaluation-harness found to scores by item."""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval.api.metrics import bits_per_byte, mean
from lm_eval.api.task import Task

NO_FILTER = 'none'


def scored(task: Task, found: Mapping[str, Any]) -> dict[str, Any]:
    """What TASK.json holds of a task (see `results.TaskForm`); found: lm_eval's results."""
    name = task.task_name
    by_filter = defaultdict(list)
    for sample in found['samples'][name]:
        by_filter[sample['filter']].append(sample)
    samples = next(iter(by_filter.values()))
    metadata: dict[str, Any] = getattr(task.config, 'metadata', None) or {}
    groups, parts = (_field(samples, metadata.get(key)) for key in ('group_by', 'part_by'))
    higher, aggregations = task.higher_is_better() or {}, task.aggregation() or {}  # lm_eval types neither
    metrics = {}
    for filtered, own in by_filter.items():
        for metric in own[0]['metrics']:
            value = found['results'][name].get(f'{metric},{filtered}')
            if isinstance(value, (int, float)) and math.isfinite(value):
                label = metric if filtered == NO_FILTER else f'{metric},{filtered}'
                metrics[label] = {
                    'value': float(value),
                    'higher_is_better': higher.get(metric, True),
                } | _by_item([sample[metric] for sample in own], aggregations.get(metric), parts)
    return {
        'task': name,
        'fingerprint': _fingerprint(samples),
        'items': len(samples),
        'metrics': metrics,
        'groups': groups,
    }


def _field(samples: Sequence[Mapping[str, Any]], field: str | None) -> list[str] | None:
    """The value of a field of each item; None where there is none such."""
    if field is None or any(field not in sample['doc'] for sample in samples):
        return None
    return [str(sample['doc'][field]) for sample in samples]


def _by_item(values: Sequence[Any], aggregation: Any, parts: Sequence[str] | None) -> dict[str, Any]:
    """sums, weights and parts of a metric that is a mean, or bits per byte; nothing of another one."""
    weights = None
    if aggregation is bits_per_byte:
        sums = [-likelihood / math.log(2) for likelihood, _ in values]
        weights = [float(size) for _, size in values]
    elif aggregation is mean and all(isinstance(v, (int, float, np.number)) for v in values):
        sums = [float(v) for v in values]
    else:
        return {}
    of_parts = {}
    for part in dict.fromkeys(parts or []):
        own = [i for i, p in enumerate(parts or []) if p == part]
        of_parts[part] = sum(sums[i] for i in own) / sum(weights[i] if weights else 1 for i in own)
    return {'sums': sums, 'weights': weights, 'parts': of_parts}


def _fingerprint(samples: Sequence[Mapping[str, Any]]) -> str:
    """Of the items in their order: what was asked, and the answers that count as right."""
    asked = [[sample['arguments'], sample['target']] for sample in samples]
    return hashlib.sha256(json.dumps(asked, default=str).encode('utf-8', 'replace')).hexdigest()[:24]


def items_of(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lines of TASK.jsonl."""
    kept = ('doc_id', 'filter', 'doc', 'target', 'arguments', 'filtered_resps')
    return [{key: sample[key] for key in (*kept, *sample['metrics'])} for sample in samples]
