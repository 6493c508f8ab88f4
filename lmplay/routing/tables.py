"""The tables of an X-ray, as CSV: everything that its pictures and its page show."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from .collect import RoutedTokens
from .findings import Findings
from .history import History
from .trace import Trace

Rows = Iterable[Iterable]


def write_tables(findings: Findings, folder: Path) -> list[str]:
    """Writes every table that has something to show into the folder; their names, sorted."""
    written = []
    for name, (header, rows) in tables(findings):
        written.append(f'{name}.csv')
        with open(folder / written[-1], 'w', newline='', encoding='utf-8') as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows([_shown(v) for v in row] for row in rows)
    return sorted(written)


def _shown(value):
    return f'{value:.6g}' if isinstance(value, (float, np.floating)) else value


def tables(findings: Findings) -> Iterator[tuple[str, tuple[list[str], Rows]]]:
    """Yields (name, (header, rows))."""
    yield 'summary', (list(findings.summary[0]), (row.values() for row in findings.summary))
    if findings.other is not None:
        yield 'other', (list(findings.summary[0]), (row.values() for row in findings.other.summary))
    if snapshots := findings.report.snapshots:
        yield 'snapshots', (['step', 'layer', 'expert', 'share'], _at_snapshots(snapshots, findings.names))
    for kind in findings.groups:
        yield f'{kind}s', (['layer', 'expert', kind, 'fraction', 'tokens'], _by_group(findings, kind))
    if history := findings.report.history:
        header = ['step', 'metric', 'layer', 'expert', 'value']
        yield 'training', (header, _over_training(history, findings.names))
        yield 'alarms', (['step', 'alarm', 'message'], history.alarms)
    if findings.drifts:
        yield 'drift', (['layer', 'expert', 'relative_norm', 'cosine'], _drift(findings))
        pairs = _pairs((layer, d.between) for layer, d in findings.drifts)
        yield 'drift_pairs', (['layer', 'expert', 'other', 'cosine'], pairs)
    if findings.keys:
        yield 'keys', (['layer', 'expert', 'x', 'y', 'usage', 'favours'], _keys(findings))
    if findings.coactivation:
        pairs = (row for row in _pairs(findings.coactivation) if row[-1])
        yield 'coactivation', (['layer', 'expert', 'other', 'fraction'], pairs)
    if trace := findings.report.trace:
        header = ['layer', 'position', 'token', 'token_id', 'written', 'rank', 'expert', 'weight']
        yield 'trace', (header, _traced(trace))
    header = ['layer', 'expert', 'rank', 'token', 'token_id', 'count', 'share', 'lift', 'before', 'after']
    yield 'favourites', (header, _favourites(findings))


def _at_snapshots(snapshots: History, names: list[str]) -> Rows:
    for step, load_LE in zip(snapshots.step, snapshots.load):
        for name, load_E in zip(names, load_LE):
            yield from ((step, name, e, share) for e, share in enumerate(load_E))


def _by_group(findings: Findings, kind: str) -> Rows:
    tokens = findings.tokens[kind]
    for layer, fractions in zip(findings.layers, findings.fractions[kind]):
        for g, name in enumerate(findings.groups[kind]):
            if tokens[g]:
                for e in range(layer.num_experts):
                    yield layer.name, e, name, fractions[g, e], tokens[g]


def _over_training(history: History, names: list[str]) -> Rows:
    for p, step in enumerate(history.step):
        for i, name in enumerate(names):
            for e in range(history.load.shape[2]):
                yield step, 'expert_load', name, e, history.load[p, i, e]
    for metric, values in history.curves.items():
        for p, step in enumerate(history.step):
            for i, name in enumerate(names):
                yield step, metric, name, '', values[p, i]


def _drift(findings: Findings) -> Rows:
    for layer, d in findings.drifts:
        for e in range(len(d.norm)):
            yield layer.name, e, d.norm[e], d.cosine[e]


def _pairs(matrices: Iterable[tuple[RoutedTokens, np.ndarray]]) -> Iterator[tuple]:
    """The entries below the diagonal of each layer's (E, E)."""
    for layer, values in matrices:
        for a in range(len(values)):
            for b in range(a):
                yield layer.name, a, b, values[a, b]


def _keys(findings: Findings) -> Rows:
    domains = findings.groups['domain']
    for key in findings.keys:
        for e, (point, usage, g) in enumerate(zip(key.points, key.usage, key.favours)):
            yield key.layer.name, e, *point, usage, domains[g] if g >= 0 else ''


def _traced(trace: Trace) -> Rows:
    for name, tokens in trace.layers:
        for t in tokens:
            for rank, (expert, weight) in enumerate(t.experts, 1):
                yield name, t.position, t.text, t.token, int(t.written), rank, expert, weight


def _favourites(findings: Findings) -> Rows:
    for layer, experts, _ in findings.favourites:
        for e, _, tokens in experts:
            for rank, t in enumerate(tokens, 1):
                yield layer.name, e, rank, t.text, t.token, t.count, t.share, t.lift, t.before, t.after
