"""What `selfie_jax.compile` tells of a compiled train step: as JSON, and on the terminal."""

import collections
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import rich.table

from selfie_jax.config import Config
from selfie_jax.terminal import results
from selfie_jax.training.programs.hlo import Collective
from selfie_jax.training.programs.topology import Topology
from selfie_jax.training.state import TrainState

# The scope that `objective.objective` runs in, forwards `jvp(objective)` and backwards `transpose(jvp(objective))`.
_OBJECTIVE = re.compile(r'(^|[/(:])objective([/):]|$)')


def describe(config: Config, mesh: jax.sharding.Mesh, topology: Topology, state: TrainState) -> dict[str, Any]:
  """Returns what is known before anything is compiled."""
  devices = mesh.devices.flatten()
  return {
    'topology': topology.name,
    'num_slices': topology.num_slices,
    'device_kind': devices[0].device_kind,
    'devices': mesh.size,
    'processes': len({device.process_index for device in devices}),
    'mesh': dict(mesh.shape),
    'batch_size': config.batch_size,
    'clips_per_device': config.batch_size // mesh.size,
    'microbatches': config.microbatches,
    'parameters': sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)),
  }


def memory(analysis: Any, topology: Topology) -> dict[str, int]:
  """Returns the bytes of a device's memory that a program takes, by what they are for.

  `peak` is arguments + outputs - alias (outputs in the place of arguments) + temporaries + code. The temporaries are
  one buffer that the compiler laid out for all of the program, so this is what has to be free for it to start.

  Args:
    analysis: `compiled.memory_analysis()`.
    topology: what it was compiled for.
  """
  parts = {
    'arguments': analysis.argument_size_in_bytes,
    'outputs': analysis.output_size_in_bytes,
    'alias': analysis.alias_size_in_bytes,
    'temporaries': analysis.temp_size_in_bytes,
    'code': analysis.generated_code_size_in_bytes,
  }
  return parts | {'peak': sum(parts.values()) - 2 * parts['alias'], 'available': topology.memory}


def communication(found: Sequence[Collective]) -> dict[str, Any]:
  """Returns every collective of a program and what they add up to in one step.

  `bytes` are those of the whole arrays that a group of devices works on: of an all-reduce's operand, of an
  all-gather's result. `sent_bytes` is the least that each device has to send for them. A collective that XLA joined
  from several is the objective's in those of its arrays that the objective asked for.
  """
  entries = [_collective(collective) for collective in found]
  by_kind = {kind: _total([e for e in entries if e['kind'] == kind]) for kind in sorted({e['kind'] for e in entries})}
  total = _total(entries)
  return {
    'collectives': entries,
    'traffic': total
    | {
      'by_kind': by_kind,
      'objective_share': total['objective_sent_bytes'] / total['sent_bytes'] if total['sent_bytes'] else 0.0,
      'unattributed_bytes': sum(
        e['runs'] * part['bytes'] for e in entries for part in e['parts'] if not part['op_name']
      ),
      'all_runs_known': all(e['runs_known'] for e in entries),
    },
  }


def _collective(collective: Collective) -> dict[str, Any]:
  parts = [
    {
      'shape': part.shape,
      'bytes': part.bytes,
      'op_name': part.op_name,
      'objective': bool(_OBJECTIVE.search(part.op_name)),
    }
    for part in collective.parts
  ]
  objective_bytes = sum(part['bytes'] for part in parts if part['objective'])
  return {
    'kind': collective.kind,
    'name': collective.name,
    'group_size': collective.group_size,
    'runs': collective.runs,
    'runs_known': collective.runs_known,
    'bytes': collective.bytes,
    'sent_bytes': round(collective.bytes * collective.sent_share),
    'objective_bytes': objective_bytes,
    'objective_sent_bytes': round(objective_bytes * collective.sent_share),
    'parts': parts,
  }


def _total(entries: Sequence[dict[str, Any]]) -> dict[str, int]:
  """Returns the sums over one step, in which a collective in a loop runs several times."""
  sums = {
    key: sum(entry['runs'] * entry[key] for entry in entries)
    for key in ('bytes', 'sent_bytes', 'objective_bytes', 'objective_sent_bytes')
  }
  return {
    'count': len(entries),
    'objective_count': sum(any(part['objective'] for part in entry['parts']) for entry in entries),
    'runs': sum(entry['runs'] for entry in entries),
    **sums,
  }


