"""Dataclasses of settings out of nested mappings, as config files and JSON have them."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from selfie_jax.errors import UserError

_T = TypeVar('_T')


def _nearest(key: str, known: Sequence[str]) -> str:
  """Returns 'Did you mean ...?' with the known key nearest to `key`, or the list of them."""
  match = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
  return f'Did you mean "{match[0]}"?' if match else f'Known keys: {", ".join(known)}.'


def from_mapping(cls: type[_T], values: Mapping[str, Any], prefix: str = '') -> _T:
  """Builds the dataclass `cls` from nested mappings.

  Raises:
    UserError: an unknown key (with the nearest known one) or a value of another type.
  """
  hints = typing.get_type_hints(cls)
  for key in values:
    if key not in hints:
      raise UserError(f'unknown config key "{prefix}{key}". {_nearest(key, list(hints))}')
  for field in dataclasses.fields(cls):
    if field.default is dataclasses.MISSING and field.name not in values:
      raise UserError(f'config key "{prefix}{field.name}" is not given')
  return cls(**{key: _convert(hints[key], value, prefix + key) for key, value in values.items()})


def _convert(kind: Any, value: Any, name: str) -> Any:
  if typing.get_origin(kind) is types.UnionType:
    kind = _choose(typing.get_args(kind), value, name)
  if dataclasses.is_dataclass(kind):
    if not isinstance(value, Mapping):
      raise UserError(f'config key "{name}" is a group of settings, got {value!r}')
    return from_mapping(kind, value, name + '.')
  if typing.get_origin(kind) is tuple:
    if not isinstance(value, (list, tuple)):
      raise UserError(f'config key "{name}" wants a list, such as [{value!r}], got {value!r}')
    items = typing.get_args(kind)
    if items[-1] is Ellipsis:
      items = (items[0],) * len(value)
    if len(items) != len(value):
      raise UserError(f'config key "{name}" wants {len(items)} values, got {len(value)}: {value!r}')
    return tuple(_convert(item, part, f'{name}[{i}]') for i, (item, part) in enumerate(zip(items, value, strict=True)))
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if type(value) is not kind:
    raise UserError(f'config key "{name}" wants a value of type {kind.__name__}, got {value!r}')
  if kind is float and not math.isfinite(value):
    raise UserError(f'config key "{name}" wants a finite number, got {value!r}')
  return value


def _choose(kinds: Sequence[Any], value: Any, name: str) -> Any:
  """Returns the dataclass of `kinds` whose `name` the settings ask for, the first if they ask for none."""
  known = {kind.name: kind for kind in kinds}
  asked = value.get('name', next(iter(known))) if isinstance(value, Mapping) else None
  if asked is not None and (not isinstance(asked, str) or asked not in known):
    raise UserError(f'config key "{name}.name" is {asked!r}; it can be {", ".join(known)}')
  return known.get(asked, kinds[0])
