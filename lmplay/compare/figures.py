"""The pictures of a comparison: SVG that follows the reader's light or dark theme, and PNG."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..plots.decoration import label as plain_label
from ..plots.plot import COLOURS, LABELS
from ..runs.finished import FinishedRun
from .statistics import paired

AXES = {'tokens': 'tokens trained', 'flops': 'training FLOPs', 'seconds': 'seconds of training'}
INK, GRID = '#1b1f24', '#d0d7de'  # stand-ins that `themed` turns into colours of the page
STYLE: dict[Any, Any] = {
    'svg.fonttype': 'none',
    'svg.hashsalt': 'lmplay',
    'font.size': 10,
    'text.color': INK,
    'axes.edgecolor': INK,
    'axes.labelcolor': INK,
    'xtick.color': INK,
    'ytick.color': INK,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'grid.color': GRID,
    'grid.linewidth': 0.6,
    'axes.axisbelow': True,
    'axes.titlesize': 10,
    'axes.titlelocation': 'left',
    'legend.frameon': False,
    'legend.fontsize': 9,
}
WIDTH, HEIGHT = 4.9, 3.3  # inches; text stays legible on a phone


def colour_of(labels: Sequence[str]) -> dict[str, str]:
    """label -> a colour that colour-blind readers can tell apart; black follows the theme."""
    return {
        label: INK if (c := COLOURS[i % len(COLOURS)]) == '#000000' else c for i, label in enumerate(labels)
    }


def short(text: str, most: int = 30) -> str:
    return plain_label(text, most)


def themed(svg: str, *, title: str, description: str, number: int) -> str:
    """An SVG for inline use: in the page's colours, with title and description for screen readers."""
    svg = svg[svg.index('<svg') :].replace(INK, 'currentColor').replace(GRID, 'var(--grid)')
    svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
    names = sorted(set(re.findall(r'id="([^"]+)"', svg)), key=len, reverse=True)
    svg = re.sub(r'id="([^"]+)"', rf'id="f{number}-\1"', svg)  # ids are shared by the whole page
    for name in names:
        svg = svg.replace(f'url(#{name})', f'url(#f{number}-{name})').replace(
            f'href="#{name}"', f'href="#f{number}-{name}"'
        )
    svg = re.sub(
        r'<svg[^>]*?viewBox="([^"]+)"[^>]*>',
        lambda m: (
            f'<svg viewBox="{m[1]}" role="img" aria-labelledby="t{number} d{number}" '
            f'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
            f'<title id="t{number}">{_escape(title)}</title>'
            f'<desc id="d{number}">{_escape(description)}</desc>'
        ),
        svg,
        count=1,
        flags=re.DOTALL,
    )
    return svg.replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', '').replace('xlink:href', 'href')


def _escape(text: str) -> str:
    return text.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')


def save(figure, name: str, folder: Path) -> str:
    """Writes folder/name.png; returns the figure as SVG."""
    out = io.StringIO()
    figure.savefig(out, format='svg', transparent=True, metadata={'Date': None, 'Creator': None})
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f'{name}.png', dpi=160, facecolor='white', metadata={'Software': None})
    return out.getvalue()


def new_figure(height: float = HEIGHT):
    # unlike pyplot, it needs no display and shares no state with a caller's figures
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout='constrained')
    return figure, figure.subplots()


def style():
    """The look of all pictures, as a context."""
    from matplotlib import rc_context

    return rc_context(STYLE)


def curves(members: Sequence[FinishedRun], x: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """(x averaged over seeds (P,), metric by seed (S, P)) at their evaluations.

    Seeds evaluated after different numbers of tokens, as under a budget of seconds, are interpolated.
    """
    xs = [r.metrics('validation', x).values for r in members]
    found = [r.metrics('validation', metric) for r in members]
    ys = [curve.values for curve in found]
    if len({tuple(curve.tokens) for curve in found}) > 1:
        grid = np.linspace(max(own[0] for own in xs), min(own[-1] for own in xs), min(map(len, xs)))
        return grid, np.array([np.interp(grid, *curve) for curve in zip(xs, ys)])
    return np.mean(xs, axis=0), np.array(ys)


def _axis(axes, x: str) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_xlabel(AXES[x])
    if x != 'seconds':
        axes.xaxis.set_major_formatter(EngFormatter(sep=''))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    plain_numbers(axes.yaxis)
    axes.margins(x=0.02)


def plain_numbers(axis) -> None:
    """No offset and no power of ten beside the axis."""
    axis.get_major_formatter().set_useOffset(False)
    axis.get_major_formatter().set_scientific(False)


def add_legend(figure, axes) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc='outside lower left', ncols=2)


