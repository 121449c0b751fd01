"""PyTorch weights of AudioNTT (BYOL-A, arXiv 2103.06695 and 2204.07402) in this project's layout.

The names are those of the published encoders: `features` is a sequence of [convolution, batch normalisation, ReLU,
max-pool], four entries a block, and `fc` one of [linear, ReLU, dropout, linear, ReLU]. Three blocks are AudioNTT2020;
two are AudioNTT2022, whose frame features are the convolutions' beside those of `fc`.
"""

import io
import re
from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.numpy

from selfie_jax.config import AudioNTT
from selfie_jax.errors import UserError
from selfie_jax.files import PathLike, as_path

_NAME = re.compile(r'(?P<prefix>(?:[^.]+\.)*?)(?P<name>(?:features|fc)\.\d+\.\w+)')


def read_state_dict(path: PathLike) -> dict[str, np.ndarray]:
  """Reads a PyTorch state_dict, from torch.save (needs torch) or from a .safetensors file: float32 arrays by name.

  Counters (`num_batches_tracked`) are left out. Nothing in the file is executed.

  Raises:
    UserError: no such file, or not a state_dict; or torch is not installed.
  """
  try:
    content = as_path(path).read_bytes()
  except (FileNotFoundError, IsADirectoryError) as error:
    raise UserError(f'{path} is no file: give the state_dict that torch.save wrote, as --weights') from error
  if as_path(path).suffix == '.safetensors':
    try:
      values = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
      raise UserError(
        f'{path} is damaged, or of a type that numpy does not have (float16 and float32 do): {error}'
      ) from error
  else:
    values = _torch_load(path, content)
  return {name: value.astype(np.float32) for name, value in values.items() if not name.endswith('num_batches_tracked')}


def _torch_load(path: PathLike, content: bytes) -> dict[str, np.ndarray]:
  try:
    import torch  # Optional, and seconds to import.
  except ImportError as error:
    raise UserError(
      f'{path} is read with torch, which is not installed: pip install torch, or save the state_dict with safetensors'
    ) from error
  try:
    values = torch.load(io.BytesIO(content), map_location='cpu', weights_only=True)
  except Exception as error:  # The unpickler raises what the damage happens to lead to.
    reason = _reason(error)
    raise UserError(
      f'{path} holds no weights alone, or is damaged ({reason}): write it with torch.save(encoder.state_dict(), ...)'
    ) from error
  if not isinstance(values, Mapping) or not all(isinstance(value, torch.Tensor) for value in values.values()):
    keys = f' with the keys {", ".join(map(str, list(values)[:5]))}' if isinstance(values, Mapping) else ''
    raise UserError(
      f'{path} holds a {type(values).__name__}{keys}, and not a state_dict of tensors: write it with '
      'torch.save(encoder.state_dict(), ...)'
    )
  return {name: value.detach().float().numpy() for name, value in values.items()}


def _reason(error: Exception) -> str:
  """Returns the one sentence that says what is wrong, out of the page of coloured advice that PyTorch may give."""
  lines = re.sub(r'\x1b\[[0-9;]*m', '', str(error)).strip().splitlines() or [type(error).__name__]
  line = next((line for line in lines if 'Unpickler error: ' in line), lines[0])
  return line.rpartition('Unpickler error: ')[2].partition('. ')[0]


