"""The picture of curves that `tests.benchmarks.growth` draws."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
  from tests.benchmarks.growth import Curve

# Okabe and Ito's colours, which people with any kind of colour vision tell apart, and a marker of its own for each.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00')
MARKERS = 'osD^v'
COLUMNS = 2
# The same curves give the same bytes, and their names stay text.
_STYLE = {'svg.hashsalt': 'growth', 'svg.fonttype': 'none', 'font.size': 9, 'axes.grid': True, 'grid.alpha': 0.3}


def write_plot(curves: 'Sequence[Curve]', path: Path) -> None:
  """Writes a panel for each curve: both axes logarithmic, costs relative to those at its smallest size.

  Args:
    curves: what to show.
    path: an image's, of a format that matplotlib writes: growth.svg.
  """
  with matplotlib.rc_context(_STYLE):
    rows = -(-len(curves) // COLUMNS)
    figure = Figure(figsize=(9, 0.6 + 3 * rows), layout='constrained')
    figure.suptitle('What a train step costs, over its cost at the smallest size')
    for number, curve in enumerate(curves, start=1):
      axes = figure.add_subplot(rows, COLUMNS, number, xscale='log', yscale='log', xlabel=curve.name)
      for (name, costs), colour, marker in zip(curve.costs.items(), COLOURS, MARKERS, strict=False):
        slope = np.polyfit(np.log(curve.sizes), np.log(costs), 1)[0]
        label = f'{name}: exponent {slope:.2f}'
        axes.plot(curve.sizes, np.asarray(costs) / costs[0], color=colour, marker=marker, markersize=4, label=label)
      axes.set_xticks(curve.sizes, [f'{size:,}' for size in curve.sizes])
      axes.minorticks_off()
      # A flat curve shall look flat: the axis has at least a factor of 4, and room for the names above the curves.
      lowest, highest = axes.get_ylim()
      highest = max(2.0, highest)
      lowest = min(0.5, lowest)
      axes.set_ylim(lowest, highest * (highest / lowest) ** (0.1 * len(curve.costs)))
      axes.legend(loc='upper left', fontsize=7, framealpha=0.7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={'Date': None} if path.suffix == '.svg' else None)
