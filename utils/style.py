"""The look of every plot: Matplotlib's defaults, and the style of each way to hold a weight.

Everything that is told apart by colour is told apart by line, marker or hatch too, for gray print.
"""
import matplotlib
from matplotlib.figure import Figure

from utils.binarize import METHODS

matplotlib.rcParams.update({
    'font.size': 9, 'axes.titlesize': 9, 'axes.grid': True, 'axes.axisbelow': True,
    'grid.color': 'black', 'grid.alpha': 0.12,      # on any ground
    'hatch.linewidth': 0.6, 'savefig.dpi': 100})

REAL = dict(color='black', linestyle='-', marker='D')


def method_style(name: str) -> dict[str, object]:
    """Colour, line and marker of a method, or of 'real' weights."""
    return REAL if name == 'real' else METHODS[name].style


def legend_outside(figure: Figure, handles: list, side: str = 'upper'):
    """One legend in a row above ('upper') or below ('lower') all axes of the figure."""
    figure.legend(handles=handles, loc=f'outside {side} center', ncols=len(handles), frameon=False)
