"""Exports an encoder: `python -m selfie_jax.export --workdir DIR --output OUT [--step K] [--format F ...]`.

Writes a new folder OUT with a model card, README.md, and for each format:

  safetensors   model.safetensors: the weights, with all that it takes to use them. `evaluate`, `embed` and
                `selfie_jax.load` take the folder in place of a training run's.
  stablehlo     model.stablehlo.bin: a program from waveform to embedding, for `jax.export.deserialize`.
  onnx          model.onnx: the same, for ONNX runtimes.

A program takes (batch, samples) float32 in [-1, 1] at the encoder's sample rate, of any size, and returns (batch, d)
float32: what `embed` does of the whole clip. With --seconds (a vit's needs it) all clips have that length. Each program
is run before it is written, in onnxruntime or TensorFlow if they are installed, and compared with the encoder.
"""

import importlib.util
import math
from collections.abc import Sequence

from selfie_jax.errors import ArgumentParser, UserError, run_command
from selfie_jax.sharing.card_facts import evaluation, training_data
from selfie_jax.sharing.checks import Check, check, in_onnxruntime, in_tensorflow
from selfie_jax.sharing.folder import MODEL_CARD, open_output, write_folder
from selfie_jax.sharing.loading import open_model
from selfie_jax.sharing.model_card import model_card
from selfie_jax.sharing.program import export_program, fixed_samples
from selfie_jax.sharing.weights import WEIGHTS_FILE, model_bytes
from selfie_jax.terminal import console
from selfie_jax.training.state import LoadedEncoder

_STABLEHLO_FILE = 'model.stablehlo.bin'
_ONNX_FILE = 'model.onnx'


def main(arguments: Sequence[str]) -> None:
  """Runs the export command."""
  parser = ArgumentParser(prog='python -m selfie_jax.export', description='Exports a trained encoder.')
  parser.add_argument('--workdir', required=True, help="the training run's folder, or a model that was exported")
  parser.add_argument('--output', required=True, help='the new folder to write')
  parser.add_argument('--step', type=int, help='which checkpoint; the newest one if not given')
  formats = ('safetensors', 'stablehlo', 'onnx')
  parser.add_argument('--format', nargs='+', choices=formats, default=['safetensors'], help='what to write')
  parser.add_argument('--seconds', type=float, help='the length of every clip that a program takes; any if not given')
  options = parser.parse_args(arguments)
  if options.seconds is not None and options.format == ['safetensors']:
    raise UserError('--seconds is of programs (--format stablehlo or onnx): the weights take clips of any length')
  if options.seconds is not None and not 0 < options.seconds < math.inf:
    raise UserError(f'--seconds is {options.seconds:g}: the length of a clip is above 0')
  folder = open_output(options.output)
  if 'onnx' in options.format and importlib.util.find_spec('onnx') is None:
    raise UserError('--format onnx is written with the package onnx: pip install onnx onnxruntime')

  model = open_model(options.workdir, options.step)
  contents, found = {}, {}
  for name in options.format:
    if name == 'safetensors':
      contents[WEIGHTS_FILE] = model_bytes(model)
      continue
    samples = fixed_samples(model.run, options.seconds)
    file, write = {'stablehlo': (_STABLEHLO_FILE, _stablehlo), 'onnx': (_ONNX_FILE, _onnx)}[name]
    contents[file], found[file] = write(model.run, samples)
  card = model_card(
    model,
    name=folder.name,
    files=tuple(contents),
    data=training_data(model.run.config, model.data_fingerprint),
    evaluated=evaluation(options.workdir, model.run.step),
    checks=found,
    seconds=options.seconds,
  )
  write_folder(folder, contents | {MODEL_CARD: card.encode()})
  for file, result in found.items():
    console.print(f'{file} {_describe(result)}')
  step = '' if model.run.step is None else f'step {model.run.step:,}: '
  console.print(f'{step}{", ".join((*contents, MODEL_CARD))} in {folder}')


def _stablehlo(run: LoadedEncoder, samples: int | None) -> tuple[bytes, Check | None]:
  content = export_program(run, samples).serialize()
  try:
    program = in_tensorflow(content)
  except ImportError:
    return content, None
  return content, check(program, 'tensorflow', run, samples)


def _onnx(run: LoadedEncoder, samples: int | None) -> tuple[bytes, Check | None]:
  from selfie_jax.sharing.onnx_program import onnx_program  # The package onnx is optional.

  content = onnx_program(run, samples)
  try:
    program = in_onnxruntime(content)
  except ImportError:
    return content, None
  return content, check(program, 'onnxruntime', run, samples)


def _describe(result: Check | None) -> str:
  if result is None:
    return 'was NOT CHECKED: its runtime is not installed here (pip install onnxruntime, or tensorflow for stablehlo)'
  return (
    f"was checked in {result.runtime}: its embeddings differ by up to {result.difference:.1e} from the encoder's, "
    f'which reach {result.greatest:.1f}'
  )


if __name__ == '__main__':
  run_command(main)
