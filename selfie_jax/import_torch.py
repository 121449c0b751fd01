"""Imports PyTorch weights: `python -m selfie_jax.import_torch --weights FILE --mean M --std S --output OUT`.

FILE is the state_dict of an AudioNTT encoder (BYOL-A's: `features.*`, `fc.*`), written by `torch.save`, or with
safetensors. M and S are the statistics of the log-mel values that its input was z-scored with in training; they are not
in such a file. The front-end is BYOL-A's, unless --log_mel.KEY=VALUE says otherwise (keys: `config.LogMel`).

Writes a new folder OUT with model.safetensors and a model card, README.md. `evaluate`, `embed` and `selfie_jax.load`
take it in place of a training run's.
"""

import ast
import dataclasses
import math
import re
from collections.abc import Sequence

import jax
from flax import nnx

from selfie_jax.config import Config, Data, LogMel
from selfie_jax.errors import ArgumentParser, UserError, run_command
from selfie_jax.files import as_path
from selfie_jax.from_mapping import from_mapping
from selfie_jax.sharing.folder import MODEL_CARD, open_output, write_folder
from selfie_jax.sharing.model_card import model_card
from selfie_jax.sharing.torch_weights import convert, read_state_dict
from selfie_jax.sharing.weights import WEIGHTS_FILE, Model, fill_encoder, model_bytes
from selfie_jax.terminal import console
from selfie_jax.training.state import LoadedEncoder
from selfie_jax.validation import validate


def main(arguments: Sequence[str]) -> None:
  """Runs the import command."""
  parser = ArgumentParser(
    prog='python -m selfie_jax.import_torch',
    usage='%(prog)s --weights FILE --mean M --std S --output OUT [--crop_seconds C] [--log_mel.KEY=VALUE ...]',
    description='Imports PyTorch weights of AudioNTT.',
    epilog="--log_mel.KEY=VALUE sets the front-end that they were trained with, where it is not BYOL-A's: KEY is one "
    f'of {", ".join(field.name for field in dataclasses.fields(LogMel))}',
  )
  parser.add_argument('--weights', required=True, type=as_path, help='a state_dict: .pth, .pt or .safetensors')
  parser.add_argument('--mean', required=True, type=float, help='of the log-mel values that it was trained on')
  parser.add_argument('--std', required=True, type=float, help='their standard deviation')
  parser.add_argument('--output', required=True, help='the new folder to write')
  parser.add_argument('--crop_seconds', type=float, default=Data().crop_seconds, help='shorter clips are padded to it')
  options, others = parser.parse_known_args(arguments)
  if not (math.isfinite(options.mean) and 0 < options.std < math.inf):
    raise UserError(f'--mean is {options.mean} and --std {options.std}: finite numbers, and --std above 0')
  log_mel = _log_mel(others)
  folder = open_output(options.output)

  what = str(options.weights)
  encoder_config, arrays = convert(read_state_dict(options.weights), log_mel.n_mels, what)
  config = Config(log_mel=log_mel, encoder=encoder_config, data=Data(crop_seconds=options.crop_seconds))
  validate(config)
  encoder = fill_encoder(config, arrays, what)
  model = Model(LoadedEncoder(encoder, config, options.mean, options.std, step=None), 'pytorch')
  card = model_card(model, name=folder.name, files=(WEIGHTS_FILE,))
  write_folder(folder, {WEIGHTS_FILE: model_bytes(model), MODEL_CARD: card.encode()})
  parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(encoder, nnx.Param)))
  console.print(
    f'AudioNTT of {encoder_config.conv_blocks} blocks and width {encoder_config.width:,}, {parameters:,} parameters, '
    f'{encoder.features:,} values a clip: {folder}'
  )


def _log_mel(arguments: Sequence[str]) -> LogMel:
  """Returns the front-end's settings; the arguments are written --log_mel.key=value."""
  values = {}
  for argument in arguments:
    match = re.fullmatch(r'--log_mel\.(\w+)=(.+)', argument)
    if match is None:
      raise UserError(
        f'cannot read the argument "{argument}": settings of the front-end are written --log_mel.key=value'
      )
    try:
      values[match[1]] = ast.literal_eval(match[2])
    except (ValueError, SyntaxError):
      values[match[1]] = match[2]  # The complaint about its type names it.
  return from_mapping(LogMel, values, 'log_mel.')


if __name__ == '__main__':
  run_command(main)
