import dataclasses
import json
import shutil

import numpy as np
import pytest
import soundfile

from selfie_jax import embed, evaluate
from selfie_jax.config import Evaluation, Task
from selfie_jax.data.decode import decode
from selfie_jax.errors import UserError
from selfie_jax.evaluation import protocol
from selfie_jax.evaluation.embeddings import embed_clips
from selfie_jax.training.checkpointing.checkpoints import load_encoder
from tests.evaluation.conftest import CONFIG, SAMPLE_RATE, VIT, write_run, write_table
from tests.processes import run_python

CONFIG_FILE = """
import ml_collections


def get_config():
  return ml_collections.ConfigDict({{
    'tasks': [{{'name': 'tones', 'path': {path!r}, 'unit_seconds': 1.5}}],
    'seeds': (42, 43), 'learning_rates': (1e-3, 1e-2), 'epochs': 30,
  }})
"""


@pytest.fixture
def run(workdir, tmp_path):
  return shutil.copytree(workdir, tmp_path / 'run')


@pytest.fixture
def config_file(tones, tmp_path):
  path = tmp_path / 'tones.py'
  path.write_text(CONFIG_FILE.format(path=str(tones)))
  return path


def test_evaluate_prints_the_table_and_writes_results_and_pictures(run, config_file):
  result = run_python('-m', 'selfie_jax.evaluate', '--config', config_file, '--workdir', run)
  assert 'tones' in result.stdout
  assert 'mean' in result.stdout
  assert 'Traceback' not in result.stderr
  written = json.loads((run / 'eval/results.json').read_text())
  assert (written['step'], written['evaluation']['seeds']) == (7, [42, 43])
  scores = written['tasks']['tones']['representations']
  assert list(scores) == ['majority', 'log_mel_statistics', 'untrained', 'trained']
  assert scores['majority']['accuracy'] == pytest.approx(1 / 3)
  assert scores['log_mel_statistics']['accuracy'] == 1  # Three tones are not hard to tell apart.
  for picture in ('embeddings_tones.png', 'training_curves.png'):
    assert (run / 'eval' / picture).stat().st_size > 5_000


def test_the_same_evaluation_gives_the_same_figures_and_overrides_are_heard(run, config_file):
  arguments = ['--config', str(config_file), '--workdir', str(run), '--config.baselines=False']
  figures = []
  for _ in range(2):
    evaluate.main(arguments)
    figures.append((run / 'eval/results.json').read_text())
  assert figures[0] == figures[1]
  assert list(json.loads(figures[0])['tasks']['tones']['representations']) == ['trained']


def test_z_scoring_has_not_seen_valid_or_test(workdir, tones, monkeypatch):
  """The statistics are taken from the train files, and from nothing else."""
  seen = []
  decode_clips = protocol.decode_clips
  monkeypatch.setattr(protocol, 'decode_clips', lambda files, *rest: seen.append(files) or decode_clips(files, *rest))
  folder = evaluate.load_folder(Task('tones', str(tones)))
  [split] = folder.splits
  evaluation = Evaluation(epochs=1, learning_rates=(1e-3,), seeds=(1,))
  protocol.evaluate_split(folder, split, load_encoder(workdir), None, evaluation, unit_seconds=1.5, title='tones')
  assert sorted(seen[0]) == sorted(folder.files[row] for row in split.train)


def test_a_broken_clip_is_named_and_nothing_is_written(run, config_file, tones, tmp_path):
  folder = shutil.copytree(tones, tmp_path / 'tones')
  (folder / 'low_0.wav').write_text('not a sound')
  config_file.write_text(CONFIG_FILE.format(path=str(folder)))
  with pytest.raises(UserError, match='low_0.wav'):
    evaluate.main(['--config', str(config_file), '--workdir', str(run)])
  assert not (run / 'eval/results.json').exists()


@pytest.mark.parametrize(
  ('override', 'message'),
  [
    ('--config.epochs=0', '"epochs" is 0'),
    ('--config.seeds=()', '"seeds" is empty'),
    ('--config.seeds=(42, -1)', '"seeds" has -1'),
    ('--config.learning_rates=(1e-3, 0.0)', '"learning_rates" has 0'),
    ('--config.epoch=3', 'unknown config key "epoch"'),
  ],
)
def test_an_evaluation_config_that_makes_no_sense_is_one_clear_line(run, config_file, override, message):
  with pytest.raises(UserError, match=message):
    evaluate.main(['--config', str(config_file), '--workdir', str(run), override])


def test_two_tasks_of_one_name_are_refused():
  with pytest.raises(UserError, match='the name "a" 2 times'):
    evaluate.check(Evaluation(tasks=(Task('a', 'x'), Task('a', 'y'))))


