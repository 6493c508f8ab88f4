"""The report of a ladder: one self-contained page, with the same as JSON, CSV and pictures beside it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_text
from ..plots.decoration import decoration
from ..plots.plot import LABELS
from . import figures
from .ladder_findings import AXES
from .numbers import number
from .report import NUMBERS, PAGE, page, write_csv


def write_ladder(findings: dict, out: Path) -> Path:
    """Writes results.json, ladder.csv, then figures/ and report.html; returns the page's path. A picture that
    fails is left out with a warning."""
    write_text(out / NUMBERS, json.dumps(findings, indent=1, allow_nan=False) + '\n')
    write_csv(out / 'ladder.csv', rows(findings))
    content = page(
        'ladder.html.j2',
        f=findings,
        pictures=_pictures(findings, out / 'figures'),
        axes=AXES,
        size_text=size_text,
    )
    write_text(out / PAGE, content)
    return out / PAGE


def rows(findings: dict) -> list[dict]:
    """Rung, experiment and seed, with what each run cost and reached."""
    return [
        {'rung': rung['rung'], 'experiment': label, 'seed': seed, 'tokens': rung['tokens']}
        | {k: own[k] for k in ('parameters', 'flops', 'seconds')}
        | {findings['metric']: loss}
        for rung in findings['rungs']
        for label, own in rung['experiments'].items()
        for seed, loss in own['losses'].items()
    ]


def _pictures(findings: dict, folder: Path) -> list[dict]:
    fit = findings['fit']
    planned: list[tuple[str, str, str, Callable[[], Any]]] = [
        (
            'loss-over-compute',
            'Held-out loss over training compute',
            'Dots: seeds; line: their mean.'
            + (
                ' Dashed: the joint fit E + A C^-a' + ('.' if fit['identified'] else ', not identified.')
                if fit
                else ''
            ),
            lambda: draw_losses(findings),
        )
    ]
    for axis, words in AXES.items():
        title = f'{words.capitalize()} needed for the same loss, relative to {findings["baseline"]}'
        note = f'Below 1 is better. Bars: {100 * (1 - findings["alpha"]):.3g} % intervals over seeds.'
        planned.append((f'ratio-{axis}', title, note, lambda axis=axis: draw_ratios(findings, axis)))
    drawn = []
    for name, title, note, draw in planned:
        with decoration(f"The picture '{name}'"), figures.style():
            figure = draw()
            if figure is None:
                continue
            seen = ' '.join(entry['sentence'] for entry in findings['experiments'])
            svg = figures.save(figure, name, folder)
            description = f'{note} {seen}'
            svg = figures.themed(svg, title=title, description=description, number=len(drawn))
            drawn.append({'title': title, 'note': note, 'svg': svg})
    return drawn


def _labels(findings: dict) -> list[str]:
    return [findings['baseline'], *(entry['label'] for entry in findings['experiments'])]


def draw_losses(findings: dict):
    """Loss over training FLOPs, by experiment."""
    figure, axes = figures.new_figure()
    for label, colour in figures.colour_of(_labels(findings)).items():
        own = [rung['experiments'][label] for rung in findings['rungs']]
        known = [e for e in own if e['loss'] is not None]
        flops = [e['flops'] for e in known]
        axes.plot(flops, [e['loss'] for e in known], color=colour, lw=1.8, label=figures.short(label))
        for e in known:
            axes.plot(
                [e['flops']] * len(e['losses']), [*e['losses'].values()], '.', color=colour, ms=5, alpha=0.7
            )
        curve = findings['fit'] and findings['fit']['curves'].get(label)
        if curve and flops:
            xs = np.geomspace(min(flops), max(flops), 50)
            axes.plot(xs, findings['fit']['E'] + curve['A'] * xs ** -curve['a'], '--', color=colour, lw=0.9)
    axes.set_xscale('log')
    axes.set_xlabel('training FLOPs')
    axes.set_ylabel(LABELS[findings['metric']])
    figures.plain_numbers(axes.yaxis)
    figures.add_legend(figure, axes)
    return figure


def draw_ratios(findings: dict, axis: str):
    """The ratio at each rung with its interval, over the experiment's compute; None without any."""
    entries = [e for e in findings['experiments'] if e['axes'] and any(e['axes'][axis]['ratio'])]
    if not entries:
        return None
    colours = figures.colour_of(_labels(findings))
    figure, axes = figures.new_figure()
    axes.axhline(1, color=colours[findings['baseline']], lw=1.4, label=figures.short(findings['baseline']))
    for entry in entries:
        label, found = entry['label'], entry['axes'][axis]
        known = [k for k, v in enumerate(found['ratio']) if v is not None]
        xs = [findings['rungs'][k]['experiments'][label]['flops'] for k in known]
        ys = [found['ratio'][k] for k in known]
        bars = None
        if found['low'][known[0]] is not None:
            low, high = ([found[end][k] for k in known] for end in ('low', 'high'))
            bars = np.maximum(0, [np.subtract(ys, low), np.subtract(high, ys)])
        style = {'color': colours[label], 'marker': 'D', 'ms': 5, 'lw': 1.4, 'capsize': 3}
        axes.errorbar(xs, ys, yerr=bars, label=figures.short(label), **style)
    axes.set_xscale('log')
    axes.set_xlabel("the experiment's training FLOPs")
    axes.set_ylabel(f'ratio of {AXES[axis]}')
    figures.plain_numbers(axes.yaxis)
    figures.add_legend(figure, axes)
    return figure


def size_text(model: dict) -> str:
    """'3 x 96', depth and width of a rung; its parameters where it sets others."""
    if {'num_blocks', 'embed_dim'} <= model.keys():
        return f'{model["num_blocks"]} x {model["embed_dim"]}'
    return ', '.join(f'{k} {number(v) if isinstance(v, (int, float)) else v}' for k, v in model.items())