def convert(state_dict: Mapping[str, np.ndarray], n_mels: int, what: str) -> tuple[AudioNTT, dict[str, np.ndarray]]:
  """Converts a state_dict of AudioNTT.

  Args:
    state_dict: float32 arrays by PyTorch's names, which may all have a prefix, such as `module.` or `encoder.`.
    n_mels: mel bands of the input.
    what: names the state_dict in messages.

  Returns:
    The encoder's config, and its arrays by the names of `weights.encoder_arrays`.

  Raises:
    UserError: naming the first array that is unknown, missing, of another shape, or without a meaning (NaN, or a
      negative variance).
  """
  found = _without_prefix(state_dict, what)
  blocks = 1 + max((int(name.split('.')[1]) // 4 for name in found if name.startswith('features.')), default=-1)
  if blocks not in (2, 3):
    raise UserError(f'{what} has {blocks} convolution blocks: AudioNTT2020 has 3, AudioNTT2022 has 2')
  for name in ('features.0.weight', 'fc.0.weight'):
    if name not in found:
      raise UserError(f'{what} lacks {name}')
  channels, width = len(found['features.0.weight']), len(found['fc.0.weight'])
  shapes = _shapes(blocks, channels, width, n_mels)
  for name in sorted(shapes.keys() | found.keys()):
    if name not in found:
      raise UserError(f'{what} lacks {name}, which an encoder of {blocks} blocks has')
    if name not in shapes:
      raise UserError(f'{what} has {name}, which an encoder of {blocks} blocks does not have')
    if found[name].shape != shapes[name]:
      raise UserError(
        f'{what}: {name} is {list(found[name].shape)}, and {list(shapes[name])} in an encoder of {blocks} blocks, '
        f'{channels} channels, width {width} and {n_mels} mel bands (--log_mel.n_mels)'
      )
    if not np.isfinite(found[name]).all():
      raise UserError(f'{what}: {name} has values that are not finite')
    if name.endswith('running_var') and found[name].min() < 0:
      raise UserError(f'{what}: {name} has a negative value, {found[name].min():g}')
  config = AudioNTT(conv_blocks=blocks, conv_channels=channels, width=width, concat_conv=blocks == 2)
  return config, _arrays(found, blocks)


def _without_prefix(state_dict: Mapping[str, np.ndarray], what: str) -> dict[str, np.ndarray]:
  found, prefixes = {}, set()
  for name, value in state_dict.items():
    match = _NAME.fullmatch(name)
    if match is None:
      raise UserError(
        f'{what} has {name}, which is not of an AudioNTT: its names are features.0.weight ... fc.3.bias. Save the '
        "encoder's state_dict alone"
      )
    prefixes.add(match['prefix'])
    found[match['name']] = value
  if len(prefixes) != 1:
    several = ', '.join(sorted(f'"{prefix}"' for prefix in prefixes)) or 'no weights'
    raise UserError(f"{what} has several encoders or none ({several}): save one encoder's state_dict alone")
  return found


def _shapes(blocks: int, channels: int, width: int, n_mels: int) -> dict[str, tuple[int, ...]]:
  """Returns PyTorch's shapes by its names: convolutions (out, in, height, width), linear layers (out, in)."""
  shapes: dict[str, tuple[int, ...]] = {}
  for block in range(blocks):
    inputs = channels if block else 1
    shapes[f'features.{4 * block}.weight'] = (channels, inputs, 3, 3)
    shapes[f'features.{4 * block}.bias'] = (channels,)
    for part in ('weight', 'bias', 'running_mean', 'running_var'):
      shapes[f'features.{4 * block + 1}.{part}'] = (channels,)
  for layer, inputs in ((0, n_mels // 2**blocks * channels), (3, width)):
    shapes[f'fc.{layer}.weight'] = (width, inputs)
    shapes[f'fc.{layer}.bias'] = (width,)
  return shapes


def _arrays(found: Mapping[str, np.ndarray], blocks: int) -> dict[str, np.ndarray]:
  """Renames and transposes. A frame's features are mel-major, channel-minor on both sides, so `fc` keeps its order."""
  arrays = {}
  for block in range(blocks):
    conv, norm, ours = f'features.{4 * block}', f'features.{4 * block + 1}', f'blocks.{block}'
    arrays[f'{ours}.conv.kernel'] = found[f'{conv}.weight'].transpose(2, 3, 1, 0)
    arrays[f'{ours}.conv.bias'] = found[f'{conv}.bias']
    names = {'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'var': 'running_var'}
    arrays |= {f'{ours}.norm.{name}': found[f'{norm}.{theirs}'] for name, theirs in names.items()}
  for ours, theirs in (('dense1', 'fc.0'), ('dense2', 'fc.3')):
    arrays[f'{ours}.kernel'] = found[f'{theirs}.weight'].T
    arrays[f'{ours}.bias'] = found[f'{theirs}.bias']
  return {name: np.ascontiguousarray(value) for name, value in arrays.items()}
