"""The look of every plot: Matplotlib's defaults, and the style of each way to hold a weight.

Everything that is told apart by colour is told apart by line, marker or hatch too, for gray print.
"""
import functools
import logging
from collections.abc import Sequence

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure

from utils.binarize import METHODS
from utils.system import console

matplotlib.rcParams.update({
    'font.size': 9, 'axes.titlesize': 9, 'axes.grid': True, 'axes.axisbelow': True,
    'grid.color': 'black', 'grid.alpha': 0.12,      # on any ground
    'hatch.linewidth': 0.6, 'savefig.dpi': 100})
logging.getLogger('matplotlib.font_manager').setLevel(logging.ERROR)    # not of fonts without bold

DEFAULT_FONT = 'DejaVu Sans'    # which comes with Matplotlib
BESIDE = '0123456789.% …'       # what pictures add to names
NO_LETTERS = 'Last Resort', 'cm', 'STIXNonUnicode', 'STIXSize'  # boxes, and parts of formulas

REAL = dict(color='black', linestyle='-', marker='D')


def method_style(name: str) -> dict[str, object]:
    """Colour, line and marker of a method, or of 'real' weights."""
    return REAL if name == 'real' else METHODS[name].style


def drawable(names: Sequence[str]) -> list[str]:
    """The names as pictures can show them: one that no font here can draw becomes number: escapes.

    The numbers are those of the names, from 0. Figures that are made from now on use the fonts.
    """
    return [text if text == console.one_line(name) else f'{number}: {text}'
            for number, (name, text) in enumerate(zip(names, map(drawable_text, names)))]


def drawable_text(text: str) -> str:
    """The text as figures can show it that are made from now on, as escapes without a font."""
    text = console.one_line(text)
    font = font_for(text)
    if font is None:
        return text.encode('ascii', 'backslashreplace').decode()
    families = matplotlib.rcParams['font.family']
    if font.name not in (DEFAULT_FONT, *families):
        matplotlib.rcParams['font.family'] = [*families, font.name]
    return text


def font_for(text: str) -> font_manager.FontEntry | None:
    """The first font of this machine that has all characters of the text and BESIDE, if any."""
    needed = {*map(ord, text + BESIDE)}
    return next((font for font in fonts() if needed <= characters(font.fname)), None)


@functools.cache
def fonts() -> list[font_manager.FontEntry]:
    """The upright fonts of letters, DEFAULT_FONT first."""
    found = {font.name: font for font in font_manager.fontManager.ttflist
             if (font.style, font.weight) == ('normal', 400)
             and not font.name.startswith(NO_LETTERS)}
    return sorted(found.values(), key=lambda font: (font.name != DEFAULT_FONT, font.name))


@functools.cache
def characters(path: str) -> frozenset[int]:
    """Return the characters that the font file has; none if it cannot be read."""
    try:
        return frozenset(font_manager.get_font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def legend_outside(figure: Figure, handles: list, side: str = 'upper'):
    """One legend in a row above ('upper') or below ('lower') all axes of the figure."""
    figure.legend(handles=handles, loc=f'outside {side} center', ncols=len(handles), frameon=False)
