"""The task of drums: which type of drum. The kits are Hydrogen's."""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from tests.study.public_data.folders import Clip, clean
from tests.study.public_data.packages import Unpacked
from tests.study.public_data.sounds import decode, find_recordings

PACKAGES = ('hydrogen-drumkits', 'hydrogen-data')

# Kits by one author, or with shared recordings, are on one side.
_SPLITS = {
  **dict.fromkeys(('The Black Pearl 1.0', 'Gimme A Hand 1.0', 'VariBreaks', 'TR808EmulationKit'), 'test'),
  **dict.fromkeys(('ColomboAcousticDrumkit', 'Millo-Drums_v.1', 'Millo_MultiLayered2', 'Millo_MultiLayered3'), 'valid'),
}
_LEFT_OUT = 'GMRockKit'  # Has the recordings of The Black Pearl.
_LABELS = (  # The first pattern that is in an instrument's name decides.
  ('hihat', r'h(i)?[ -_]?hat|\bhh\b|hat\b|closedhat|openhat|hihat|\bo?hh'),
  ('clap', r'clap|snap'),
  ('cymbal', r'crash|ride|cymbal|splash|china|bell\b'),
  ('stick', r'stick|rim|click|clave'),
  ('snare', r'snare|^sn_|\bsd'),
  ('kick', r'kick|bass ?drum|\bbd\b'),
  ('tom', r'tom|conga|bongo'),
  (
    'percussion',
    r'cowbell|tambourine|maraca|shaker|woodblock|djembe|sangban|dununba|kenkeni|glass|whistle|cajon',
  ),
)
_UNCLEAR = r'\bhat choke|drum \d'


def drum_clips(packages: Unpacked) -> Iterator[Clip]:
  """Yields the recordings of drum kits, labelled by what is struck. A kit has one split."""
  for package in PACKAGES:
    for kit in find_recordings(packages[package], ('.xml',)):
      if kit.name == 'drumkit.xml' and kit.parent.name != _LEFT_OUT:
        yield from _kit_clips(kit, package)


def _kit_clips(description: Path, package: str) -> Iterator[Clip]:
  kit = description.parent.name
  for instrument, file_name in instruments(description):
    label = drum_label(instrument)
    path = description.parent / file_name
    if label and path.exists():
      columns = {'label': label, 'kit': kit, 'instrument': instrument, 'split': _SPLITS.get(kit, 'train')}
      name = f'{clean(kit)}_{clean(file_name.rsplit(".", 1)[0])}'
      yield Clip(name, decode(path), columns | {'source': package}, longest=2, normalize=True)


def instruments(description: Path) -> Iterator[tuple[str, str]]:
  """Yields the instruments of a drumkit.xml, each with the name of one of its files."""
  # Some kits are in Hydrogen's XML namespace and some in none; '{*}' is any.
  for instrument in ElementTree.parse(description).findall('.//{*}instrument'):
    name = (instrument.findtext('{*}name') or '').strip()
    for file_name in sorted({file.text for file in instrument.findall('.//{*}filename') if file.text}):
      yield name, file_name


def drum_label(instrument: str) -> str | None:
  """Returns the type of drum that an instrument's name tells, None where it tells none."""
  name = instrument.lower()
  if re.search(_UNCLEAR, name):
    return None
  return next((label for label, pattern in _LABELS if re.search(pattern, name)), None)