def print_program(program: dict[str, Any]) -> None:
  """Prints the report on one program that compiled."""
  traffic, memory_of = program['traffic'], program['memory']
  layout = ', '.join(f'{axis}={size}' for axis, size in program['mesh'].items())
  parts = ' + '.join(f'{name} {_gib(memory_of[name])}' for name in ('arguments', 'outputs', 'temporaries', 'code'))
  facts = {
    'devices': f'{program["devices"]:,} ({program["device_kind"]}), {program["processes"]:,} hosts; mesh {layout}',
    'batch': f'{program["batch_size"]:,} clips, {program["clips_per_device"]} a device; '
    f'microbatches {program["microbatches"]}',
    'parameters': f'{program["parameters"]:,}',
    'FLOPs a step and device': _flops(program, 1),
    'memory a device (GiB)': f'peak {_share(memory_of)} = {parts} - alias {_gib(memory_of["alias"])}',
    'collectives': f'{traffic["count"]}, of {_size(traffic["bytes"])} a step; '
    f'a device sends {_size(traffic["sent_bytes"])} at least',
    "the objective's": f'in {traffic["objective_count"]} of them, {_size(traffic["objective_bytes"])} a step; '
    f'a device sends {_size(traffic["objective_sent_bytes"])} at least, {traffic["objective_share"]:.2%} of all',
    'compiled in': f'{program["compile_seconds"]} s',
  }
  if not traffic['all_runs_known']:
    facts['caution'] = 'some collectives are in loops whose number of rounds is not known: counted once'
  if traffic['unattributed_bytes']:
    facts['no origin known'] = f'{_size(traffic["unattributed_bytes"])} of the collectives a step'
  table = rich.table.Table(title=_label(program), show_header=False, title_justify='left')
  for fact in facts.items():
    table.add_row(*fact)
  results.print(table)
  results.print(_collectives_table(program['collectives']))


def _collectives_table(entries: Sequence[dict[str, Any]]) -> rich.table.Table:
  """Returns a row for each kind of collective on the same arrays: the JSON report has each by itself."""
  table = rich.table.Table('', 'kind', 'runs', 'group', 'size', "objective's", 'arrays', 'asked for by')
  for column in (0, 2, 3, 4, 5):
    table.columns[column].justify = 'right'
  table.columns[7].overflow = 'fold'
  rows = collections.Counter()
  for entry in entries:
    main = max(entry['parts'], key=lambda part: part['bytes'])
    shapes = collections.Counter(part['shape'] for part in entry['parts'])
    names = [f'{count} {shape}' if count > 1 else shape for shape, count in shapes.most_common(3)]
    arrays = ' '.join(names) + (f' +{len(shapes) - 3}' if len(shapes) > 3 else '')
    scope = re.sub(r'^jit\(train_step\)/', '', main['op_name'])
    key = (entry['kind'], entry['runs'], entry['group_size'], entry['bytes'], entry['objective_bytes'], arrays, scope)
    rows[key] += 1
  for (kind, runs, group, size, of_objective, arrays, scope), count in rows.items():
    table.add_row(f'{count} x', kind, str(runs), str(group), _size(size), _size(of_objective), arrays, scope)
  return table


def print_summary(programs: Sequence[dict[str, Any]]) -> None:
  """Prints one row for each program."""
  headings = (
    'topology', 'devices', 'clips a device', 'GFLOP a device', 'peak GiB of', "objective's", 'all', 'compiled s'
  )  # fmt: skip
  table = rich.table.Table(*headings, title='One step, each device', title_justify='left')
  for column in table.columns[1:]:
    column.justify = 'right'
  for program in programs:
    cells = [_label(program), f'{program["devices"]:,}', str(program['clips_per_device'])]
    if program['error']:
      cells += ['does not fit', _share(program['memory'])]
    else:
      traffic = program['traffic']
      cells += [_flops(program, 1e9), _share(program['memory'])]
      cells += [_size(traffic['objective_bytes']), _size(traffic['bytes']), str(program['compile_seconds'])]
    table.add_row(*cells)
  results.print(table)


def _label(program: dict[str, Any]) -> str:
  return Topology(program['topology'], program['num_slices']).label


def _flops(program: dict[str, Any], unit: float) -> str:
  flops = program['flops_per_device']  # The GPU compiler does not say.
  return 'not known' if flops is None else f'{flops / unit:,.{0 if unit == 1 else 1}f}'


def _gib(size: int) -> str:
  return f'{size / 2**30:.2f}'


def _size(size: int) -> str:
  for unit, power in (('GiB', 30), ('MiB', 20), ('KiB', 10)):
    if size >= 2**power:
      return f'{size / 2**power:,.2f} {unit}'
  return f'{size} B'


def _share(memory_of: dict[str, int]) -> str:
  return f'{_gib(memory_of["peak"])} of {_gib(memory_of["available"])}'
