import dataclasses
import importlib.util
import json
import re

import numpy as np
import pytest
import yaml

from selfie_jax import export
from selfie_jax.config import ViT
from selfie_jax.errors import UserError
from selfie_jax.sharing import checks
from selfie_jax.sharing.folder import write_folder
from selfie_jax.sharing.loading import load_encoder
from selfie_jax.sharing.program import export_program, fixed_samples
from selfie_jax.sharing.weights import Model, model_bytes
from tests.conftest import require
from tests.sharing.conftest import CONFIG, STEP, embed, random_run

# Of the greatest value of an embedding: in the program, the spectrum is a product of matrices in float32.
RELATIVE = 1e-4


def runtime(folder, name):
  """The program in `folder` as a function, in a runtime that is not JAX."""
  if name == 'onnx':
    _require_onnx()
    return checks.in_onnxruntime((folder / 'model.onnx').read_bytes())
  require('tensorflow', importlib.util.find_spec('tensorflow'))
  return checks.in_tensorflow((folder / 'model.stablehlo.bin').read_bytes())


def _require_onnx():
  for package in ('onnx', 'onnxruntime'):
    require(package, importlib.util.find_spec(package))


def as_floats(clip):
  return clip.astype(np.float32) / 32_768


@pytest.mark.parametrize('name', ['onnx', 'stablehlo'])
def test_a_program_gives_the_embeddings_of_recordings_of_any_length(trained, exported, clips, name):
  program = runtime(exported, name)
  expected = embed(load_encoder(trained), clips)
  found = np.concatenate([program(as_floats(clip)[None]) for clip in clips])
  np.testing.assert_allclose(found, expected, rtol=0, atol=RELATIVE * expected.max())


@pytest.mark.parametrize('name', ['onnx', 'stablehlo'])
def test_a_program_takes_any_number_of_clips(exported, clips, name):
  program = runtime(exported, name)
  batch = np.stack([as_floats(clips[2])[start:][:20_000] for start in (0, 1_000, 5_000)])
  alone = np.concatenate([program(clip[None]) for clip in batch])
  np.testing.assert_allclose(program(batch), alone, rtol=0, atol=RELATIVE * alone.max())


def test_a_transformers_programs_take_clips_of_one_length(small_vit, tmp_path):
  _require_onnx()
  settings = dataclasses.replace(CONFIG, encoder=ViT(size='tiny'))
  run = random_run(settings)
  model, output = tmp_path / 'model.safetensors', tmp_path / 'output'
  model.write_bytes(model_bytes(Model(run, 'run')))
  arguments = ['--workdir', str(model), '--output', str(output), '--format', 'onnx', 'stablehlo']
  with pytest.raises(UserError, match='a vit takes clips of one length: give it as --seconds'):
    export.main(arguments)
  assert not output.exists()
  export.main([*arguments, '--seconds=1.003'])  # It compares them with the encoder.
  for name in ('onnx', 'stablehlo'):
    with pytest.raises(Exception, match='(?i)dimension|shape'):
      runtime(output, name)(np.zeros((1, 20_000), np.float32))


def test_a_clip_too_long_for_learned_positions_is_refused(small_vit):
  settings = dataclasses.replace(CONFIG, encoder=ViT(size='tiny', positions='learned'))
  run = random_run(settings)
  with pytest.raises(UserError, match='learned positions for 1.1'):
    fixed_samples(run, 3.0)


def test_one_stablehlo_program_is_for_all_platforms(run):
  program = export_program(run, None)
  assert program.platforms == ('cpu', 'cuda', 'tpu')
  called = set(re.findall(r'custom_call @(\w+)', program.mlir_module()))
  assert called <= {'shape_assertion'}  # Any other would tie it to a version of JAX.


def test_a_program_that_is_wrong_is_not_written(run):
  with pytest.raises(UserError, match='the exported program is wrong in numpy'):
    checks.check(lambda audio: np.ones((len(audio), run.encoder.features)), 'numpy', run, None)
  with pytest.raises(UserError, match='differ by up to nan'):
    checks.check(lambda audio: np.full((len(audio), run.encoder.features), np.nan), 'numpy', run, None)


def test_what_the_model_card_tells_to_do_works(exported, monkeypatch, clips):
  _require_onnx()
  card = (exported / 'README.md').read_text()
  snippets = re.findall(r'```python\n(.*?)```', card, re.DOTALL)
  assert len(snippets) == 3
  assert snippets[2].count('\n') == 4  # StableHLO
  for snippet in snippets:
    names = {'waveforms': as_floats(clips[1])[None], 'sample_rate': 16_000}
    exec(snippet.replace('FOLDER', str(exported)), names)
    assert names['embeddings'].shape[1] == load_encoder(exported).encoder.features
    assert np.isfinite(names['embeddings']).all()


