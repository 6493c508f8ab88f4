"""The look of an X-ray's pictures, and how they become SVG."""

import functools
import io
import re
from collections.abc import Callable
from typing import Any

FEW = 16  # experts up to which cells carry their numbers and curves their own colours
NAMED = 64  # experts up to which their numbers stand below a wide picture
INK, GRID, FACE = '#26272b', '#c9cad1', '#fefefe'  # replaced by the colours of the reader's theme in `themed`
DARK = {INK: '#e4e5ea', GRID: '#4a4c55', FACE: 'none'}
STYLE: dict[Any, Any] = {
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


def svg(draw: Callable) -> Callable[..., str]:
    """Makes a function that draws a matplotlib figure return it as SVG, in the style of all pictures."""

    @functools.wraps(draw)
    def drawn(*arguments, **options) -> str:
        from matplotlib import rc_context

        with rc_context(STYLE):
            figure, out = draw(*arguments, **options), io.StringIO()
            figure.savefig(out, format='svg', metadata={'Date': None, 'Creator': None})
        return re.sub(r'<metadata>.*?</metadata>\s*', '', out.getvalue(), flags=re.DOTALL)

    return drawn


def themed(picture: str) -> str:
    """An SVG for a page: transparent, its lines and text light on a dark page."""
    names = {INK: '--ink', GRID: '--grid', FACE: '--face'}
    light = ';'.join(f'{n}:{"none" if c == FACE else c}' for c, n in names.items())
    dark = ';'.join(f'{n}:{DARK[c]}' for c, n in names.items())
    for colour, name in names.items():
        picture = picture.replace(colour, f'var({name})')
    style = f'<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>'
    return re.sub(r'(<svg[^>]*>)', lambda m: m[1] + style, picture, count=1, flags=re.DOTALL)


def new_figure(width: float, height: float, rows: int = 1):
    # unlike pyplot, it needs no display and shares no state with a caller's figures
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout='constrained')
    return figure, figure.subplots(rows, 1, squeeze=False)[:, 0]


def colour_bar(figure, image, axes, **options):
    bar = figure.colorbar(image, ax=axes, pad=0.01, **options)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=7)
    return bar
