"""This project and what people would use instead, back to back on this machine.

  pip install -r tests/benchmarks/requirements.txt     # the peers' packages; whose is missing is left out
  python tests/benchmarks/run.py [--only PART ...] [--cores 2] [--rounds 5] [--seconds 2] [--json FILE]

What is compared is units per CPU-second (of all threads and processes of a way), within a round; see rounds.py. The
share of the peak is that of the operations that the work needs by its definition (part.flops_per_unit) and the best
matrix product of the same round; see peak.py. Each part says in its own file what its ways are.
"""
# ruff: noqa: E402

import argparse
import dataclasses
import importlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import rich.box
import rich.table

from selfie_jax.errors import ArgumentParser, UserError, run_command
from selfie_jax.terminal import console, results
from tests.benchmarks import peak
from tests.benchmarks.machine import load, machine, versions
from tests.benchmarks.rounds import Results, Spread, Way, compare, spread

PARTS = ('step', 'log_mel', 'augment', 'crops', 'probes', 'training')
INSTALL = 'pip install -r tests/benchmarks/requirements.txt'
COLUMNS = ('way', '{unit} / CPU-s', '{unit} / s', 'ours / it, per CPU-s', 'target', 'share of the peak')


@dataclasses.dataclass(frozen=True)
class Row:
  """What became of a way.

  Attributes:
    part: name of the part.
    unit: what is counted.
    way: its name.
    per_cpu_second: units a CPU-second, of all threads and processes.
    per_second: units a second on the wall.
    ratio: how many times as many units a CPU-second the first way of the setting, ours, does; None: it is that one.
    target: what that should be at least, where there is a target.
    share: of the measured peak, where the work's operations are known.
    notes: further figures that the way gave, by what they are.
  """

  part: str
  unit: str
  way: str
  per_cpu_second: Spread
  per_second: Spread
  ratio: Spread | None
  target: float | None
  share: Spread | None
  notes: dict[str, Spread]

  @property
  def verdict(self) -> str:
    """The target and whether the median reached it."""
    if self.target is None or self.ratio is None:
      return ''
    return f'{self.target:g}: ' + ('reached' if self.ratio.median >= self.target else 'MISSED')

  def cells(self) -> tuple[str, ...]:
    """What a table shows, in the order of `COLUMNS`."""
    return (
      self.way,
      _short(self.per_cpu_second),
      f'{self.per_second.median:,.{_digits(self.per_second)}f}',
      self.ratio.text(2) if self.ratio else '',
      self.verdict,
      f'{100 * self.share.median:.0f} %' if self.share else '',
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
  """Reads the command line.

  Raises:
    UserError: there is no such part, or a number makes no sense.
  """
  parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--only', nargs='+', metavar='PART', default=PARTS, help=f'of {", ".join(PARTS)}')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--seconds', type=float, default=2.0, help='of each way in each round')
  parser.add_argument('--cores', type=int, default=2, help='of the machine, these many: the targets are for 2')
  parser.add_argument('--json', type=Path, metavar='FILE', help='write everything that was measured')
  options = parser.parse_args(arguments)
  if unknown := [name for name in options.only if name not in PARTS]:
    raise UserError(f'--only: there is no part {", ".join(unknown)}; the parts are {", ".join(PARTS)}')
  if options.json and not options.json.parent.is_dir():
    raise UserError(f'--json {options.json}: there is no folder {options.json.parent}: make it first')
  if options.rounds < 1 or options.cores < 1 or not options.seconds > 0:
    raise UserError(
      f'--rounds {options.rounds} --seconds {options.seconds:g} --cores {options.cores}: all must be greater than 0'
    )
  return options


def measure(ways: dict[str, Way], rounds: int, seconds: float) -> Results:
  """Compares ways of one setting, with the machine's peak among them where a share of it can be told."""
  counted = any(way.flops_per_unit for way in ways.values())
  return compare(ways | (peak.PRODUCTS if counted else {}), rounds, seconds)


def rows_of(part: ModuleType, ways: dict[str, Way], found: Results) -> list[Row]:
  """Says what became of the ways of one setting, the first of which is ours; of those left out, nothing."""
  ours, peaks, rows = next(iter(ways)), peak.of_rounds(found), []
  for name in filter(found.turns.__contains__, ways):
    compared = name != ours and ours in found.turns
    flops = ways[name].flops_per_unit
    shares = [flops * value / best for value, best in zip(found.per_cpu_second(name), peaks)] if flops else []
    row = Row(
      part=part.NAME,
      unit=part.UNIT,
      way=name,
      per_cpu_second=spread(found.per_cpu_second(name)),
      per_second=spread(found.per_second(name)),
      ratio=spread(found.ratios(ours, name)) if compared else None,
      target=part.TARGETS.get(name),
      share=spread(shares) if shares else None,
      notes={note: spread([turn.notes[note] for turn in found.turns[name]]) for note in found.turns[name][0].notes},
    )
    rows.append(row)
  return rows


