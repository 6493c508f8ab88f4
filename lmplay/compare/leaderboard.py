"""All finished runs of a folder, ranked within each group that may be compared."""

import statistics
from pathlib import Path

from ..errors import UserError
from .report import figure_text, number, page, write_csv, write_text
from .results import METRICS, Run, find_runs, group

COLUMNS = ('total_parameters', 'active_parameters', 'tokens', 'flops', 'seconds', 'memory')


def rank(runs: list[Run], metric: str) -> list[dict]:
    """Groups of runs with equal fingerprints, the largest first; in each its experiments, best first."""
    by_fingerprint: dict[tuple, list[Run]] = {}
    names = ('text',) if metric == 'bits_per_byte' else ('data', 'tokenizer', 'evaluation')
    for run in runs:
        by_fingerprint.setdefault(tuple(run.fingerprint(n) for n in names), []).append(run)
    tables = []
    for members in sorted(by_fingerprint.values(), key=lambda m: (-len(m), str(m[0].folder))):
        rows = []
        for label, of_label in group(members).items():
            losses = [r.loss(metric) for r in of_label]
            costs = [r.cost for r in of_label]
            rows.append(
                {
                    'experiment': label,
                    'seeds': len(losses),
                    metric: statistics.mean(losses),
                    'sd': statistics.stdev(losses) if len(losses) > 1 else None,
                    'total_parameters': of_label[0].facts['total_parameters'],
                    'active_parameters': of_label[0].facts['active_parameters'],
                }
                | {k: statistics.mean(c[k] for c in costs) for k in ('tokens', 'flops', 'seconds')}
                | {
                    'memory': max(c['memory'] or 0 for c in costs) or None,
                    'runs': ' '.join(str(r.folder) for r in of_label),
                }
            )
        rows.sort(key=lambda row: (row[metric] != row[metric], row[metric]))
        run = members[0]
        tables.append(
            {
                'data': ', '.join(
                    dict.fromkeys(d for s in run.settings['stages'] for d in (s['mix'] or {s['dataset']: 1}))
                ),
                'tokenizer': run.facts['tokenizer'],
                'row_length': run.facts['row_length'],
                'tokens': int(run.documents['tokens'].sum()),
                'documents': len(run.documents['hash']),
                'rows': rows,
            }
        )
    return tables


def leaderboard(places: list[str], *, metric: str, out: Path | None) -> None:
    """Prints the ranking of all finished runs at or below `places`; with `out` writes it there as HTML and CSV too."""
    tables = rank(find_runs([Path(p) for p in places]), metric)
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = 160
    for t in tables:
        table = Table(title=heading(t), title_justify='left')
        for name in (
            '',
            'experiment',
            'seeds',
            METRICS[metric],
            'sd',
            'parameters',
            'active',
            'tokens',
            'FLOPs',
            'seconds',
            'memory',
        ):
            table.add_column(name, justify='left' if name == 'experiment' else 'right')
        for place, row in enumerate(t['rows'], 1):
            table.add_row(
                str(place),
                row['experiment'],
                str(row['seeds']),
                f'{row[metric]:.4f}',
                number(row['sd'], 2),
                *(figure_text(c, row[c]) for c in COLUMNS),
            )
        console.print(table)
    console.print(
        'A place in a list is no verdict: for that compare with paired seeds, lmp_compare --runs.',
        highlight=False,
    )
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"Can't write the leaderboard '{out}': {error.strerror}.") from error
        write_text(
            out / 'leaderboard.html',
            page(
                'leaderboard.html.j2',
                tables=tables,
                heading=heading,
                metric=metric,
                unit=METRICS[metric],
                columns=COLUMNS,
            ),
        )
        write_csv(
            out / 'leaderboard.csv',
            [
                {'group': i, 'place': place} | row
                for i, t in enumerate(tables, 1)
                for place, row in enumerate(t['rows'], 1)
            ],
        )
        console.print(f'Written to {out / "leaderboard.html"}', highlight=False, soft_wrap=True)


def heading(table: dict) -> str:
    return (
        f'{table["data"]}, {table["tokenizer"]} tokens in rows of {table["row_length"]}; held out: {table["documents"]:,} '
        f'documents, '
        f'{table["tokens"]:,} tokens'
    )
