"""The report of a comparison: one self-contained page, with the same as JSON, CSV and pictures beside it."""

import csv
import difflib
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import write_text
from ..plots.decoration import decoration
from ..routing.page import XRay
from ..routing.xray import xray
from ..runs.finished import FinishedRun
from . import figures
from .grouping import METRICS
from .judge import TOLERANCE
from .numbers import figure_text, number, visible
from .prepare import safe
from .statistics import FEW_DOCUMENTS
from .sweep import told_settings
from .words import FIGURES, seeds_text, sequence_text, signed

PAGE, NUMBERS = 'report.html', 'results.json'
MARKS = {'better': '▲', 'worse': '▼', 'within noise': '≈', 'no verdict': '?', 'diverged': '✕'}


def write_report(findings: dict, runs: dict[str, list[FinishedRun]], out: Path) -> Path:
    """Writes the numbers (results.json, CSV), then figures/, X-rays of routed experiments, and report.html.

    Returns the page's path. A picture or X-ray that fails is left out with a warning.
    """
    out.mkdir(parents=True, exist_ok=True)
    numbers = json.dumps(findings, indent=1, allow_nan=False, ensure_ascii=False)
    write_text(out / NUMBERS, numbers.encode('utf-8', 'backslashreplace').decode() + '\n')
    for name, rows in tables(findings, runs).items():
        write_csv(out / name, rows)
    rays = xrays(findings, runs, out)
    content = page(
        'report.html.j2',
        f=findings,
        pictures=pictures(findings, runs, out / 'figures'),
        routing={
            label: routing_table(load, layer_names(rays[label], len(load)))
            for label, load in findings['routing'].items()
        },
        tolerance=TOLERANCE,
        metric=findings['metric'],
        xrays=rays,
        axis=axis_of(findings, runs),
        sources=sources(runs),
        kept={label: bool(members[0].source) for label, members in runs.items()},
        out=out,
    )
    write_text(out / PAGE, content)
    return out / PAGE


def write_csv(file: Path, rows: list[dict]) -> None:
    out = io.StringIO()
    table = csv.DictWriter(out, list(dict.fromkeys(k for row in rows for k in row)), lineterminator='\n')
    table.writeheader()
    table.writerows(rows)
    write_text(file, out.getvalue())


def tables(findings: dict, runs: dict[str, list[FinishedRun]]) -> dict[str, list[dict]]:
    """file name -> rows of it."""
    members = [(label, run) for label, of_label in runs.items() for run in of_label]
    return {
        'runs.csv': [_run_row(findings, label, run) for label, run in members],
        'curves.csv': [
            {'experiment': label, 'seed': run.seed}
            | {k: v[k] for k in ('tokens', 'flops', 'seconds', 'loss', 'bits_per_byte', 'accuracy')}
            for label, run in members
            for v in run.validations
        ],
        'domains.csv': [
            {'domain': row['domain'], 'experiment': label} | entry
            for row in findings['domains']
            for label, entry in row['experiments'].items()
        ],
    } | ({'tasks.csv': _task_rows(findings['tasks'])} if findings['tasks']['rows'] else {})


def _task_rows(tasks: dict) -> list[dict]:
    return [
        {key: row[key] for key in ('task', 'metric', 'items')}
        | {'experiment': label}
        | {key: entry.get(key, '') for key in ('score', 'difference', 'low', 'high')}
        for row in tasks['rows']
        for label, entry in row['experiments'].items()
    ]


def _run_row(findings: dict, label: str, run: FinishedRun) -> dict:
    metric = findings['metric']
    (entry,) = (e for e in findings['experiments'] if e['label'] == label)
    differences = entry.get('comparison', {}).get('differences', {})
    return {
        'experiment': label,
        'seed': run.seed,
        metric: run.loss(metric),
        'difference': differences.get(str(run.seed), ''),
        'bits_per_byte': run.loss('bits_per_byte'),
        **run.cost,
        **{k: run.last_stage[k] for k in ('total_parameters', 'trainable_parameters', 'active_parameters')},
    }


def axis_of(findings: dict, runs: dict[str, list[FinishedRun]]) -> str:
    """What the runs have in common, for the picture of their difference: tokens, flops or seconds."""
    if findings.get('budget'):
        return findings['budget'].partition('=')[0]
    stages = [s for members in runs.values() for run in members for s in run.stage_settings.values()]
    return 'seconds' if all(s.get('seconds') for s in stages) else 'tokens'


@dataclass
class Picture:
    """note: how to read it; seen: what it shows, for screen readers; draw: None where there is nothing."""

    name: str
    title: str
    note: str
    seen: str
    draw: Callable[[], Any]


def pictures(findings: dict, runs: dict[str, list[FinishedRun]], folder: Path) -> dict[str, dict]:
    """name -> {'title', 'note', 'svg'} of every picture that could be drawn; PNGs go into the folder."""
    drawn: dict[str, dict] = {}
    for picture in plan_pictures(findings, runs):
        with decoration(f"The picture '{picture.name}'"), figures.style():
            figure = picture.draw()
            if figure is None:
                continue
            svg = figures.themed(
                figures.save(figure, picture.name, folder),
                title=picture.title,
                description=f'{picture.seen} {picture.note}',
                number=len(drawn),
            )
            drawn[picture.name] = {'title': picture.title, 'note': picture.note, 'svg': svg}
    return drawn