def test_the_model_card_says_what_hubs_read_and_what_the_run_says(exported):
  _require_onnx()
  card = (exported / 'README.md').read_text()
  front = yaml.safe_load(card.split('---\n')[1])
  assert (front['license'], front['library_name']) == ('unknown', 'selfie_jax')
  assert '# my encoder' in card
  assert '| Parameters | 2,472 |' in card
  assert f'Steps | {STEP} of 100,000' in card
  assert 'fingerprint `fingerprint`' in card
  assert 'Seed, precision | 1, bfloat16' in card
  assert 'None was at hand' in card
  assert 'tensorflow 2.' in card
  assert 'onnxruntime 1.' in card


def write_results(workdir, step):
  scores = {'score': 0.5, 'interval': [0.4, 0.6], 'macro_f1': 0.5, 'scores': [0.5]}
  task = {
    'title': 'Spoken letters',
    'metric': 'accuracy',
    'clips': [{'train': 5, 'valid': 5, 'test': 1_200}],
    'readouts': {
      'linear': {
        'representations': {'trained': scores, 'untrained': scores | {'score': 0.45}},
        'difference': {'score': 0.05, 'interval': [-0.01, 0.11]},
      }
    },
  }
  results = {'step': step, 'protocol': 'corrected', 'evaluation': {'seeds': [1, 2]}, 'tasks': {'letters': task}}
  folder = workdir / 'eval' / f'step_{step}'
  folder.mkdir(parents=True)
  (folder / 'results.json').write_text(json.dumps(results))


def test_the_model_card_has_the_scores_of_its_own_step(run, tmp_path):
  (tmp_path / 'model.safetensors').write_bytes(model_bytes(Model(run, 'run')))
  write_results(tmp_path, STEP)
  write_results(tmp_path, STEP + 1)
  export.main(['--workdir', str(tmp_path), '--output', str(tmp_path / 'out')])
  card = (tmp_path / 'out' / 'README.md').read_text()
  row = '| Spoken letters | accuracy | 1,200 | 50.0 [40.0, 60.0] | 45.0 [40.0, 60.0] | +5.0 [-1.0, +11.0] |'
  assert card.count(row) == 1
  assert 'protocol `corrected` of selfie_jax, 2 seeds' in card


def test_damaged_results_are_left_out_of_the_card_and_named(run, tmp_path, capsys):
  (tmp_path / 'model.safetensors').write_bytes(model_bytes(Model(run, 'run')))
  (tmp_path / 'eval').mkdir()
  (tmp_path / 'eval' / 'results.json').write_text(json.dumps({'step': STEP, 'tasks': []}))
  export.main(['--workdir', str(tmp_path), '--output', str(tmp_path / 'out')])
  assert 'None was at hand' in (tmp_path / 'out' / 'README.md').read_text()
  assert 'results.json is left out of the model card' in capsys.readouterr().err


def test_a_folder_with_files_in_it_stays_as_it_is(run, tmp_path):
  (tmp_path / 'model.safetensors').write_bytes(model_bytes(Model(run, 'run')))
  other = tmp_path / 'other'
  (other / 'a folder').mkdir(parents=True)
  before = sorted(tmp_path.rglob('*'))
  with pytest.raises(UserError, match='is not empty, it has model.safetensors'):
    export.main(['--workdir', str(tmp_path), '--output', str(tmp_path)])
  with pytest.raises(UserError, match='is not empty, it has a folder: give the name of a new folder'):
    export.main(['--workdir', str(tmp_path / 'model.safetensors'), '--output', str(other)])
  with pytest.raises(UserError, match='is a file'):
    export.main(['--workdir', str(tmp_path), '--output', str(tmp_path / 'model.safetensors')])
  assert sorted(tmp_path.rglob('*')) == before


def test_of_a_folder_that_cannot_be_finished_no_file_is_left(tmp_path):
  with pytest.raises(OSError, match='No such file'):
    write_folder(tmp_path / 'out', {'first': b'1', 'no such folder/second': b'2'})
  assert not any((tmp_path / 'out').iterdir())


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--seconds=2'], '--seconds is of programs'),
    (['--format', 'stablehlo', '--seconds', '-1'], '--seconds is -1: the length of a clip is above 0'),
    (['--format', 'tflite'], "invalid choice: 'tflite'"),
    (['--step=5'], f'holds step {STEP}, and no other'),
  ],
)
def test_a_mistake_is_one_clear_line_and_writes_nothing(exported, tmp_path, arguments, message):
  with pytest.raises(UserError, match=message) as caught:
    export.main(['--workdir', str(exported), '--output', str(tmp_path / 'out'), *arguments])
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'out').exists()