def test_embed_keeps_the_given_order_and_z_scores_with_the_pre_training_statistics(workdir, tones, tmp_path):
  files = [str(tones / name) for name in ('middle_9.wav', 'low_0.wav', 'high_4.wav', 'low_0.wav')]
  embed.main(['--workdir', str(workdir), '--output', str(tmp_path / 'out.npz'), *files])
  with np.load(tmp_path / 'out.npz') as written:
    assert written['files'].tolist() == files
    embeddings = written['embeddings']
  run = load_encoder(workdir)
  expected = embed_clips(run.encoder, map(decode, files), run.config.log_mel, -6.0, 4.0, min_samples=15_200)
  assert embeddings.dtype == np.float32
  np.testing.assert_allclose(embeddings, expected, rtol=1e-5, atol=1e-6)


def test_embed_reads_a_csv_relative_to_itself(workdir, tones, tmp_path):
  names = ['tones/high_2.wav', 'tones/low_2.wav']
  (tmp_path / 'tones').symlink_to(tones)
  write_table(tmp_path / 'list.csv', ('speaker', 'file_name'), [('x', name) for name in names])
  command = [
    '-m',
    'selfie_jax.embed',
    '--workdir',
    workdir,
    '--output',
    tmp_path / 'out',
    '--csv',
    tmp_path / 'list.csv',
  ]
  run_python(*command)
  with np.load(tmp_path / 'out') as written:
    assert written['files'].tolist() == names
    assert written['embeddings'].shape == (2, 64)


@pytest.fixture
def learned_run(tmp_path, learned_vit):
  settings = dataclasses.replace(CONFIG, encoder=dataclasses.replace(VIT, positions='learned'))
  (tmp_path / 'learned').mkdir()
  return write_run(tmp_path / 'learned', settings)


def test_embed_takes_a_vit_and_names_the_clip_that_its_learned_positions_are_too_few_for(learned_run, tones, tmp_path):
  output = tmp_path / 'out.npz'
  embed.main(['--workdir', str(learned_run), '--output', str(output), str(tones / 'low_0.wav')])
  with np.load(output) as written:
    assert written['embeddings'].shape == (1, 64)
  with pytest.raises(UserError, match=r'low_9.wav is 1.20 s long, and .* for 1.03 s'):
    embed.main(['--workdir', str(learned_run), '--output', str(output), str(tones / 'low_9.wav')])


def test_evaluate_says_at_once_that_learned_positions_are_too_few(learned_run, config_file):
  with pytest.raises(UserError, match='unit of task "tones" is 1.50 s long'):
    evaluate.main(['--config', str(config_file), '--workdir', str(learned_run)])


@pytest.mark.parametrize('damage', ['text', 'empty', 'missing', 'endless'])
def test_embed_names_a_bad_file_and_writes_nothing(workdir, tones, tmp_path, monkeypatch, damage):
  bad = tmp_path / 'bad.wav'
  if damage == 'text':
    bad.write_text('not a sound')
  elif damage == 'empty':
    bad.touch()
  elif damage == 'endless':
    monkeypatch.setattr(embed, '_MOST_SECONDS', 2)
    soundfile.write(bad, np.full(3 * SAMPLE_RATE, 0.1), SAMPLE_RATE)
  output = tmp_path / 'new' / 'out.npz'
  output.parent.mkdir()
  with pytest.raises(UserError, match='bad.wav'):
    embed.main(['--workdir', str(workdir), '--output', str(output), str(tones / 'low_1.wav'), str(bad)])
  assert not list(output.parent.iterdir())


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], 'either FILES or --csv'),
    (['a.wav', '--csv', 'b.csv'], 'either FILES or --csv'),
    (['--csv', 'nowhere.csv'], 'nowhere.csv does not exist'),
    (['--output', 'nowhere/out.npz', __file__], 'nowhere does not exist'),
  ],
)
def test_embed_wants_to_know_what_to_embed(workdir, arguments, message):
  with pytest.raises(UserError, match=message):
    embed.main(['--workdir', str(workdir), '--output', 'out.npz', *arguments])


@pytest.mark.parametrize('command', ['evaluate', 'embed'])
def test_a_folder_that_is_no_run_is_one_clear_line(command, config_file, tones, tmp_path):
  arguments = {
    'evaluate': ['--config', config_file],
    'embed': ['--output', tmp_path / 'out.npz', tones / 'low_1.wav'],
  }[command]
  result = run_python('-m', f'selfie_jax.{command}', '--workdir', tmp_path / 'nowhere', *arguments, check=False)
  assert result.returncode == 1
  assert result.stderr.startswith('error: ')
  assert len(result.stderr.splitlines()) == 1
