"""What was found, beside what was published."""

import collections
from collections.abc import Iterable, Mapping, Sequence

from selfie_jax.evaluation.tasks.nine import Definition

_NAMED = 5


def differences(definition: Definition, parts: Sequence[str], labels: Sequence[str]) -> list[str]:
  """Returns one line for each count that is not the published one.

  Args:
    definition: of the task.
    parts: the split or fold of each clip.
    labels: the class of each clip.
  """
  remark = f' ({definition.remark})' if definition.remark else ''
  kind = 'fold' if definition.folds else 'split'
  lines = [
    f'{kind} {name}: found {found:,} clips, published {published:,}{remark}'
    for name, found, published in _unlike(collections.Counter(parts), definition.parts)
  ]
  found = collections.Counter(labels)
  if len(found) != definition.num_classes:
    lines.append(f'classes: found {len(found):,}, published {definition.num_classes:,}')
  if definition.classes:
    for what, names in (
      ('not there', set(definition.classes) - found.keys()),
      ('unknown', found.keys() - set(definition.classes)),
    ):
      if names:
        lines.append(f'classes that are {what}: {shorten(sorted(names))}')
  if definition.clips_of_class:
    known = {name: found[name] for name in definition.clips_of_class if found[name]}
    published = {name: definition.clips_of_class[name] for name in known}
    lines += [f'class {name}: found {a:,} clips, published {b:,}' for name, a, b in _unlike(known, published)]
  return lines


def _unlike(found: Mapping[str, int], published: Mapping[str, int]) -> Iterable[tuple[str, int, int]]:
  for name in (*published, *sorted(found.keys() - published.keys())):
    if found.get(name, 0) != published.get(name, 0):
      yield name, found.get(name, 0), published.get(name, 0)


def shorten(names: Sequence[str]) -> str:
  """Returns the first few names, and how many more there are."""
  more = f' and {len(names) - _NAMED:,} more' if len(names) > _NAMED else ''
  return ', '.join(names[:_NAMED]) + more
