"""The pictures of an X-ray, as SVG. Rows are groups of tokens or layers, columns are experts.

L layers, E experts, P training points.
"""

import io
import re

import numpy as np

from ..plots.curves import smooth
from ..plots.plot import COLOURS
from .history import History

FEW = 16  # experts up to which cells carry their numbers and curves their own colours
NAMED = 64  # experts up to which their numbers stand below a wide picture
INK, GRID, FACE = '#26272b', '#c9cad1', '#fefefe'  # made to follow the reader's theme in `themed`
DARK = {INK: '#e4e5ea', GRID: '#4a4c55', FACE: 'none'}
ALARM = {'warning': '#E69F00', 'collapse': '#D55E00'}
STYLE = {
    'svg.fonttype': 'none',
    'svg.hashsalt': 'lmplay',
    'font.size': 9,
    'text.color': INK,
    'axes.edgecolor': GRID,
    'axes.labelcolor': INK,
    'xtick.color': INK,
    'ytick.color': INK,
    'axes.titlesize': 10,
    'axes.titlelocation': 'left',
    'grid.color': GRID,
    'grid.linewidth': 0.5,
    'figure.facecolor': FACE,
    'axes.facecolor': 'none',
    'savefig.facecolor': FACE,
    'legend.frameon': False,
}


def _figure(width: float, height: float, rows: int = 1):
    from matplotlib.figure import Figure  # not pyplot: needs no display, and shares no state with a caller's

    figure = Figure(figsize=(width, height), layout='constrained')
    return figure, figure.subplots(rows, 1, squeeze=False)[:, 0]


def _svg(draw, *arguments, **options) -> str:
    from matplotlib import rc_context

    with rc_context(STYLE):
        figure, out = draw(*arguments, **options), io.StringIO()
        figure.savefig(out, format='svg', metadata={'Date': None, 'Creator': None})
    return re.sub(r'<metadata>.*?</metadata>\s*', '', out.getvalue(), flags=re.DOTALL)


def themed(svg: str) -> str:
    """A picture for a page: transparent, its lines and letters light on a dark page."""
    names = {INK: '--ink', GRID: '--grid', FACE: '--face'}
    light = ';'.join(f'{n}:{"none" if c == FACE else c}' for c, n in names.items())
    dark = ';'.join(f'{n}:{DARK[c]}' for c, n in names.items())
    for colour, name in names.items():
        svg = svg.replace(colour, f'var({name})')
    style = f'<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>'
    return re.sub(r'(<svg[^>]*>)', lambda m: m[1] + style, svg, count=1, flags=re.DOTALL)


def _cells(
    figure,
    axes,
    values: np.ndarray,
    rows: list[str],
    *,
    map_: str,
    norm,
    form=str,
    columns: np.ndarray | None = None,
):
    """A heat map on `axes`. columns: which experts they are, where not all in order. form: number -> what few cells show."""
    from matplotlib import colormaps

    colours = colormaps[map_].with_extremes(bad=GRID)
    image = axes.imshow(
        np.ma.masked_invalid(values), aspect='auto', interpolation='none', cmap=colours, norm=norm
    )
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    R, E = values.shape
    if E <= FEW:
        axes.set_xticks(range(E), range(E) if columns is None else columns)
        axes.set_xticks(np.arange(E - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(R - 1) + 0.5, minor=True)
        axes.grid(which='minor', color=FACE, lw=1.2)
        axes.tick_params(which='minor', length=0)
        for (r, e), value in np.ndenumerate(values):
            if np.isfinite(value):
                red, green, blue, _ = colours(norm(value))
                bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.55
                axes.text(
                    e,
                    r,
                    form(value),
                    ha='center',
                    va='center',
                    fontsize=8,
                    color='#000000' if bright else '#ffffff',
                )
    elif columns is not None:
        axes.set_xticks(range(E), columns, rotation=90, fontsize=6) if E <= NAMED else axes.set_xticks([])
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=12)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=7)
    return bar


def by_favour(fractions: np.ndarray, load: np.ndarray) -> np.ndarray:
    """Experts in an order in which those that favour the same group stand together, the strongest first, the unused last."""
    lift = np.nan_to_num(fractions / np.where(load > 0, load, np.inf))
    return np.lexsort((-lift.max(0), np.where(load > 0, lift.argmax(0), len(lift))))


def group_heat(fractions: np.ndarray, load: np.ndarray, rows: list[str], title: str) -> str:
    """Fraction (R, E) of each group's assignments to each expert. Of many experts, sorted, and below it which group an expert
    serves more than its share."""
    return _svg(_group_heat, fractions, load, rows, title)


