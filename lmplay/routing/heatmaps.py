"""Heat maps of an X-ray. Rows are groups of tokens, layers or experts; columns are experts.

R rows, L layers, E experts.
"""

from collections.abc import Callable

import numpy as np

from ..plots.decoration import label
from .svg import FACE, FEW, GRID, NAMED, colour_bar, new_figure, svg


@svg
def group_heat(fractions: np.ndarray, load: np.ndarray, rows: list[str], title: str):
    """Fraction (R, E) of each group's assignments to each expert; load (E,).

    Many experts are sorted, and a second map shows which group an expert serves beyond its share.
    """
    draw = _few_by_group if fractions.shape[1] <= FEW else _many_by_group
    return draw(fractions, load, rows, title, max(float(np.nanmax(fractions)), 1e-9))


def _few_by_group(fractions, load, rows, title, top):
    from matplotlib.colors import Normalize

    R, E = fractions.shape
    figure, (axes,) = new_figure(2.2 + 0.46 * E, 0.95 + 0.34 * R)
    bar = _cells(figure, axes, fractions, rows, 'viridis', Normalize(0, top), form=lambda v: f'{100 * v:.0f}')
    bar.ax.yaxis.set_major_formatter(lambda v, _: f'{v:.0%}')
    axes.set(title=f'{label(title)}: % of assignments', xlabel='expert')
    return figure


def _many_by_group(fractions, load, rows, title, top):
    from matplotlib.colors import Normalize, PowerNorm

    R, E = fractions.shape
    order = by_favour(fractions, load)
    figure, (upper, lower) = new_figure(9, 1.7 + 0.44 * R, rows=2)
    bar = _cells(figure, upper, fractions[:, order], rows, 'viridis', PowerNorm(0.5, 0, top), columns=order)
    bar.ax.yaxis.set_major_formatter(lambda v, _: f'{v:.1%}')
    upper.set_title(f'{label(title)}: share of assignments')
    upper.set_xticks([])
    with np.errstate(divide='ignore', invalid='ignore'):
        lift = np.clip(np.log2(fractions / load), -3, 3)[:, order]
    bar = _cells(figure, lower, lift, rows, 'RdBu_r', Normalize(-3, 3), columns=order)
    bar.set_ticks([-3, 0, 3], labels=['⅛ ×', '1 ×', '8 ×'])
    idle = ', unused ones last' if (load == 0).any() else ''
    lower.set(
        title="relative to the expert's share of all text",
        xlabel=f'{E} experts, grouped by the row that they favour{idle}',
    )
    return figure


@svg
def norm_heat(norms: list[np.ndarray], names: list[str], title: str):
    """(E,) relative drift of each expert, by layer."""
    from matplotlib.colors import Normalize

    norms_LE = np.stack(norms)
    L, E = norms_LE.shape
    figure, (axes,) = new_figure(min(9, 2.4 + 0.5 * E), 1 + 0.34 * L)
    scale = Normalize(0, max(float(norms_LE.max()), 1e-9))
    _cells(figure, axes, norms_LE, names, 'viridis', scale, form='{:.2g}'.format, columns=np.arange(E))
    axes.set(title=label(title), xlabel='expert')
    return figure


@svg
def cosine_heat(values: np.ndarray, title: str):
    """(E, E) cosines between experts."""
    from matplotlib.colors import Normalize

    figure, _ = _square(values, values, title, 'RdBu_r', Normalize(-1, 1), form='{:.2f}'.format)
    return figure


@svg
def share_heat(values: np.ndarray, title: str):
    """(E, E) share of the tokens that both experts serve; on the diagonal, that the expert serves."""
    from matplotlib.colors import PowerNorm

    own = np.maximum(np.diag(values), 1e-30)
    top = np.nanmax(np.where(np.eye(len(values)), np.nan, values), initial=0)
    figure, bar = _square(
        values,
        values / np.sqrt(np.outer(own, own)),
        title,
        'viridis',
        PowerNorm(0.5, 0, max(float(top), 1e-9)),
        form=lambda v: f'{100 * v:.0f}',
    )
    bar.ax.yaxis.set_major_formatter(lambda v, _: f'{v:.1%}')
    return figure


def _square(values, alike, title, colours, norm, *, form):
    """(E, E) between experts, without the diagonal. Many are ordered so that similar ones are adjacent."""
    E = len(values)
    few = E <= FEW
    order = np.arange(E) if few else chain(np.nan_to_num(alike))
    values = values[order][:, order].copy()
    np.fill_diagonal(values, np.nan)
    side = 1.2 + 0.4 * E if few else 4.6
    figure, (axes,) = new_figure(side + 1.2, side)
    rows = [str(e) for e in order] if few else []
    bar = _cells(figure, axes, values, rows, colours, norm, form=form, columns=None if few else order)
    axes.set(title=label(title), xlabel='expert' if few else f'{E} experts, each beside one like it')
    if not few:
        axes.set(xticks=[], yticks=[])
    return figure, bar


def by_favour(fractions: np.ndarray, load: np.ndarray) -> np.ndarray:
    """Experts grouped by the group that they favour, in each the strongest first; unused ones last."""
    lift = np.nan_to_num(fractions / np.where(load > 0, load, np.inf))
    return np.lexsort((-lift.max(0), np.where(load > 0, lift.argmax(0), len(lift))))


def chain(alike: np.ndarray) -> np.ndarray:
    """Likeness (E, E) to an order (E,) in which each expert is beside one like it, the most typical first."""
    order = [int(alike.sum(1).argmax())]
    left = set(range(len(alike))) - set(order)
    while left:
        order.append(max(left, key=lambda e: (alike[order[-1], e], -e)))
        left.remove(order[-1])
    return np.array(order)


def _cells(
    figure,
    axes,
    values: np.ndarray,
    rows: list[str],
    colours: str,
    norm,
    *,
    form: Callable[[float], str] = str,
    columns=None,
):
    """A heat map on `axes`; returns its colour bar.

    columns  which experts they are, where not all in order
    form     number -> what a cell shows where there are few
    """
    from matplotlib import colormaps

    map_ = colormaps[colours].with_extremes(bad=GRID)
    image = axes.imshow(
        np.ma.masked_invalid(values), aspect='auto', interpolation='none', cmap=map_, norm=norm
    )
    axes.set_yticks(range(len(rows)), [label(row) for row in rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    E = values.shape[1]
    if E <= FEW:
        axes.set_xticks(range(E), range(E) if columns is None else columns)
        _write_cells(axes, values, map_, norm, form)
    elif columns is not None and E <= NAMED:
        axes.set_xticks(range(E), columns, rotation=90, fontsize=6)
    elif columns is not None:
        axes.set_xticks([])
    return colour_bar(figure, image, axes, aspect=12)


def _write_cells(axes, values: np.ndarray, map_, norm, form) -> None:
    """Separates the cells and writes each one's number into it, black on light cells."""
    R, E = values.shape
    axes.set_xticks(np.arange(E - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(R - 1) + 0.5, minor=True)
    axes.grid(which='minor', color=FACE, lw=1.2)
    axes.tick_params(which='minor', length=0)
    for (r, e), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = map_(norm(value))
            bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.55
            colour = '#000000' if bright else '#ffffff'
            axes.text(e, r, form(value), ha='center', va='center', fontsize=8, color=colour)