def settings_of(ways: dict[str, Way]) -> list[dict[str, Way]]:
  """The ways by setting, in their order."""
  found: dict[str, dict[str, Way]] = {}
  for name, way in ways.items():
    found.setdefault(way.setting, {})[name] = way
  return list(found.values())


def show(title: str, unit: str, rows: list[Row]) -> None:
  """Prints a part's table."""
  table = rich.table.Table(title=title, title_justify='left', box=rich.box.SIMPLE)
  columns = COLUMNS if any(row.share for row in rows) else COLUMNS[:-1]
  for column in columns:
    table.add_column(column.format(unit=unit), justify='left' if column == 'way' else 'right')
  for row in rows:
    table.add_row(*row.cells()[: len(columns)])
  results.print(table)
  for row in rows:
    for note, values in row.notes.items():
      results.print(f'  {row.way}: {note}: {values.text(2)}')


def show_left_out(found: Results) -> None:
  """Prints a line for each way that could not be measured."""
  for name, package in found.missing.items():
    results.print(f'  {name} is left out, {package} cannot be imported: {INSTALL}', markup=False)
  for name, reason in found.failed.items():
    results.print(f'  {name} is left out: {reason}', markup=False)


def markdown(rows: list[Row]) -> str:
  """A table for a README: every peer with a target beside the way of ours that it is compared with."""
  lines = [
    '| part | ours against | ratio per CPU-second: median (smallest to largest) | target | ours, per CPU-second |',
    '|---|---|---|---|---|',
  ]
  ours = rows[0] if rows else None
  for row in rows:
    if row.ratio is None:
      ours = row
    if not row.verdict:
      continue
    share = f', {100 * ours.share.median:.0f} % of the peak' if ours.share else ''
    lines.append(
      f'| {row.part} | {row.way} | {row.ratio.text(2)} | {row.verdict} '
      f'| {_short(ours.per_cpu_second)} {row.unit}{share} |'
    )
  return '\n'.join(lines)


def main(arguments: Sequence[str]) -> int:
  """Measures the parts that are asked for and prints the report; returns the exit code."""
  options = parse(arguments)
  if hasattr(os, 'sched_setaffinity'):  # For all that is started from here. (Not on macOS.)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
  begin, before = time.monotonic(), load()
  results.print(machine())
  results.print(versions())
  results.print(f'load before: {before}; {options.rounds} rounds of {options.seconds:g} s for each way')
  rows, records, failed = [], [], False

  console.print('measuring the peak')
  found = compare(peak.PRODUCTS | peak.COPY, options.rounds, min(options.seconds, 1.0))
  show_left_out(found)
  for name in found.turns:
    unit = 'GFLOP' if name in peak.PRODUCTS else 'GB'
    results.print(f'{name}: {spread([value / 1e9 for value in found.per_cpu_second(name)]).text(1)} {unit} / CPU-s')
  records.append(_record('peak', found))

  for name in options.only:
    console.print(f'measuring {name}')
    part = importlib.import_module(f'tests.benchmarks.parts.{name}')
    with tempfile.TemporaryDirectory(prefix='selfie_benchmark_') as folder:
      if hasattr(part, 'prepare'):
        part.prepare(Path(folder))
      for ways in settings_of(part.ways(Path(folder))):
        found = measure(ways, options.rounds, options.seconds)
        mine = rows_of(part, ways, found)
        setting = next(iter(ways.values())).setting
        show(f'{part.NAME}{setting and ", " + setting}', part.UNIT, mine)
        show_left_out(found)
        rows += mine
        records.append(_record(name, found, setting))
        failed |= bool(found.failed)

  results.print(markdown(rows), markup=False, soft_wrap=True)
  results.print(f'\nload before: {before}, after: {load()}; {(time.monotonic() - begin) / 60:.0f} minutes')
  if options.json:
    report = {'machine': machine(), 'versions': versions(), 'load': [before, load()], 'measured': records}
    report['rows'] = [dataclasses.asdict(row) for row in rows]
    options.json.write_text(json.dumps(report, indent=1))
  return int(failed)


def _record(part: str, found: Results, setting: str = '') -> dict[str, Any]:
  return {'part': part, 'setting': setting} | dataclasses.asdict(found)


def _digits(values: Spread) -> int:
  return 0 if values.median >= 100 else 1


def _short(values: Spread) -> str:
  return values.text(_digits(values))


if __name__ == '__main__':
  for end in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(end, signal.default_int_handler)  # Its files and processes go as after Ctrl-C.
  run_command(main)
