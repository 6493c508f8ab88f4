"""Finished runs as a comparison reads them, and whether they may be compared."""

import json
import math
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from ..errors import DataError, UserError
from ..runs.recorder import read_metrics

METRICS = {'loss': 'nats per token', 'bits_per_byte': 'bits per byte'}
# Settings of a run that say where it ran or was kept, not what it did.
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
FINGERPRINTS = {
    'data': 'the training data or its order',
    'tokenizer': 'the tokenizer',
    'evaluation': 'the held-out tokens',
}


@dataclass
class Run:
    """A finished run. documents: per held-out document its hash, domain, loss (summed nats), tokens, bytes, of the last stage."""

    folder: Path
    label: str
    exp: str
    seed: int
    plan: dict
    settings: dict
    stages: dict[str, dict]
    summary: dict
    environment: dict
    documents: dict[str, np.ndarray]
    records: list[dict] = field(repr=False)

    @property
    def facts(self) -> dict:
        """Of the last stage; see train/fingerprints.py."""
        return list(self.stages.values())[-1]

    @cached_property
    def validations(self) -> list[dict]:
        return [r for r in self.records if r['kind'] == 'validation']

    def fingerprint(self, name: str) -> str:
        """Of data and tokenizer over all stages, of the held-out text at the end."""
        if name in ('evaluation', 'text'):
            return self.facts['fingerprints'][name]
        return ' '.join(s['fingerprints'][name] for s in self.stages.values())

    def sums(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """(summed loss, what it is divided by) of each held-out document."""
        if metric == 'loss':
            return self.documents['loss'], self.documents['tokens']
        return self.documents['loss'] / math.log(2), self.documents['bytes']

    def loss(self, metric: str, domain: str | None = None) -> float:
        losses, weights = self.sums(metric)
        chosen = slice(None) if domain is None else self.documents['domain'] == domain
        return float(losses[chosen].sum() / max(1, weights[chosen].sum()))

    @cached_property
    def cost(self) -> dict[str, float | None]:
        """What it took: tokens and FLOPs trained, seconds of training, tokens/s, bytes of memory at the most."""
        last = self.validations[-1]
        memory = max((r['memory'] for r in self.records if r.get('memory')), default=None)
        return {
            'tokens': last['tokens'],
            'flops': last['flops'],
            'seconds': last['seconds'],
            'memory': memory,
            'tokens_per_second': last['tokens'] / last['seconds'] if last['seconds'] else None,
        }

    @cached_property
    def configuration(self) -> dict:
        """Every setting that could make a difference, flat."""
        found = {'experiment': self.exp} | {k: v for k, v in self.settings.items() if k not in NOT_SETTINGS}
        found |= {f'model.{k}': v for k, v in self.facts['hyperparameters'].items()} | {
            'tokenizer': self.facts['tokenizer']
        }
        for stage in self.settings['stages']:
            found |= {
                f'{stage["name"]}.{k}': v for k, v in stage.items() if k not in ('name', 'model', 'exp')
            }
            found[f'{stage["name"]}.row_length'] = self.stages[stage['name']]['row_length']
        found |= {k: self.environment.get(k) for k in ('python', 'platform', 'cpu', 'devices')}
        found['devices'] = ', '.join(found['devices'] or []) or None
        found |= {f'package {k}': v for k, v in self.environment.get('packages', {}).items()}
        git = (self.environment.get('git') or {}).get('lmplay') or {}
        return found | {
            'lmplay commit': git.get('commit', '')[:12] + (' with changes' if git.get('dirty') else '')
        }


def read_run(folder: Path, label: str = '') -> Run:
    """Raises DataError where there is no finished run."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"No run at '{folder}'.")
    if not (folder / 'summary.json').is_file():
        raise DataError(f"'{folder}' holds no finished run: it has no summary.json.")
    try:
        content = {
            name: json.loads((folder / f'{name}.json').read_text(encoding='utf-8'))
            for name in ('summary', 'settings', 'plan', 'environment', 'stages')
        }
        with np.load(folder / f'held_out-{list(content["stages"])[-1]}.npz') as arrays:
            documents = {k: arrays[k] for k in ('hash', 'domain', 'bytes', 'loss', 'right', 'tokens')}
        summary = content['summary']
        exp = list(content['stages'].values())[-1]['exp']
        run = Run(
            folder,
            label or exp,
            exp,
            summary['seed'],
            content['plan'],
            content['settings'],
            content['stages'],
            summary,
            content['environment'],
            documents,
            read_metrics(folder),
        )
        for name in ('data', 'tokenizer', 'evaluation', 'text'):
            run.fingerprint(name)
        if (
            not run.configuration or run.cost['tokens'] != summary['tokens']
        ):  # all that is read of a run, read
            raise ValueError(
                f'metrics.jsonl ends at {run.cost["tokens"]:,} tokens, summary.json says {summary["tokens"]:,}'
            )
    except (
        OSError,
        EOFError,
        zipfile.BadZipFile,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
        raise DataError(f"The run in '{folder}' is damaged and can't be compared ({reason}).") from error
    return run


def find_runs(places: Iterable[Path]) -> list[Run]:
    """Every finished run at or below these directories. Raises DataError for one that has none."""
    runs: dict[Path, Run] = {}
    for place in places:
        if not Path(place).is_dir():
            raise DataError(f"No directory '{place}'.")
        found = sorted(
            f.parent
            for f in Path(place).rglob('summary.json')
            if (f.parent / 'stages.json').is_file() and 'tuning' not in f.relative_to(place).parts
        )  # a comparison's own trials
        if not found:
            raise DataError(f"'{place}' holds no finished run, here or below.")
        runs |= {f.resolve(): read_run(f) for f in found}
    return list(runs.values())


def group(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs of one experiment with equal settings together, under a label that tells the groups apart; the order is kept."""
    keys = [
        (
            r.exp,
            json.dumps(
                [
                    {k: v for k, v in r.configuration.items() if '.' in k or k in ('amp', 'tokenizer')},
                    r.fingerprint('tokenizer'),
                    r.fingerprint('data'),
                ],
                sort_keys=True,
                default=str,
            ),
        )
        for r in runs
    ]
    groups: dict[tuple, list[Run]] = {}
    for key, run in zip(keys, runs):
        groups.setdefault(key, []).append(run)
    named: dict[str, list[Run]] = {}
    for (exp, _), members in groups.items():
        alike = [g[0].configuration for (other, _), g in groups.items() if other == exp]
        own = members[0].configuration
        differing = [
            k for k in own if ('.' in k or k == 'tokenizer') and any(c.get(k) != own[k] for c in alike)
        ]
        label = exp + ''.join(f',{k.split(".", 1)[-1]}={own[k]}' for k in differing[:4])
        while label in named:
            label += '+'
        for run in members:
            run.label = label
        named[label] = sorted(members, key=lambda r: r.seed)
    return named


def check_comparable(fingerprints: dict[str, dict[str, str]], metric: str) -> None:
    """Raises UserError unless all have equal fingerprints; fingerprints: label -> name -> digest. Bits per byte need equal
    held-out text only."""
    baseline, *others = fingerprints
    for other in others:
        if metric != 'bits_per_byte':
            for name, what in FINGERPRINTS.items():
                if fingerprints[other][name] != fingerprints[baseline][name]:
                    raise UserError(
                        f'{other} and {baseline} differ in {what}, so their losses per token can not be compared. '
                        f'--metric bits_per_byte compares across data and tokenizers.'
                    )
        elif fingerprints[other]['text'] != fingerprints[baseline]['text']:
            raise UserError(
                f'{other} and {baseline} were evaluated on different held-out texts; bits per byte compare across '
                f'tokenizers and '
                f'training data, but not across texts.'
            )


def fingerprints_of(runs: dict[str, list[Run]]) -> dict[str, dict[str, str]]:
    """label -> fingerprints. Raises UserError where the runs of one label differ among themselves."""
    found = {}
    for label, members in runs.items():
        for name in ('tokenizer', 'evaluation', 'text', 'data'):
            if len({r.fingerprint(name) for r in members}) > 1:
                raise UserError(
                    f'The runs of {label} differ among themselves in {FINGERPRINTS.get(name, "the held-out text")}: '
                    f'{", ".join(str(r.folder) for r in members)}.'
                )
        found[label] = {
            name: members[0].fingerprint(name) for name in ('data', 'tokenizer', 'evaluation', 'text')
        }
    return found
