"""The report page, in a real browser."""

import dataclasses
import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import soundfile

from selfie_jax.config import Config, Evaluation, Task
from selfie_jax.evaluation import health
from selfie_jax.evaluation.protocol import LOG_MEL_STATISTICS, TRAINED, UNTRAINED, TaskResult
from selfie_jax.evaluation.readouts.prediction import Prediction
from selfie_jax.evaluation.reporting import results as report
from selfie_jax.evaluation.reporting.charts.clips import embedding_map
from selfie_jax.evaluation.reporting.exhibits import choose_clips, make_exhibit
from selfie_jax.evaluation.reporting.page import write_page
from selfie_jax.evaluation.tasks.folder import LabelledFolder, Split
from selfie_jax.files import as_path
from tests.conftest import require

HOSTILE = '<script>alert(1)</script>&%{x}"\'</style>.wav'
FLAGS = (
  *('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--disable-dev-shm-usage', '--no-first-run'),
  *('--disable-background-networking', '--disable-component-update', '--disable-sync', '--disable-extensions'),
)


def task_result(folder, name, classes, *, clips=60, folds=1, multi_label=False, baselines=True, readouts=('linear',)):
  """A task whose clips are one file, with random predictions that are often right."""
  random = np.random.default_rng(len(name))
  sound = folder / HOSTILE.replace('/', '_')
  if not sound.exists():
    soundfile.write(sound, random.normal(size=8_000) / 10, 16_000)
  labels = np.arange(clips) % len(classes)
  tests = np.array_split(random.permutation(clips), max(2, folds))[:folds]
  splits = tuple(Split(np.setdiff1d(np.arange(clips), rows)[4:], np.arange(4), np.sort(rows)) for rows in tests)
  if multi_label:
    labels = random.random((clips, len(classes))) < 0.4
  names = (LOG_MEL_STATISTICS, UNTRAINED, TRAINED) if baselines else (TRAINED,)

  def predict(split, skill):
    truth = labels[split.test]
    if multi_label:
      return truth + random.normal(size=(2, *truth.shape))
    found = random.integers(len(classes), size=(2, len(truth)))
    return np.where(random.random(found.shape) < skill, truth, found)

  predictions = {
    readout: {
      key: [Prediction(predict(split, 0.3 + 0.2 * i), {'learning_rate': 1e-3}) for split in splits]
      for i, key in enumerate(names)
    }
    for readout in readouts
  }
  files = (as_path(sound),) * clips
  embeddings = random.normal(size=(clips, 8)).astype(np.float32)
  labelled = LabelledFolder(name, f'{name}, a task', files, labels, tuple(classes), splits, 1.0, 1e-3, 'fingerprint')
  return TaskResult(labelled, predictions, -6.0, 4.0, embeddings, embeddings if baselines else None)


def page_of(folder, tasks, *, step=600, metrics=True, protocol='corrected', with_health=True):
  """Writes the page of some tasks, and returns it."""
  readouts = tuple(name for name in tasks[0].predictions if not name.endswith('_shots'))
  evaluation = Evaluation(readouts=readouts, protocol=protocol)
  summaries = {task.folder.name: report.summarize_task(task, Task(task.folder.name)) for task in tasks}
  measured = None
  if with_health:
    random = np.random.default_rng(0)
    views = random.normal(size=(2, 32, 8))
    measured = {'trained': health.measure([task.embeddings for task in tasks], views)}
    measured |= {'untrained': measured['trained']} if tasks[0].untrained_embeddings is not None else {}
  results = report.summarize(folder / 'my_run', step, evaluation, summaries, measured)
  results = json.loads(json.dumps(results))  # As it is read from its file.
  score = results['mean'][readouts[0]]['representations']['trained']['score']
  lines = [
    {'step': number, 'mean_score': score, 'scores': {task.folder.name: score for task in tasks}}
    for number in (200, 400, 600)
  ]
  row = {'loss': 3.0, 'invariance': 0.1, 'diversity': 0.01, 'decorrelation': 0.2, 'effective_rank': 9.0, 'rankme': 4.0}
  page = folder / 'report.html'
  write_page(
    as_path(page),
    results,
    config=Config(),
    exhibits={task.folder.name: make_exhibit(task, 16_000, len(tasks)) for task in tasks},
    history=lines if metrics else lines[:1],
    metrics=[{'step': number, **row} for number in range(0, 600, 20)] if metrics else [],
  )
  return page


def opened(page, *flags):
  """Returns the page's elements once all charts are drawn, and what the browser said in its console."""
  browser = shutil.which('chromium')
  require('chromium', browser)
  profile = page.parent / 'profile'
  log = ('--enable-logging=stderr', '--v=0', '--virtual-time-budget=60000', f'--user-data-dir={profile}')
  command = [browser, *FLAGS, *log, *flags, '--window-size=1400,1000', '--dump-dom', page.as_uri()]
  done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
  return done.stdout, [line for line in done.stderr.splitlines() if 'CONSOLE' in line]


def drawn_charts(dom):
  """Returns the names of the charts that plotly has drawn."""
  return re.findall(r'<div class="plot js-plotly-plot" data-chart="([^"]+)"', dom)


