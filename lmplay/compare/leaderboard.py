"""All finished runs of a folder, ranked within each group that may be compared."""

import math
import statistics
from pathlib import Path

from ..cli import cell, console
from ..errors import UserError
from ..files import user_path, write_text
from ..runs.finished import FinishedRun
from .grouping import METRICS, find_runs, find_started, group
from .numbers import figure_text, number
from .report import page, write_csv
from .tuning import apart_from_tuning

COLUMNS = ('total_parameters', 'active_parameters', 'tokens', 'flops', 'seconds', 'memory')
HEADINGS = ('parameters', 'active', 'tokens', 'FLOPs', 'seconds', 'memory')
NO_VERDICT = 'A rank is not a verdict: for one, compare with paired seeds, lmp_compare --runs.'


def rank(runs: list[FinishedRun], metric: str) -> list[dict]:
    """Groups of runs that may be compared, the largest first; in each its experiments, best first."""
    names = ('text',) if metric == 'bits_per_byte' else ('data', 'tokenizer', 'evaluation')
    comparable: dict[tuple, list[FinishedRun]] = {}
    for run in runs:
        key = (run.causal, *(run.fingerprints[name] for name in names))
        comparable.setdefault(key, []).append(run)
    tables = []
    for members in sorted(comparable.values(), key=lambda m: (-len(m), str(m[0].folder))):
        members = apart_from_tuning(members)
        rows = [_row(label, of_label, metric) for label, of_label in group(members).items()]
        rows.sort(key=lambda row: (row[metric] != row[metric], row[metric]))  # NaN last
        run = members[0]
        stages = run.stage_settings.values()
        tables.append(
            {
                'data': ', '.join(dict.fromkeys(d for s in stages for d in (s['mix'] or {s['dataset']: 1}))),
                'tokenizer': run.last_stage['tokenizer'],
                'causal': run.causal,
                'row_length': run.last_stage['row_length'],
                'tokens': int(run.documents['tokens'].sum()),
                'documents': len(run.documents['hash']),
                'rows': rows,
            }
        )
    return tables


def _row(label: str, runs: list[FinishedRun], metric: str) -> dict:
    losses, costs = [r.loss(metric) for r in runs], [r.cost for r in runs]
    return {
        'experiment': label,
        'seeds': len(losses),
        metric: statistics.mean(losses),
        'sd': statistics.stdev(losses) if len(losses) > 1 and all(map(math.isfinite, losses)) else None,
        'total_parameters': runs[0].last_stage['total_parameters'],
        'active_parameters': runs[0].last_stage['active_parameters'],
        **{k: statistics.mean(c[k] or 0.0 for c in costs) for k in ('tokens', 'flops', 'seconds')},
        'memory': max(c['memory'] or 0 for c in costs) or None,
        'runs': ' '.join(str(r.folder) for r in runs),
    }


def leaderboard(places: list[str], *, metric: str, out: Path | None) -> None:
    """Prints the ranking of all finished runs at or below `places`; writes it as HTML and CSV to `out`."""
    folders = [user_path(p) for p in places]
    found = find_runs(folders)
    left_out = [
        f"the trained model of '{run.folder}' breaks the contract ({run.broken_contract[0]})"
        for run in found
        if run.broken_contract
    ]
    left_out += [f"'{folder}' is not finished: {why}" for folder, why in find_started(folders).items()]
    for line in left_out:
        print(f'Left out: {line}')
    tables = rank([run for run in found if not run.broken_contract], metric)
    _show(tables, metric)
    if out is not None:
        _write(tables, metric, left_out, out)
        print(f'Written to {out / "leaderboard.html"}')


def _show(tables: list[dict], metric: str) -> None:
    from rich.table import Table

    out = console()
    for t in tables:
        table = Table(title=cell(heading(t)), title_justify='left')
        for name in ('', 'experiment', 'seeds', METRICS[metric], 'sd', *HEADINGS):
            table.add_column(name, justify='left' if name == 'experiment' else 'right')
        for place, row in enumerate(t['rows'], 1):
            table.add_row(
                str(place),
                cell(row['experiment']),
                str(row['seeds']),
                f'{row[metric]:.4f}' if math.isfinite(row[metric]) else '–',
                number(row['sd'], 2),
                *(figure_text(c, row[c]) for c in COLUMNS),
            )
        out.print(table)
    out.print(NO_VERDICT, highlight=False)


def _write(tables: list[dict], metric: str, left_out: list[str], out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Can't write the leaderboard '{out}': {error.strerror}.") from error
    rows = [
        {'group': i, 'place': place} | row
        for i, t in enumerate(tables, 1)
        for place, row in enumerate(t['rows'], 1)
    ]
    write_csv(out / 'leaderboard.csv', rows)
    named = dict(metric=metric, unit=METRICS[metric], columns=COLUMNS, left_out=left_out)
    write_text(out / 'leaderboard.html', page('leaderboard.html.j2', tables=tables, heading=heading, **named))


def heading(table: dict) -> str:
    kind = '' if table['causal'] else 'non-causal models; '
    return (
        f'{kind}{table["data"]}, {table["tokenizer"]} tokens in sequences of {table["row_length"]}; held '
        f'out: {table["documents"]:,} documents, {table["tokens"]:,} tokens'
    )
