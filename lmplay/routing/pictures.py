"""Curves over training, and the map of the keys. P training points, L layers, E experts."""

import numpy as np

from ..plots.curves import smooth
from ..plots.decoration import label
from ..plots.plot import COLOURS
from .history import History
from .svg import FACE, FEW, INK, colour_bar, new_figure, svg

ALARM = {'warning': '#E69F00', 'collapse': '#D55E00'}
HUES = 6  # of COLOURS; black, the last, is the text's


@svg
def load_curves(history: History, layer: int, name: str):
    """Expert load of one layer over training, alarms marked: stacked areas, or a heat map of many experts."""
    load_PE = history.load[:, layer]
    figure, axes = (_areas if load_PE.shape[1] <= FEW else _map)(history.step, load_PE, name)
    _mark_alarms(axes, history)
    _legend(figure, history)
    return figure


def _areas(step, load_PE, name):
    from matplotlib.colors import to_rgb

    figure, (axes,) = new_figure(5.2, 3.4)
    width = max(1, len(step) // 40)
    load_EP = np.stack([smooth(load, width) for load in load_PE.T])
    if len(step) == 1:
        step, load_EP = np.repeat(step, 2) + [-0.5, 0.5], np.repeat(load_EP, 2, 1)
    ends = [0.0]
    for e, band in enumerate(axes.stackplot(step, load_EP, edgecolor=FACE, lw=0.4)):
        # neighbours differ in hue
        hue, shade = COLOURS[(e + e // HUES * 3) % HUES], (0.9, 0.5, 0.25)[e // HUES]
        band.set_facecolor((*to_rgb(hue), shade))
        ends.append(ends[-1] + load_EP[e, -1])
        if load_EP[e, -1] > 0.02:
            place = (1.01, (ends[-2] + ends[-1]) / 2)
            axes.annotate(str(e), place, xycoords='axes fraction', va='center', fontsize=7.5)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(lambda v, _: f'{v:.0%}')
    _plain_axes(axes, f'{name}: share of assignments, by expert', '')
    axes.margins(x=0)
    return figure, axes


def _map(step, load_PE, name):
    from matplotlib.colors import PowerNorm

    E = load_PE.shape[1]
    figure, (axes,) = new_figure(9, 3.2)
    order = np.argsort(-load_PE[-len(load_PE) // 5 :].mean(0), kind='stable')
    image = axes.imshow(
        load_PE.T[order],
        aspect='auto',
        interpolation='none',
        cmap='viridis',
        norm=PowerNorm(0.5, 0, load_PE.max()),
        extent=(step[0] - 0.5, step[-1] + 0.5, E - 0.5, -0.5),
    )
    colour_bar(figure, image, axes).ax.yaxis.set_major_formatter(lambda v, _: f'{v:.1%}')
    axes.set_title(f'{label(name)}: share of assignments', pad=12)
    axes.set(xlabel='step', ylabel=f'{E} experts, the busiest\nat the end on top')
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return figure, axes


@svg
def layer_curves(history: History, metric: str, names: list[str]):
    """A metric of every layer over training, alarms marked."""
    from matplotlib import colormaps

    step, values_PL = history.step, history.curves[metric]
    figure, (axes,) = new_figure(5.2, 3.2)
    shades = colormaps['viridis'](np.linspace(0.35, 0.85, len(names)))  # visible on white and on black
    marker = '.' if len(step) == 1 else None
    lines = []
    for values, name, shade in zip(values_PL.T, names, shades):
        lines += axes.plot(step, values, color=shade, lw=1.4, marker=marker, label=label(name))
    _plain_axes(axes, metric.replace('_', ' '), '')
    _mark_alarms(axes, history)
    _legend(figure, history, lines)
    return figure


@svg
def key_map(points, explained, usage, favours, groups: list[str], title: str):
    """Keys (E, 2) in two dimensions, sized by usage (E,).

    explained (2,): of the variance; favours (E,): the group served beyond its share, or -1.
    """
    from matplotlib.lines import Line2D

    figure, (axes,) = new_figure(5.2, 4.4)
    size = 10 + 170 * usage / max(float(usage.max()), 1e-30)
    handles, edge = [], dict(edgecolors=INK, linewidths=0.5, alpha=0.75)
    for g, name in [*enumerate(groups), (-1, 'unused here')]:
        chosen = favours == g
        if chosen.any():
            colour = COLOURS[g % HUES] if g >= 0 else 'none'
            axes.scatter(*points[chosen].T, s=size[chosen], color=colour, **edge)
            handles.append(Line2D([], [], ls='', marker='o', mfc=colour, mec=INK, mew=0.5, label=label(name)))
    if len(points) <= FEW:
        for e, point in enumerate(points):
            axes.annotate(str(e), point, fontsize=7, ha='center', va='center', color=INK)
    axes.set(title=label(title), xlabel=f'1st component, {explained[0]:.0%} of the variance')
    axes.set(ylabel=f'2nd, {explained[1]:.0%}')
    axes.grid(True)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    figure.legend(handles=handles, loc='outside lower center', ncols=min(5, len(handles)), fontsize=7.5)
    return figure


def _mark_alarms(axes, history: History):
    for step, kind, _ in history.alarms:
        axes.axvline(step, color=INK, lw=0.9, ls='-' if kind == 'collapse' else (0, (3, 2)))
        mark = dict(marker='v', ms=7, color=ALARM[kind], clip_on=False, ls='')
        axes.plot([step], [1.0], transform=axes.get_xaxis_transform(), **mark)


def _legend(figure, history: History, handles=()):
    from matplotlib.lines import Line2D

    kinds = dict.fromkeys(kind for _, kind, _ in history.alarms)
    alarms = [Line2D([], [], color=ALARM[k], ls='', marker='v', ms=7, label=f'alarm: {k}') for k in kinds]
    handles = [*handles, *alarms]
    if handles:
        columns = min(5, len(handles))
        look = dict(loc='outside lower center', ncols=columns, fontsize=7.5, handlelength=1.6)
        figure.legend(handles=handles, **look)


def _plain_axes(axes, title: str, unit: str):
    axes.set_title(label(title), pad=12)  # leaves room for the marks of alarms
    axes.set(xlabel='step', ylabel=unit)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(True)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    axes.margins(x=0.01)