def draw_loss(runs: dict[str, list[FinishedRun]], x: str, metric: str):
    """Held-out loss over x: a line for the mean of the seeds, a band from the lowest to the highest."""
    figure, axes = new_figure()
    shown = []
    for label, colour in colour_of(list(runs)).items():
        xs, ys = curves(runs[label], x, metric)
        mean = ys.mean(0)
        axes.plot(xs, mean, color=colour, lw=1.8, label=short(label), marker='o' if len(xs) < 3 else None)
        if len(ys) > 1:
            axes.fill_between(xs, ys.min(0), ys.max(0), color=colour, alpha=0.2, lw=0)
        shown.append(ys[:, len(xs) // 10 :].ravel())  # the steep first tenth would flatten the rest
    values = np.concatenate(shown)
    values = values[np.isfinite(values)]
    if len(values) and (height := values.max() - values.min()):
        axes.set_ylim(values.min() - 0.06 * height, values.max() + 0.06 * height)
    axes.set_ylabel(LABELS[metric])
    _axis(axes, x)
    add_legend(figure, axes)
    return figure


def difference_curve(
    baseline: Sequence[FinishedRun], members: Sequence[FinishedRun], x: str, metric: str, *, alpha: float
):
    """(x, mean difference, low, high) over training, paired by seed; low and high are None for a single seed.

    The baseline's curve is interpolated where the two were evaluated at different x. None without overlap.
    """
    base = {r.seed: r for r in baseline}
    pairs = [(base[r.seed], r) for r in members if r.seed in base]
    if not pairs:
        return None
    xs, ys = curves([r for _, r in pairs], x, metric)
    bx, by = curves([b for b, _ in pairs], x, metric)
    inside = (xs >= bx[0]) & (xs <= bx[-1] * (1 + 1e-9))
    differences = np.stack([own[inside] - np.interp(xs[inside], bx, other) for own, other in zip(ys, by)])
    if not inside.any() or not np.isfinite(differences).all():
        return None
    if len(pairs) < 2:
        return xs[inside], differences[0], None, None
    results = [paired(column, alpha=alpha) for column in differences.T]
    return xs[inside], *(np.array([getattr(t, k) for t in results]) for k in ('mean', 'low', 'high'))


def draw_difference(
    runs: dict[str, list[FinishedRun]], x: str, metric: str, *, labels: Sequence[str], alpha: float
):
    """Difference of these experiments from the baseline over x with its interval; None without any."""
    baseline = next(iter(runs))
    colours = colour_of(list(runs))
    found = {
        label: d
        for label in labels
        if (d := difference_curve(runs[baseline], runs[label], x, metric, alpha=alpha)) is not None
    }
    if not found:
        return None
    figure, axes = new_figure()
    axes.axhline(0, color=colours[baseline], lw=1.4, label=short(baseline))
    extent = 0.0
    for label, (xs, mean, low, high) in found.items():
        axes.plot(
            xs, mean, color=colours[label], lw=1.8, label=short(label), marker='o' if len(xs) < 3 else None
        )
        late = slice(len(xs) // 2, None)  # the first evaluations would flatten the rest
        extent = max(extent, np.abs(mean[late]).max() * 1.3)
        if low is not None and high is not None:
            axes.fill_between(xs, low, high, color=colours[label], alpha=0.2, lw=0)
            extent = max(extent, np.abs([low[late], high[late]]).max() * 1.06)
    if extent:
        axes.set_ylim(-extent, extent)
    axes.set_ylabel(f'difference in {LABELS[metric]}')
    _axis(axes, x)
    add_legend(figure, axes)
    return figure


def draw_verdicts(findings: dict):
    """Each experiment's difference from the baseline: a dot for each seed, the mean, its interval."""
    rows = [e for e in findings['experiments'] if 'comparison' in e and e['comparison']['mean'] is not None]
    if not rows:
        return None
    colours = colour_of([e['label'] for e in findings['experiments']])
    figure, axes = new_figure(0.9 + 0.55 * len(rows))
    axes.axvline(0, color=INK, lw=1.2)
    for i, entry in enumerate(rows):
        found, colour = entry['comparison'], colours[entry['label']]
        over_seeds = found['low'] is not None
        low_high = [found['low'], found['high']] if over_seeds else found['documents'] or [found['mean']] * 2
        seeds = list(found['differences'].values())
        axes.plot(low_high, [i, i], color=colour, lw=2.5 if over_seeds else 1.2, solid_capstyle='butt')
        axes.plot(seeds, [i - 0.18] * len(seeds), '.', color=colour, ms=5, alpha=0.7)
        axes.plot(found['mean'], i, 'D', color=colour, ms=7)
    extent = max(abs(v) for v in axes.get_xlim())
    axes.set_xlim(-extent, extent)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [short(e['label'], 20) for e in rows])
    axes.grid(axis='y', visible=False)
    plain_numbers(axes.xaxis)
    axes.locator_params(axis='x', nbins=5)
    axes.set_xlabel(f'← better · {findings["unit"]} · worse →')
    return figure
