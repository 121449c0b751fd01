import dataclasses
import json
import shutil

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from selfie_jax import evaluate
from selfie_jax.config import Evaluation, Task
from selfie_jax.data.decode import decode
from selfie_jax.embedding import embeddings
from selfie_jax.errors import UserError
from selfie_jax.evaluation.features import shares
from selfie_jax.evaluation.tasks.folder import load_folder
from tests.evaluation.conftest import CONFIG, VIT, write_run
from tests.processes import run_python

CONFIG_FILE = """
import ml_collections


def get_config():
  return ml_collections.ConfigDict({{
    'tasks': [{{'name': 'tones', 'path': {path!r}, 'unit_seconds': 1.5}}],
    'seeds': (42, 43), 'learning_rates': (1e-3, 1e-2), 'epochs': 20,
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


def test_evaluate_prints_the_table_and_writes_results_scores_events_and_a_page(run, config_file):
  result = run_python('-m', 'selfie_jax.evaluate', '--config', config_file, '--workdir', run)
  assert 'tones' in result.stdout
  assert 'mean' in result.stdout
  assert 'Traceback' not in result.stderr
  written = json.loads((run / 'eval/results.json').read_text())
  assert (written['step'], written['protocol'], written['evaluation']['seeds']) == (7, 'corrected', [42, 43])
  assert written['tasks']['tones']['log_mel_mean'] == -6  # Of the pre-training.
  scores = written['tasks']['tones']['readouts']['linear']['representations']
  assert list(scores) == ['majority', 'log_mel_statistics', 'untrained', 'trained']
  assert scores['majority']['score'] == pytest.approx(1 / 3)
  assert scores['log_mel_statistics']['score'] == 1  # Three tones are not hard to tell apart.
  assert json.loads((run / 'eval/step_7/results.json').read_text()) == written
  trained = scores['trained']['score']
  line = {'step': 7, 'mean_score': trained, 'scores': {'tones': trained}}
  assert json.loads((run / 'eval/scores.jsonl').read_text()) == line
  [events] = EventAccumulator(str(run / 'eval')).Reload().Scalars('linear/tones')
  assert (events.step, events.value) == (7, pytest.approx(trained))
  assert '</html>' in (run / 'eval/report.html').read_text()


def arguments(config_file, run, *overrides):
  quick = ('--config.baselines=False', '--config.epochs=3', '--config.seeds=(1,)')
  return ['--config', str(config_file), '--workdir', str(run), *quick, *overrides]


def test_what_was_embedded_once_is_not_embedded_again_for_another_readout_or_after_damage(
  run, config_file, monkeypatch, capfd
):
  """Nor after a kill: a share that was written is never computed again."""
  encoded = []
  monkeypatch.setattr(shares, '_CLIPS_CPU', 8)  # Four shares of the 30 clips.
  monkeypatch.setattr(shares, 'represent', lambda *a, **k: encoded.append(1) or embeddings.represent(*a, **k))
  evaluate.main(arguments(config_file, run))
  first = (run / 'eval/results.json').read_text()
  files = sorted((run / 'eval/embeddings').iterdir())
  assert len(encoded) == len(files) == 4
  evaluate.main(arguments(config_file, run, '--config.readouts=("knn",)', '--config.shots=(2, 9)'))
  task = json.loads((run / 'eval/results.json').read_text())['tasks']['tones']
  assert set(task['readouts']) == {'knn', 'linear_2_shots', 'linear_9_shots'}
  # More than there are: said once, and the true numbers are in the results.
  assert capfd.readouterr().err.count('tones: 9 shots asked for, classes have 5 training clips') == 1
  assert task['readouts']['linear_2_shots']['details']['trained'][0]['train_clips'] == [6]
  assert task['readouts']['linear_9_shots']['details']['trained'][0]['train_clips'] == [15]
  assert len(encoded) == 4

  files[0].unlink()
  data = bytearray(files[1].read_bytes())
  data[-100] ^= 1
  files[1].write_bytes(data)
  files[2].write_bytes(files[2].read_bytes()[:-1])
  (run / 'eval/embeddings/of_another_checkpoint.npy').touch()
  evaluate.main(arguments(config_file, run))
  assert len(encoded) == 4 + 3
  assert (run / 'eval/results.json').read_text() == first
  assert sorted((run / 'eval/embeddings').iterdir()) == files


def test_protocol_evar_takes_the_published_rate_and_statistics_of_the_tasks_train_clips_alone(
  run, config_file, tones, monkeypatch
):
  seen = []
  log_mel_moments = embeddings.log_mel_moments
  monkeypatch.setattr(
    embeddings, 'log_mel_moments', lambda clips, *a, **k: log_mel_moments(seen.extend(clips) or seen, *a, **k)
  )
  evaluate.main(arguments(config_file, run, '--config.protocol=evar'))
  results = json.loads((run / 'eval/results.json').read_text())
  folder = load_folder(Task('tones', str(tones), unit_seconds=1.5))
  decoded = [decode(folder.files[row]) for row in folder.splits[0].train]
  padded = [np.pad(clip[:24_000], (0, 24_000 - len(clip[:24_000]))).tobytes() for clip in decoded]
  assert sorted(clip.tobytes() for clip in seen) == sorted(padded)
  assert results['protocol'] == 'evar'
  assert results['tasks']['tones']['log_mel_mean'] < -6  # Of tones, and of the zeros behind them.
  [details] = results['tasks']['tones']['readouts']['linear']['details']['trained']
  assert details['learning_rate'] == 1e-3  # There is no task.json.


def test_broken_clips_are_named_all_at_once_and_nothing_is_written(run, config_file, tones, tmp_path):
  folder = shutil.copytree(tones, tmp_path / 'tones')
  (folder / 'low_0.wav').write_text('not a sound')
  (folder / 'low_1.wav').write_bytes(b'')
  config_file.write_text(CONFIG_FILE.format(path=str(folder)))
  with pytest.raises(UserError, match='low_0.wav: .*low_1.wav: empty.* Take 2 of 30 clips out of the metadata.csv'):
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
    ('--config.projector={}', 'unknown config key "projector": it is one of a training config'),
    ('--config.protocol=eval', '"protocol" is "eval"; it can be corrected, evar'),
    (
      '--config.readouts=("liner",)',
      '"readouts" has "liner"; it can have linear, logistic_regression, knn, fine_tuning',
    ),
    ('--config.readouts=()', '"readouts" is empty'),
    ('--config.shots=(5, 0)', '"shots" has 0'),
    ('--config.fine_tuning.epochs=0', '"fine_tuning.epochs" is 0'),
    ('--config.only=("tone",)', 'did you mean "tones"'),
    ('--config.tasks=({"name": "esc50"},)', 'task "esc50" has no path: give it one, or --config.tasks_dir=DIR'),
  ],
)
def test_an_evaluation_config_that_makes_no_sense_is_one_clear_line(run, config_file, override, message):
  with pytest.raises(UserError, match=message):
    evaluate.main(['--config', str(config_file), '--workdir', str(run), override])


def test_a_unit_shorter_than_a_window_of_the_spectrogram_is_refused(run, config_file):
  config_file.write_text(config_file.read_text().replace("'unit_seconds': 1.5", "'unit_seconds': 0.01"))
  with pytest.raises(UserError, match='unit of task "tones" is 0.01 s long, and one window of the spectrogram 0.064 s'):
    evaluate.main(arguments(config_file, run))


def test_two_tasks_of_one_name_are_refused():
  with pytest.raises(UserError, match='the name "a" 2 times'):
    evaluate.check(Evaluation(tasks=(Task('a', 'x'), Task('a', 'y'))))


def test_protocol_evar_has_the_published_readout_and_no_other():
  with pytest.raises(UserError, match='leave out shots'):
    evaluate.check(Evaluation(protocol='evar', shots=(5,)))
  with pytest.raises(UserError, match='readouts other than linear'):
    evaluate.check(Evaluation(protocol='evar', readouts=('linear', 'knn')))


@pytest.fixture
def learned_run(tmp_path, learned_vit):
  settings = dataclasses.replace(CONFIG, encoder=dataclasses.replace(VIT, positions='learned'))
  (tmp_path / 'learned').mkdir()
  return write_run(tmp_path / 'learned', settings)


def test_evaluate_says_at_once_that_learned_positions_are_too_few(learned_run, config_file):
  with pytest.raises(UserError, match='unit of task "tones" is 1.50 s long'):
    evaluate.main(['--config', str(config_file), '--workdir', str(learned_run)])


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