def test_a_browser_draws_every_part_without_an_error_and_without_the_network(tmp_path):
  readouts = ('linear', 'knn', 'linear_5_shots', 'linear_20_shots')
  tasks = [
    task_result(tmp_path, 'gtzan', ['rock', HOSTILE, '<b>'], readouts=readouts),
    task_result(tmp_path, HOSTILE, [f'class {i}' for i in range(30)], clips=120, folds=2, readouts=readouts),
    task_result(tmp_path, 'tags', ['a', 'b', 'c'], multi_label=True, readouts=readouts),
  ]
  dom, said = opened(page_of(tmp_path, tasks))
  assert said == []  # The page's policy makes an error of any request, and of any script that is not its own.
  charts = [html.unescape(name) for name in drawn_charts(dom)]
  wanted = ['scores', 'shots', 'published', 'curve-mean', 'curve-task-gtzan', 'loss', 'metric-rankme', 'spectrum']
  wanted += ['deviations', 'correlation-trained', 'correlation-untrained', 'map-gtzan', 'confusion-gtzan']
  wanted += [f'map-{HOSTILE}', f'confusion-{HOSTILE}', 'map-tags']
  assert set(wanted) <= set(charts)
  assert 'confusion-tags' not in charts
  assert len(charts) == dom.count('class="main-svg"') // 3  # Plotly's layers: nothing is an empty frame.
  for section in ('scores', 'readouts', 'published', 'checkpoints', 'training', 'health', 'tasks', 'method'):
    assert f'<section id="{section}"' in dom
  assert dom.count('<audio') == 3 + 12 + 3
  assert '<script>alert' not in dom


def test_the_browser_would_tell_of_a_request_and_of_a_foreign_script(tmp_path):
  page = page_of(tmp_path, [task_result(tmp_path, 'one', ['a', 'b'])])
  text = page.read_text()
  page.write_text(text.replace('<main', '<img src="http://192.0.2.1/x.png"><script>document.title = 1</script><main'))
  _, said = opened(page)
  assert len([line for line in said if 'violates' in line]) == 2


def test_what_is_not_there_is_left_out(tmp_path):
  many = [f'speaker {i}' for i in range(1_251)]
  tasks = [task_result(tmp_path, 'vc', many, baselines=False)]
  dom, said = opened(page_of(tmp_path, tasks, step=None, metrics=False, with_health=False, protocol='evar'))
  assert said == []
  assert drawn_charts(dom) == ['scores', 'map-vc']
  assert '1,251 classes are too many' in dom
  for section in ('readouts', 'published', 'checkpoints', 'training', 'health'):
    assert f'id="{section}"' not in dom


def test_one_task_has_no_mean_and_one_number_of_shots_no_chart(tmp_path):
  text = page_of(
    tmp_path, [task_result(tmp_path, 'one', ['a', 'b'], readouts=('linear', 'linear_5_shots'))]
  ).read_text()
  assert 'data-chart="curve-task-one"' in text
  assert 'unweighted mean' not in text
  assert 'data-chart="curve-mean"' not in text
  assert 'data-chart="shots"' not in text
  assert 'effective rank (RankMe), of at most 8' in text


def test_a_mean_of_different_metrics_says_so(tmp_path):
  tasks = [task_result(tmp_path, 'one', ['a', 'b']), task_result(tmp_path, 'tags', ['a', 'b'], multi_label=True)]
  assert 'unweighted mean<small>of accuracy and mAP</small>' in page_of(tmp_path, tasks).read_text()


def test_a_legend_is_of_classes_and_of_a_multi_label_task_of_how_many_labels(tmp_path):
  exhibit = make_exhibit(task_result(tmp_path, 'one', ['a', 'b']), 16_000, 1)
  exhibit = dataclasses.replace(exhibit, predicted=tuple('b' for _ in exhibit.files))  # Every clip of a is a ring.
  entries = [trace for trace in embedding_map('one', exhibit).data if trace.get('showlegend', True)]
  assert [trace['name'] for trace in entries] == ['a', 'b']
  assert not any('symbol' in trace['marker'] for trace in entries)

  tags = make_exhibit(task_result(tmp_path, 'tags', list('abcdef'), multi_label=True), 16_000, 1)
  names = [trace['name'] for trace in embedding_map('tags', tags).data if trace.get('showlegend', True)]
  assert set(names) <= {'0 labels', '1 label', '2 labels', '3 labels or more'}


def test_the_page_needs_nothing_else_and_is_not_too_big(tmp_path):
  page = page_of(tmp_path, [task_result(tmp_path, 'one', ['a', 'b'])])
  text = page.read_text()
  assert len(text) < 8e6
  assert not re.search(r'<(script|img|audio|link|iframe)[^>]+(src|href)="(?!data:)', text)


def test_published_numbers_stand_only_beside_tasks_of_their_name(tmp_path):
  text = page_of(
    tmp_path, [task_result(tmp_path, 'gtzan', ['a', 'b']), task_result(tmp_path, 'x', ['a', 'b'])]
  ).read_text()
  table = text[text.index('<section id="published"') : text.index('<section id="checkpoints"')]
  assert re.findall(r'<th scope="col">(.*?)</th>', table) == ['encoder', 'GTZAN']
  assert 'published numbers' in table
  assert 'not the same' in table  # The protocol.
  assert '84.1' in table


def test_clips_are_of_several_classes_in_turn_right_and_wrong():
  labels = np.repeat(np.arange(4), 3)
  predicted = np.where(np.arange(12) % 3 == 1, (labels + 1) % 4, labels)
  assert choose_clips(labels, predicted, 12) == [0, 4, 6, 10]
  assert choose_clips(labels, predicted, 2) == [0, 10]
  assert choose_clips(labels, labels, 12) == [0, 3, 6, 9]  # None is wrong.
  assert choose_clips(np.eye(3, dtype=bool), None, 12) == [0, 1, 2]


@pytest.mark.parametrize(('clips', 'shown'), [(6, False), (8, True)])  # Half of them are for the test.
def test_too_few_clips_have_no_map(tmp_path, clips, shown):
  exhibit = make_exhibit(task_result(tmp_path, 'few', ['a', 'b'], clips=clips), 16_000, 1)
  assert (embedding_map('few', exhibit) is not None) == shown
  assert exhibit.clips
