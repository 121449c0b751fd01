"""Reads the collectives and the array sizes out of a compiled program's text."""

import math
import re

_COLLECTIVE = re.compile(
  r'= (?P<shapes>\(.*?\)|\S+) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)'
  r'(?:-start)?\('
)
_NAME = re.compile(r'op_name="([^"]*)"')
_SHAPE = re.compile(r'\bf(32|64)\[([\d,]*)\]')


def summary(text, several_processes):
  """Returns the program's collectives, the entries of its largest array, and its loops' numbers of turns.

  A collective is [kind, pass, entries of a device's result]. One in a loop counts once. Compilers join collectives of
  a kind: each array of a joint one counts for itself.
  """
  collectives = []
  for line in text.splitlines():
    match = _COLLECTIVE.search(line)
    if not match:
      continue
    name = ''.join(_NAME.findall(line))
    if several_processes and 'objective' not in name:  # They copy their gradients to each other, to be read.
      continue
    direction = 'backward' if 'transpose(' in name else 'forward'
    collectives += [[match['kind'], direction, entries] for entries in _entries(match['shapes'])]
  return {
    'collectives': sorted(collectives),
    'largest': max(_entries(text)),
    'turns': sorted(map(int, re.findall(r'"known_trip_count":{"n":"(\d+)"}', text))),
  }


def _entries(text):
  return [math.prod(map(int, filter(None, shape.split(',')))) for _, shape in _SHAPE.findall(text)]