def plan_pictures(findings: dict, runs: dict[str, list[FinishedRun]]) -> list[Picture]:
    metric, alpha, x = findings['metric'], findings['alpha'], axis_of(findings, runs)
    against = f'Difference from {findings["baseline"]}'
    interval, spread, band = _how_to_read(runs, alpha)
    for entry in findings['experiments']:
        if entry['stopped']:
            spread += f' Of {entry["label"]}, {len(entry["stopped"])} stopped early and are missing.'
    verdicts = ' '.join(e['sentence'] for e in findings['experiments'] if 'sentence' in e)
    ends = '; '.join(f'{e["label"]} ends at {number(e["mean"])}' for e in findings['experiments']) + '.'
    planned = [Picture('verdicts', against, interval, verdicts, lambda: figures.draw_verdicts(findings))]
    for axis, words in figures.AXES.items():
        title = f'Held-out {METRICS[metric]} over {words}'
        draw = partial(figures.draw_loss, runs, axis, metric)
        planned.append(Picture(f'{metric}-over-{axis}', title, spread, ends, draw))
    judged = [e['label'] for e in findings['experiments'] if e.get('comparison', {}).get('mean') is not None]
    draw = partial(figures.draw_difference, runs, x, metric, labels=judged, alpha=alpha)
    planned.append(Picture('difference', f'{against} over {figures.AXES[x]}', band, verdicts, draw))
    return planned


def _how_to_read(runs: dict[str, list[FinishedRun]], alpha: float) -> tuple[str, str, str]:
    """Notes on the pictures of the verdicts, of the losses, and of the difference over training."""
    percent = f'{100 * (1 - alpha):.3g} %'
    if max(len(members) for members in runs.values()) == 1:
        interval = f'Diamond: difference; thin bar: {percent} interval over documents, for this seed alone.'
        return interval, 'One seed.', 'Below zero is better.'
    return (
        f'Diamond: mean; thick bar: {percent} interval over new seeds and documents; dots: seeds.',
        'Line: mean of the seeds; band: from the lowest to the highest.',
        f'Below zero is better. Band: {percent} interval over seeds, for each evaluation by itself.',
    )


def xrays(findings: dict, runs: dict[str, list[FinishedRun]], out: Path) -> dict[str, XRay | str]:
    """label -> X-ray of a routed experiment, first seed, written below `out`; or why there is none."""
    found: dict[str, XRay | str] = {}
    for label in findings['routing']:
        found[label] = 'it could not be drawn.'
        with decoration(f'The X-ray of {label}'):
            try:
                found[label] = xray(runs[label][0].folder, out=out / 'xray' / safe(label))
            except UserError as error:
                found[label] = str(error)
    return found


def sources(runs: dict[str, list[FinishedRun]]) -> dict[str, dict]:
    """label -> unified diff of the baseline's source and the experiment's, as {'lines', 'added', 'removed'};
    empty where they are equal, or either was not kept."""
    baseline, *others = runs
    return {label: source_diff(runs[baseline][0].source, runs[label][0].source) for label in others}


def source_diff(old: dict[str, str], new: dict[str, str]) -> dict:
    """The unified diff of two folders of files, with its lines counted; empty where they are equal."""
    lines = []
    for path in sorted(old.keys() | new.keys()) if old and new else ():
        before, after = (side.get(path, '').splitlines() for side in (old, new))
        for text in difflib.unified_diff(
            before, after, f'baseline/{path}', f'experiment/{path}', lineterm=''
        ):
            head = text.startswith(('--- baseline/', '+++ experiment/'))
            kind = 'file' if head else {'+': 'added', '-': 'removed'}.get(text[0], 'same')
            lines.append({'kind': kind, 'text': text})
    counts = {kind: sum(line['kind'] == kind for line in lines) for kind in ('added', 'removed')}
    return {'lines': lines, **counts} if lines else {}


def layer_names(ray: XRay | str, layers: int) -> list[str]:
    return ray.layers if isinstance(ray, XRay) else [f'layer {i}' for i in range(layers)]


def routing_table(load: list[list[float]], names: list[str]) -> list[dict]:
    """By layer: the busiest expert's share, effective number of experts (exp of the entropy), idle ones."""
    rows = []
    for layer, shares in zip(names, load):
        total = sum(shares) or 1.0
        p = [s / total for s in shares]
        rows.append(
            {
                'layer': layer,
                'busiest': max(p),
                'effective': math.exp(-sum(v * math.log(v) for v in p if v > 0)),
                'idle': sum(v == 0 for v in p),
                'experts': len(p),
            }
        )
    return rows


def page(template: str, **content) -> str:
    """A template of this package, filled in; everything is escaped but what is marked safe."""
    import jinja2
    from markupsafe import Markup, escape

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / 'templates'),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        'number': number,
        'signed': signed,
        'visible': visible,
        'settings': told_settings,
        'soft': lambda text: Markup(escape(text).replace(',', Markup(',<wbr>'))),
    }
    environment.globals |= {
        'figure_text': figure_text,
        'seeds_text': seeds_text,
        'sequence_text': sequence_text,
        'marks': MARKS,
        'FIGURES': FIGURES,
        'few': FEW_DOCUMENTS,
    }
    text = environment.get_template(template).render(**content)
    return text.encode('utf-8', 'replace').decode('utf-8')
