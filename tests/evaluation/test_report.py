import io
import json

import numpy as np
import pytest
import rich.console

from selfie_jax.config import Evaluation, Task
from selfie_jax.evaluation.protocol import LOG_MEL_STATISTICS, TRAINED, UNTRAINED, TaskResult
from selfie_jax.evaluation.readouts.prediction import Prediction
from selfie_jax.evaluation.reporting import results as report
from selfie_jax.evaluation.reporting.table import print_table
from selfie_jax.evaluation.tasks.folder import LabelledFolder, Split

SPLIT = Split(np.arange(60), np.arange(60, 80), np.arange(80, 120))


def folder_of(name, labels, classes, splits=(SPLIT,)):
  return LabelledFolder(name, name.title(), (), labels, classes, splits, 2.0, 1e-3, 'fingerprint')


def results_of(tmp_path, names=(LOG_MEL_STATISTICS, UNTRAINED, TRAINED), misses=10, readouts=('linear',)):
  """Two tasks of 40 test clips; the trained encoder misses 10 of them, the others 20."""
  labels = np.arange(120) % 2
  tasks = {}
  for task in ('first', 'second'):
    found = {}
    for name in names:
      predictions = np.tile(labels[SPLIT.test], (3, 1))
      predictions[:, : misses if name == TRAINED else 20] ^= 1
      found[name] = [Prediction(predictions, {'learning_rate': 1e-3})]
    folder = folder_of(task, labels, ('no', 'yes'))
    result = TaskResult(folder, dict.fromkeys(readouts, found), -6.0, 4.0, np.zeros((120, 2)), None)
    tasks[task] = report.summarize_task(result, Task(task, f'data/{task}', caveat='It is known why.'))
  evaluation = Evaluation(readouts=tuple(name for name in readouts if not name.endswith('_shots')))
  return report.summarize(tmp_path, 1_234, evaluation, tasks)


def printed(results, width=140):
  stream = io.StringIO()
  print_table(results, rich.console.Console(file=stream, width=width))
  return stream.getvalue()


def test_the_summary_is_what_the_predictions_say(tmp_path):
  results = results_of(tmp_path)
  first = results['tasks']['first']
  linear = first['readouts']['linear']
  assert list(linear['representations']) == ['majority', 'log_mel_statistics', 'untrained', 'trained']
  assert linear['representations']['trained']['score'] == 0.75
  assert linear['representations']['trained']['scores'] == (0.75,) * 3
  assert linear['difference']['score'] == 0.25
  assert linear['details']['trained'] == [{'learning_rate': 1e-3}]
  assert first['metric'] == 'accuracy'
  assert first['clips'] == [{'train': 60, 'valid': 20, 'test': 40}]
  assert results['mean']['linear']['representations']['untrained']['score'] == 0.5
  assert results['mean']['linear']['difference'] == {'score': 0.25}  # Tasks may share clips: no interval.


def test_the_confusion_matrix_counts_clips_over_folds_and_averages_seeds():
  labels = np.arange(6) % 3
  folds = (Split(np.arange(3), np.arange(0), np.arange(3, 6)), Split(np.arange(3, 6), np.arange(0), np.arange(3)))
  folder = folder_of('three', labels, ('a', 'b', 'c'), folds)
  found = [Prediction(np.array([[0, 1, 2], [0, 2, 2]]), {}), Prediction(np.array([[0, 1, 0], [0, 1, 0]]), {})]
  assert report.confusion(found, folder) == [[2, 0, 0], [0, 1.5, 0.5], [1, 0, 1]]


def test_a_task_of_several_labels_has_a_mean_average_precision_and_no_confusion(tmp_path):
  labels = np.random.default_rng(0).random((120, 3)) < 0.5
  scores = np.tile(labels[SPLIT.test].astype(float), (2, 1, 1))
  folder = folder_of('tags', labels, ('a', 'b', 'c'))
  found = {TRAINED: [Prediction(scores, {})]}
  summary = report.summarize_task(TaskResult(folder, {'linear': found}, 0, 1, np.zeros((120, 2)), None), Task('tags'))
  assert summary['metric'] == 'mean_average_precision'
  assert summary['readouts']['linear']['representations']['trained']['score'] == pytest.approx(1)
  assert summary['confusion'] is None
  results = report.summarize(tmp_path, None, Evaluation(), {'tags': summary})
  assert results['mean']['linear']['representations']['trained']['macro_f1'] is None
  assert 'Test mAP in %' in printed(results)


def test_more_than_200_classes_have_no_confusion_matrix():
  folder = folder_of('many', np.arange(201), tuple(map(str, range(201))))
  assert report.confusion([], folder) is None


def test_the_table_has_a_row_a_task_and_the_mean_last(tmp_path):
  rows = [
    line for line in printed(results_of(tmp_path)).splitlines() if line[1:8].strip() in ('first', 'second', 'mean')
  ]
  assert [row.split('│')[1].strip() for row in rows] == ['first', 'second', 'mean']
  assert all('75.0' in row and '+25.0' in row for row in rows)


def test_the_other_readouts_have_a_table_of_their_own_that_fits_a_narrow_window(tmp_path):
  readouts = ('linear', 'knn', 'fine_tuning', 'linear_1_shots', 'linear_5_shots', 'linear_20_shots')
  narrow = printed(results_of(tmp_path, readouts=readouts), width=80)
  assert max(map(len, narrow.splitlines())) <= 80
  assert narrow.count('75.0') == 6 + 3 * 5  # The headline's scores have an F1 each
  assert '…' not in narrow


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
  results = results_of(tmp_path, names=(TRAINED,), readouts=('linear', 'knn'))
  assert list(results['mean']['linear']['representations']) == ['trained']
  assert 'difference' not in results['mean']['linear']
  assert 'untrained' not in printed(results)


def test_rows_of_a_matrix_are_lines_of_the_file_and_text_is_left_alone(tmp_path):
  results = {'matrix': [[1.5, -2e-05], [None, True]], 'text': '[\n 1,\n 2 ]', 'names': ['a [ 1', 'b'], 'none': []}
  report.write_results(results, tmp_path / 'results.json')
  text = (tmp_path / 'results.json').read_text()
  assert json.loads(text) == results
  assert '[1.5, -2e-05],\n' in text


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
