import io
import json

import numpy as np
import pytest
import rich.console

from selfie_jax.config import Evaluation, Objective, Task
from selfie_jax.evaluation import pictures, report
from selfie_jax.evaluation.probe import ProbeResult
from selfie_jax.evaluation.protocol import LOG_MEL_STATISTICS, TRAINED, UNTRAINED, SplitResult
from selfie_jax.evaluation.tasks.folder import LabelledFolder, Split

PNG = b'\x89PNG'


def results_of(tmp_path, names=(LOG_MEL_STATISTICS, UNTRAINED, TRAINED), misses=10):
  """Two tasks of 40 test clips; the trained encoder misses 10 of them, the others 20."""
  labels = np.arange(120) % 2
  split = Split(np.arange(60), np.arange(60, 80), np.arange(80, 120))
  tasks = {}
  for task in ('first', 'second'):
    folder = LabelledFolder(task, (), labels, ('no', 'yes'), (split,))
    probes = {}
    for name in names:
      predictions = np.tile(labels[split.test], (3, 1))
      predictions[:, : misses if name == TRAINED else 20] ^= 1
      probes[name] = ProbeResult(predictions, 1e-3, np.full(3, 0.5), np.full(3, 9))
    settings = Task(task, f'data/{task}', caveat='It is known why.')
    tasks[task] = report.summarize_task(folder, [SplitResult(-6.0, 4.0, probes, np.zeros((40, 2)))], settings)
  return report.summarize(tmp_path, 1_234, Evaluation(), tasks)


def printed(results, width=140):
  stream = io.StringIO()
  report.print_table(results, rich.console.Console(file=stream, width=width))
  return stream.getvalue()


def test_the_summary_is_what_the_predictions_say(tmp_path):
  results = results_of(tmp_path)
  first = results['tasks']['first']
  assert list(first['representations']) == ['majority', 'log_mel_statistics', 'untrained', 'trained']
  assert first['representations']['trained']['accuracy'] == 0.75
  assert first['representations']['trained']['accuracies'] == (0.75,) * 3
  assert first['difference']['accuracy'] == 0.25
  assert first['splits'][0]['probes']['trained']['learning_rate'] == 1e-3
  assert results['mean']['representations']['untrained']['accuracy'] == 0.5
  assert results['mean']['difference'] == {'accuracy': 0.25}  # Tasks may share clips: no interval.


def test_the_table_has_a_row_a_task_and_the_mean_last(tmp_path):
  rows = [
    line for line in printed(results_of(tmp_path)).splitlines() if line[1:8].strip() in ('first', 'second', 'mean')
  ]
  assert [row.split('│')[1].strip() for row in rows] == ['first', 'second', 'mean']
  assert all('75.0' in row and '+25.0' in row for row in rows)


def test_a_folder_that_is_named_like_markup_keeps_its_name(tmp_path):
  one_line = ''.join(printed(results_of(tmp_path / 'run[/bold]'), width=400).split())  # A long title is wrapped.
  assert 'run[/bold]' in one_line


def test_the_table_loses_nothing_in_a_narrow_window(tmp_path):
  results = results_of(tmp_path)
  narrow = printed(results, width=80)
  assert max(map(len, narrow.splitlines())) <= 80
  assert sorted(narrow.replace('│', ' ').split()[-30:]) == sorted(printed(results).replace('│', ' ').split()[-30:])
  assert '…' not in narrow


@pytest.mark.parametrize(
  ('misses', 'reading'), [(20, None), (21, 'too few to tell'), (40, 'more than chance explains')]
)
def test_a_task_that_training_has_not_helped_is_pointed_out(tmp_path, misses, reading):
  text = printed(results_of(tmp_path, misses=misses))
  assert ('below the untrained' in text) == (reading is not None)
  assert reading is None or text.count(reading) == 2
  assert ('It is known why.' in text) == (reading is not None)


def test_without_baselines_there_is_the_trained_encoder_alone(tmp_path):
  results = results_of(tmp_path, names=(TRAINED,))
  assert list(results['mean']['representations']) == ['trained']
  assert 'difference' not in results['mean']
  assert 'untrained' not in printed(results)


def test_a_crash_half_way_leaves_the_old_results(tmp_path, monkeypatch):
  path = tmp_path / 'results.json'
  results = results_of(tmp_path)
  report.write_results(results, path)
  before = path.read_text()
  with pytest.raises(TypeError):
    report.write_results({**results, 'step': object()}, path)
  monkeypatch.setattr('os.replace', lambda *_: (_ for _ in ()).throw(OSError('disk full')))
  with pytest.raises(OSError, match='disk full'):
    report.write_results({**results, 'step': 5}, path)
  assert path.read_text() == before
  assert json.loads(before)['step'] == 1_234
  assert [file.name for file in tmp_path.iterdir()] == ['results.json']


def test_the_training_picture_needs_a_finished_line_of_metrics(tmp_path):
  metrics, output = tmp_path / 'metrics.jsonl', tmp_path / 'curves.png'
  pictures.draw_training(metrics, Objective(), output)
  assert not output.exists()
  line = {'step': 1, 'loss': 3.0, 'invariance': 0.1, 'diversity': 0.01, 'decorrelation': 0.2, 'effective_rank': 9.0}
  metrics.write_text(json.dumps(line) + '\n{"step": 2, "lo')
  pictures.draw_training(metrics, Objective(), output)
  assert output.read_bytes().startswith(PNG)
  metrics.write_text('{"step": 1, "lo')
  pictures.draw_training(metrics, Objective(), output)
  assert not output.exists()


@pytest.mark.parametrize(('clips', 'classes'), [(4, 2), (90, 30)])
def test_embeddings_are_drawn_for_few_clips_and_for_many_classes(tmp_path, clips, classes):
  rng = np.random.default_rng(0)
  names = [f'class {i}' for i in range(classes)]
  embeddings = rng.normal(size=(clips, 16)).astype(np.float32)
  pictures.draw_embeddings(embeddings, np.arange(clips) % classes, names, 'mine', tmp_path / 'picture.png')
  assert (tmp_path / 'picture.png').read_bytes().startswith(PNG)


@pytest.mark.filterwarnings('ignore:invalid value')  # PCA's share of a variance of 0.
def test_a_collapsed_encoder_is_drawn_too(tmp_path):
  embeddings = np.ones((20, 16), np.float32)
  pictures.draw_embeddings(embeddings, np.arange(20) % 2, ('a', 'b'), 'collapsed', tmp_path / 'picture.png')
  assert (tmp_path / 'picture.png').read_bytes().startswith(PNG)


def test_three_clips_are_no_picture_and_an_old_one_goes(tmp_path):
  (tmp_path / 'picture.png').touch()
  pictures.draw_embeddings(np.eye(3), np.arange(3), ('a', 'b', 'c'), 'few', tmp_path / 'picture.png')
  assert not (tmp_path / 'picture.png').exists()