def _group_heat(fractions, load, rows, title):
    from matplotlib.colors import Normalize, PowerNorm

    R, E = fractions.shape
    top = max(float(np.nanmax(fractions)), 1e-9)
    if E <= FEW:
        figure, (axes,) = _figure(2.2 + 0.46 * E, 0.95 + 0.34 * R)
        bar = _cells(
            figure,
            axes,
            fractions,
            rows,
            map_='viridis',
            norm=Normalize(0, top),
            form=lambda v: f'{100 * v:.0f}',
        )
        bar.ax.yaxis.set_major_formatter(lambda v, _: f'{v:.0%}')
        axes.set(title=f'{title}: % of assignments', xlabel='expert')
        return figure
    order = by_favour(fractions, load)
    figure, (upper, lower) = _figure(9, 1.7 + 0.44 * R, rows=2)
    bar = _cells(
        figure, upper, fractions[:, order], rows, map_='viridis', norm=PowerNorm(0.5, 0, top), columns=order
    )
    bar.ax.yaxis.set_major_formatter(lambda v, _: f'{v:.1%}')
    upper.set_title(f'{title}: share of assignments')
    upper.set_xticks([])
    with np.errstate(divide='ignore', invalid='ignore'):
        lift = np.clip(np.log2(fractions / load), -3, 3)[:, order]
    bar = _cells(figure, lower, lift, rows, map_='RdBu_r', norm=Normalize(-3, 3), columns=order)
    bar.set_ticks([-3, 0, 3], labels=['⅛ ×', '1 ×', '8 ×'])
    idle = ', unused ones at the end' if (load == 0).any() else ''
    lower.set(
        title="against the expert's share of all text",
        xlabel=f'{E} experts, those that favour the same row together{idle}',
    )
    return figure


def _alarms(axes, history: History):
    for step, kind, _ in history.alarms:
        axes.axvline(step, color=INK, lw=0.9, ls='-' if kind == 'collapse' else (0, (3, 2)))
        axes.plot(
            [step],
            [1.0],
            transform=axes.get_xaxis_transform(),
            marker='v',
            ms=7,
            color=ALARM[kind],
            clip_on=False,
            ls='',
        )


def _legend(figure, history: History, handles=()):
    from matplotlib.lines import Line2D

    kinds = dict.fromkeys(kind for _, kind, _ in history.alarms)
    handles = [
        *handles,
        *(Line2D([], [], color=ALARM[k], ls='', marker='v', ms=7, label=f'alarm: {k}') for k in kinds),
    ]
    if handles:
        figure.legend(
            handles=handles,
            loc='outside lower center',
            ncols=min(5, len(handles)),
            fontsize=7.5,
            handlelength=1.6,
        )


