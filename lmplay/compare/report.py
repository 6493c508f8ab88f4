"""The report of a comparison: one self-contained page; beside it the same as JSON and CSV, and its pictures."""

import csv
import io
import json
import math
import os
from pathlib import Path

from ..errors import UserError
from ..routing.page import XRay
from ..routing.xray import xray
from . import figures
from .judge import FIGURES, TOLERANCE, signed
from .prepare import safe
from .results import METRICS, Run

PAGE, NUMBERS = 'report.html', 'results.json'
MARKS = {'better': '▲', 'worse': '▼', 'within noise': '≈', 'no verdict': '?', 'diverged': '✕'}


def number(value: float | None, digits: int = 4) -> str:
    """A number for people: grouped, or with an SI letter where it is large."""
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return '–'
    if isinstance(value, int) and abs(value) < 100_000:
        return f'{value:,}'
    for size, letter in ((1e18, 'E'), (1e15, 'P'), (1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if abs(value) >= size:
            return (
                f'{value / size:.{digits - 1}g} {letter}'
                if value < 999.5 * size
                else f'{value / size:,.0f} {letter}'
            )
    return f'{value:.{digits}g}'


def visible(text: str) -> str:
    """A model's text with the control characters that a page may not hold as pictures of them."""
    return ''.join(
        c if c >= ' ' and c != '\x7f' or c in '\n\t' else chr(0x2400 + ord(c)) if c < ' ' else '␡'
        for c in text
    )


def figure_text(key: str, value: float | None) -> str:
    if key == 'memory' and value is not None:
        return f'{value / 2**30:.2f} GiB'
    if key == 'seconds' and value is not None:
        return f'{value:,.1f}'
    return number(value)


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
        'soft': lambda text: Markup(escape(text).replace(',', Markup(',<wbr>'))),
    }
    environment.globals |= {'figure_text': figure_text, 'marks': MARKS, 'FIGURES': FIGURES}
    return environment.get_template(template).render(**content)


def axis_of(findings: dict, runs: dict[str, list[Run]]) -> str:
    """What the runs have in common, for the picture of their difference: tokens, flops or seconds."""
    if findings.get('budget'):
        return findings['budget'].partition('=')[0]
    return (
        'seconds'
        if all(s.get('seconds') for members in runs.values() for r in members for s in r.settings['stages'])
        else 'tokens'
    )


def pictures(findings: dict, runs: dict[str, list[Run]], folder: Path) -> dict[str, dict]:
    """name -> {'title', 'description', 'svg'}; PNGs of them go into the folder."""
    metric, alpha = findings['metric'], findings['alpha']
    x = axis_of(findings, runs)
    several = max(len(m) for m in runs.values()) > 1
    drawn: dict[str, dict] = {}

    def add(name: str, title: str, note: str, seen: str, figure) -> None:
        """note: how to read it; seen: what it shows, for those who don't see it."""
        if figure is not None:
            svg = figures.themed(
                figures.save(figure, name, folder),
                title=title,
                description=f'{seen} {note}',
                number=len(drawn),
            )
            drawn[name] = {'title': title, 'note': note, 'svg': svg}

    means = '; '.join(f'{e["label"]} ends at {number(e["mean"])}' for e in findings['experiments']) + '.'
    differences = ' '.join(e['sentence'] for e in findings['experiments'] if 'sentence' in e)
    spread = 'Line: mean of the seeds; band: from the least to the greatest.' if several else 'One seed.'
    interval = (
        f'Diamond: mean; thick bar: {100 * (1 - alpha):.3g} % interval over seeds; dots: seeds.'
        if several
        else f'Diamond: difference; thin bar: {100 * (1 - alpha):.3g} % interval over documents, of this seed alone.'
    )
    with figures.style():
        add(
            'verdicts',
            f'Difference to {findings["baseline"]}',
            interval,
            differences,
            figures.draw_verdicts(findings),
        )
        for axis, words in figures.AXES.items():
            add(
                f'{metric}-over-{axis}',
                f'Held-out {METRICS[metric]} over {words}',
                spread,
                means,
                figures.draw_loss(runs, axis, metric),
            )
        add(
            'difference',
            f'Difference to {findings["baseline"]} over {figures.AXES[x]}',
            'Below zero is better.'
            + (
                f' Band: {100 * (1 - alpha):.3g} % interval over seeds, at each evaluation by itself.'
                if several
                else ''
            ),
            differences,
            figures.draw_difference(runs, x, metric, alpha=alpha),
        )
    return drawn


def xrays(findings: dict, runs: dict[str, list[Run]], out: Path) -> dict[str, XRay | str]:
    """label -> X-ray of the first seed of each experiment with experts, written below `out`; or why there is none."""
    found: dict[str, XRay | str] = {}
    for label in findings['routing']:
        try:
            found[label] = xray(runs[label][0].folder, out=out / 'xray' / safe(label))
        except UserError as error:
            found[label] = str(error)
    return found


def routing_table(load: list[list[float]], names: list[str]) -> list[dict]:
    """Per routed layer: the busiest expert's share, how many experts are in use in effect (exp of the entropy), idle ones."""
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


def write_text(file: Path, text: str) -> None:
    temporary = file.with_name(f'.{file.name}')
    temporary.write_text(text, encoding='utf-8')
    os.replace(temporary, file)


def write_csv(file: Path, rows: list[dict]) -> None:
    out = io.StringIO()
    table = csv.DictWriter(out, list(dict.fromkeys(k for row in rows for k in row)), lineterminator='\n')
    table.writeheader()
    table.writerows(rows)
    write_text(file, out.getvalue())


def write_report(findings: dict, runs: dict[str, list[Run]], out: Path) -> Path:
    """Writes report.html, results.json, runs.csv, curves.csv, domains.csv, figures/ and, where experiments have experts,
    their X-rays into `out`; the page's path."""
    metric = findings['metric']
    drawn = pictures(findings, runs, out / 'figures')
    write_text(out / NUMBERS, json.dumps(findings, indent=1, allow_nan=False, ensure_ascii=False) + '\n')
    compared = {e['label']: e.get('comparison') for e in findings['experiments']}
    write_csv(
        out / 'runs.csv',
        [
            {
                'experiment': label,
                'seed': r.seed,
                metric: r.loss(metric),
                'difference': (compared[label] or {}).get('differences', {}).get(str(r.seed), ''),
                'bits_per_byte': r.loss('bits_per_byte'),
            }
            | r.cost
            | {k: r.facts[k] for k in ('total_parameters', 'trainable_parameters', 'active_parameters')}
            for label, members in runs.items()
            for r in members
        ],
    )
    write_csv(
        out / 'curves.csv',
        [
            {'experiment': label, 'seed': r.seed}
            | {k: v[k] for k in ('tokens', 'flops', 'seconds', 'loss', 'bits_per_byte', 'accuracy')}
            for label, members in runs.items()
            for r in members
            for v in r.validations
        ],
    )
    write_csv(
        out / 'domains.csv',
        [
            {'domain': row['domain'], 'experiment': label} | entry
            for row in findings['domains']
            for label, entry in row['experiments'].items()
        ],
    )
    rays = xrays(findings, runs, out)
    routing = {}
    for label, load in findings['routing'].items():
        ray = rays[label]
        routing[label] = routing_table(
            load, ray.layers if isinstance(ray, XRay) else [f'layer {i}' for i in range(len(load))]
        )
    write_text(
        out / PAGE,
        page(
            'report.html.j2',
            f=findings,
            pictures=drawn,
            routing=routing,
            tolerance=TOLERANCE,
            metric=metric,
            xrays=rays,
            axis=axis_of(findings, runs),
            out=out,
        ),
    )
    return out / PAGE
