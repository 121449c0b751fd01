"""An encoder in one file, `model.safetensors`: its weights, and in the file's metadata all that it takes to use them.

The arrays are the encoder's parameters and batch statistics, float32, by dotted names such as `blocks.0.conv.kernel`,
in flax's layouts (convolutions: height, width, in, out; dense layers: in, out). The metadata has one key, `selfie_jax`,
with a JSON object:

  format           1
  config           the run's config, without what tells only of the machine it ran on and of its folders
  mean, std        of the log-mel values, for z-scoring
  step             training steps that the encoder has seen; null where they are unknown
  source           'run', or 'pytorch' of imported weights
  data_fingerprint of the training data, '' if it is unknown
  sha256           over names, shapes and values of the arrays: safetensors itself has no checksum
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from selfie_jax import validation
from selfie_jax.config import Config
from selfie_jax.errors import UserError
from selfie_jax.files import PathLike, as_path
from selfie_jax.from_mapping import from_mapping
from selfie_jax.training.checkpointing.checksums import leaf_name
from selfie_jax.training.state import LoadedEncoder, build_encoder

WEIGHTS_FILE = 'model.safetensors'
_FORMAT = 1
_KEY = 'selfie_jax'

# Of a run's config: what names folders, or the machines, and says nothing about the encoder.
_LOCAL_KEYS = ('watchdog_minutes', 'mesh', 'checkpoint', 'cluster', 'log')
_LOCAL_DATA_KEYS = ('path', 'splits', 'mixture', 'read', 'read_threads', 'prefetch_batches')


@dataclasses.dataclass(frozen=True)
class Model:
  """An encoder to share, and where it comes from."""

  run: LoadedEncoder
  source: str  # 'run', or 'pytorch'.
  data_fingerprint: str = ''  # '': unknown.
  trained_in: str = 'float32'  # What its networks computed in. `run` computes in float32, whatever that was.


def encoder_arrays(encoder: nnx.Module) -> dict[str, Any]:
  """Returns an encoder's parameters and batch statistics by their dotted names, such as `dense1.kernel`."""
  return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(nnx.state(encoder))}


def fill_encoder(config: Config, arrays: Mapping[str, np.ndarray], what: str) -> nnx.Module:
  """Returns the encoder that `config` describes, with the values of `arrays`; `what` names them in messages.

  Raises:
    UserError: an array is missing, is not of the encoder, or has another shape or type.
  """
  graphdef, state = nnx.split(nnx.eval_shape(lambda: build_encoder(config)))
  leaves, treedef = jax.tree.flatten_with_path(state)
  wanted = {_name(path): leaf for path, leaf in leaves}
  for name in sorted(wanted.keys() | arrays.keys()):
    if name not in arrays:
      raise UserError(f'{what} has no array {name}, which this encoder of {len(wanted)} arrays needs')
    if name not in wanted:
      raise UserError(f'{what} has an array {name}, which is not of this encoder of {len(wanted)} arrays')
    found, expected = arrays[name], wanted[name]
    if found.shape != expected.shape or found.dtype != expected.dtype:
      raise UserError(
        f'{what}: {name} is {found.dtype}{list(found.shape)}, and the encoder wants '
        f'{expected.dtype}{list(expected.shape)}'
      )
  return nnx.merge(graphdef, jax.tree.unflatten(treedef, [jax.numpy.asarray(arrays[name]) for name in wanted]))


def model_bytes(model: Model) -> bytes:
  """Returns the file's contents. The same model gives the same bytes."""
  run = model.run
  arrays = {name: np.asarray(leaf) for name, leaf in encoder_arrays(run.encoder).items()}
  facts = {
    'format': _FORMAT,
    'config': _shared_config(run.config) | {'compute_dtype': model.trained_in},
    'mean': run.mean,
    'std': run.std,
    'step': run.step,
    'source': model.source,
    'data_fingerprint': model.data_fingerprint,
    'sha256': _digest(arrays),
  }
  return safetensors.numpy.save(arrays, {_KEY: json.dumps(facts)})