def _plain_axes(axes, title: str, label: str):
    axes.set_title(title, pad=12)  # room for the marks of alarms
    axes.set(xlabel='step', ylabel=label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(True)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    axes.margins(x=0.01)


def load_curves(history: History, layer: int, name: str) -> str:
    """Expert load of one layer over training, alarms marked."""
    return _svg(_load_curves, history, layer, name)


def _load_curves(history, layer, name):
    from matplotlib.colors import PowerNorm, to_rgb

    step, load = history.step, history.load[:, layer]
    E = load.shape[1]
    if E <= FEW:
        figure, (axes,) = _figure(5.2, 3.4)
        load, ends = np.stack([smooth(load[:, e], max(1, len(step) // 40)) for e in range(E)]), [0.0]
        step, load = (
            (np.repeat(step, 2) + [-0.5, 0.5], np.repeat(load, 2, 1)) if len(step) == 1 else (step, load)
        )
        for e, band in enumerate(axes.stackplot(step, load, edgecolor=FACE, lw=0.4)):
            band.set_facecolor(
                (*to_rgb(COLOURS[(e + e // 6 * 3) % 6]), (0.9, 0.5, 0.25)[e // 6])
            )  # neighbours differ in hue
            ends.append(ends[-1] + load[e, -1])
            if load[e, -1] > 0.02:
                axes.annotate(
                    str(e),
                    (1.01, (ends[-2] + ends[-1]) / 2),
                    xycoords='axes fraction',
                    va='center',
                    fontsize=7.5,
                )
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(lambda v, _: f'{v:.0%}')
        _plain_axes(axes, f'{name}: share of assignments, by expert', '')
        axes.margins(x=0)
        _alarms(axes, history)
        _legend(figure, history)
        return figure
    figure, (axes,) = _figure(9, 3.2)
    order = np.argsort(-load[-len(load) // 5 :].mean(0), kind='stable')
    image = axes.imshow(
        load.T[order],
        aspect='auto',
        interpolation='none',
        cmap='viridis',
        norm=PowerNorm(0.5, 0, load.max()),
        extent=(history.step[0] - 0.5, history.step[-1] + 0.5, E - 0.5, -0.5),
    )
    bar = figure.colorbar(image, ax=axes, pad=0.01)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_formatter(lambda v, _: f'{v:.1%}')
    bar.ax.tick_params(length=0, labelsize=7)
    axes.set_title(f'{name}: share of assignments', pad=12)
    axes.set(xlabel='step', ylabel=f'{E} experts, the busiest\nat the end on top')
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    _alarms(axes, history)
    _legend(figure, history)
    return figure


def layer_curves(history: History, metric: str, names: list[str]) -> str:
    """A metric of every layer over training, alarms marked."""
    return _svg(_layer_curves, history, metric, names)


def _layer_curves(history, metric, names):
    from matplotlib import colormaps

    step, values = history.step, history.curves[metric]
    figure, (axes,) = _figure(5.2, 3.2)
    shades = colormaps['viridis'](np.linspace(0.35, 0.85, len(names)))  # seen on white and on black
    lines = [
        axes.plot(
            step, values[:, i], color=shade, lw=1.4, marker='.' if len(step) == 1 else None, label=name
        )[0]
        for i, (name, shade) in enumerate(zip(names, shades))
    ]
    _plain_axes(axes, metric.replace('_', ' '), '')
    _alarms(axes, history)
    _legend(figure, history, lines)
    return figure


def norm_heat(norms: list[np.ndarray], names: list[str], title: str) -> str:
    """(L, E) relative length of each expert's drift."""
    return _svg(_norm_heat, np.stack(norms), names, title)


def _norm_heat(norms, names, title):
    from matplotlib.colors import Normalize

    L, E = norms.shape
    figure, (axes,) = _figure(min(9, 2.4 + 0.5 * E), 1 + 0.34 * L)
    _cells(
        figure,
        axes,
        norms,
        names,
        map_='viridis',
        norm=Normalize(0, max(float(norms.max()), 1e-9)),
        form='{:.2g}'.format,
        columns=np.arange(E),
    )
    axes.set(title=title, xlabel='expert')
    return figure


def chain(alike: np.ndarray) -> np.ndarray:
    """An order of experts in which each stands beside one like it: (E, E) likeness to (E,), from the one most like others on."""
    order = [int(alike.sum(1).argmax())]
    left = set(range(len(alike))) - set(order)
    while left:
        order.append(max(left, key=lambda e: (alike[order[-1], e], -e)))
        left.remove(order[-1])
    return np.array(order)


def square_heat(values: np.ndarray, title: str, *, signed: bool) -> str:
    """(E, E) between experts; signed: cosines, else shares of tokens (on the diagonal an expert's own). Many are put in an order
    in which those stand together that are alike."""
    return _svg(_square_heat, values, title, signed)


def _square_heat(values, title, signed):
    from matplotlib.colors import Normalize, PowerNorm

    E = len(values)
    few = E <= FEW
    own = np.maximum(np.diag(values), 1e-30)
    order = (
        np.arange(E)
        if few
        else chain(np.nan_to_num(values if signed else values / np.sqrt(np.outer(own, own))))
    )
    values = values[order][:, order].copy()
    np.fill_diagonal(values, np.nan)
    top = max(float(np.nanmax(values, initial=0)), 1e-9)
    side = 1.2 + 0.4 * E if few else 4.6
    figure, (axes,) = _figure(side + 1.2, side)
    bar = _cells(
        figure,
        axes,
        values,
        [str(e) for e in order] if few else [],
        map_='RdBu_r' if signed else 'viridis',
        norm=Normalize(-1, 1) if signed else PowerNorm(0.5, 0, top),
        form=lambda v: f'{v:.2f}' if signed else f'{100 * v:.0f}',
        columns=None if few else order,
    )
    if not signed:
        bar.ax.yaxis.set_major_formatter(lambda v, _: f'{v:.1%}')
    axes.set(title=title, xlabel='expert' if few else f'{E} experts, each beside one like it')
    if not few:
        axes.set(xticks=[], yticks=[])
    return figure


def key_map(
    points: np.ndarray,
    explained: np.ndarray,
    usage: np.ndarray,
    favours: np.ndarray,
    groups: list[str],
    title: str,
) -> str:
    """Keys in two dimensions (E, 2), sized by usage, coloured by the group that they serve more than their share (-1: none)."""
    return _svg(_key_map, points, explained, usage, favours, groups, title)


def _key_map(points, explained, usage, favours, groups, title):
    from matplotlib.lines import Line2D

    figure, (axes,) = _figure(5.2, 4.4)
    size = 10 + 170 * usage / max(float(usage.max()), 1e-30)
    handles = []
    for g, name in [*enumerate(groups), (-1, 'unused here')]:
        chosen = favours == g
        if chosen.any():
            colour = COLOURS[g % 6] if g >= 0 else 'none'
            axes.scatter(
                *points[chosen].T, s=size[chosen], color=colour, edgecolors=INK, linewidths=0.5, alpha=0.75
            )
            handles.append(Line2D([], [], ls='', marker='o', mfc=colour, mec=INK, mew=0.5, label=name))
    if len(points) <= FEW:
        for e, point in enumerate(points):
            axes.annotate(str(e), point, fontsize=7, ha='center', va='center', color=INK)
    axes.set(
        title=title,
        xlabel=f'1st component, {explained[0]:.0%} of the variance',
        ylabel=f'2nd, {explained[1]:.0%}',
    )
    axes.grid(True)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    figure.legend(handles=handles, loc='outside lower center', ncols=min(5, len(handles)), fontsize=7.5)
    return figure
