"""The report's charts, as plotly.js figures (https://plotly.com/javascript/reference/).

A colour is written as the name of a CSS variable, such as `--accent`, or as `hue:120`: the page puts in the value that
light or dark mode has for it, and everything that the charts have in common, such as fonts and margins.
"""

import dataclasses
import html
from collections.abc import Sequence
from typing import Any

from selfie_jax.evaluation.protocol import LOG_MEL_STATISTICS, TRAINED, UNTRAINED
from selfie_jax.evaluation.reporting.results import MAJORITY

PALETTE = [f'--c{i}' for i in range(10)]
MARKERS = {  # From the weakest to the strongest.
  MAJORITY: {'symbol': 'line-ns', 'color': '--faint', 'size': 14, 'line': {'color': '--faint', 'width': 2}},
  LOG_MEL_STATISTICS: {'symbol': 'circle-open', 'color': '--muted', 'size': 10, 'line': {'width': 2}},
  UNTRAINED: {'symbol': 'circle', 'color': '--muted', 'size': 11},
  TRAINED: {'symbol': 'circle', 'color': '--accent', 'size': 14},
}
NAMES = {
  MAJORITY: 'majority class',
  LOG_MEL_STATISTICS: 'log-mel statistics',
  UNTRAINED: 'untrained encoder',
  TRAINED: 'trained encoder',
}


@dataclasses.dataclass(frozen=True)
class Chart:
  """A figure of the page."""

  name: str
  title: str  # Says what is to be seen.
  text: str  # How to read it.
  data: list[dict[str, Any]]
  layout: dict[str, Any]
  height: int  # Pixels.
  kind: str = 'wide'  # Or 'half', 'small': how much of the page's width it takes, where that is wide.


def plain(text: str) -> str:
  """Returns text that plotly shows as it is: it takes tags and entities for markup."""
  return html.escape(text, quote=False)


def short(label: str) -> str:
  """Returns a name that is no longer than an axis has room for."""
  return label if len(label) <= 18 else f'{label[:17]}…'


def name_axis(names: Sequence[str]) -> dict[str, Any]:
  """Returns an axis with a name at each whole number, from the top down."""
  return {
    'range': [len(names) - 0.5, -0.5],
    'tickvals': list(range(len(names))),
    'ticktext': [plain(short(name)) for name in names],
    'showgrid': False,
  }