def load_model(path: PathLike) -> Model:
  """Reads the file.

  Raises:
    UserError: no such file, a damaged one, one that was written by something else, or by a newer version.
  """
  try:
    content = as_path(path).read_bytes()
  except (FileNotFoundError, IsADirectoryError) as error:
    raise UserError(f'{path} is no file: give a {WEIGHTS_FILE} that selfie_jax.export wrote') from error
  try:
    arrays = safetensors.numpy.load(content)
  except (safetensors.SafetensorError, KeyError, ValueError) as error:  # KeyError: a type that numpy does not have.
    raise UserError(f'{path} is damaged, or no safetensors file: {error}') from error
  facts = _metadata(content).get(_KEY)
  if facts is None:
    raise UserError(
      f'{path} was not written by selfie_jax.export: its metadata has no key "{_KEY}" (for PyTorch weights: python -m '
      'selfie_jax.import_torch)'
    )
  return _model(path, _parsed(path, facts), arrays)


def _model(path: PathLike, facts: dict[str, Any], arrays: dict[str, np.ndarray]) -> Model:
  if _digest(arrays) != facts['sha256']:
    raise UserError(f'{path} is damaged: its weights are not those that were saved (sha256). Fetch it again')
  try:
    config = from_mapping(Config, facts['config'])
    validation.validate(config)
  except UserError as error:
    raise UserError(f'{path}: {error}') from error
  loaded = dataclasses.replace(config, compute_dtype='float32', remat=False)  # As of a checkpoint that is loaded.
  run = LoadedEncoder(fill_encoder(loaded, arrays, str(path)), loaded, facts['mean'], facts['std'], facts['step'])
  return Model(run, facts['source'], facts['data_fingerprint'], config.compute_dtype)


def _parsed(path: PathLike, text: str) -> dict[str, Any]:
  try:
    facts = json.loads(text)
    version = facts['format']
  except (json.JSONDecodeError, TypeError, KeyError) as error:
    raise UserError(f'{path} is damaged: its metadata "{_KEY}" cannot be read') from error
  if version != _FORMAT:
    raise UserError(f'{path} has format {version!r}, and this version reads format {_FORMAT}: update selfie_jax')
  step = int if facts.get('source') == 'run' else type(None)
  kinds = {'config': dict, 'step': step, 'source': str, 'data_fingerprint': str, 'sha256': str}
  for name, kind in {**kinds, 'mean': float, 'std': float}.items():
    if type(facts.get(name)) is not kind:
      raise UserError(f'{path} is damaged: "{name}" in its metadata is {facts.get(name)!r}')
  if not (math.isfinite(facts['mean']) and 0 < facts['std'] < math.inf):
    raise UserError(f'{path} has mean {facts["mean"]} and std {facts["std"]}: finite numbers, and std above 0')
  return facts


def _metadata(content: bytes) -> dict[str, str]:
  """Returns the metadata in the header (8 bytes: its length; then JSON): the library reads it of local files only."""
  size = int.from_bytes(content[:8], 'little')
  return json.loads(content[8 : 8 + size]).get('__metadata__') or {}


def _shared_config(config: Config) -> dict[str, Any]:
  values = dataclasses.asdict(config)
  values['data'] = {key: value for key, value in values['data'].items() if key not in _LOCAL_DATA_KEYS}
  values['warm_start'] = as_path(config.warm_start).name if config.warm_start else ''
  return {key: value for key, value in values.items() if key not in _LOCAL_KEYS}


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
  digest = hashlib.sha256()
  for name in sorted(arrays):
    digest.update(f'{name} {arrays[name].dtype} {arrays[name].shape}\n'.encode())
    digest.update(np.ascontiguousarray(arrays[name]).tobytes())
  return digest.hexdigest()


def _name(path: tuple[Any, ...]) -> str:
  return leaf_name(path).replace('/', '.')
