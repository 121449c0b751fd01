"""Charts of what the representations score."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from selfie_jax.evaluation.protocol import LOG_MEL_STATISTICS, TRAINED, UNTRAINED
from selfie_jax.evaluation.reporting.charts.chart import MARKERS, NAMES, PALETTE, Chart, name_axis, plain
from selfie_jax.evaluation.reporting.peers import PEERS, TASKS

_OFFSETS = {TRAINED: -0.13, UNTRAINED: 0.13}  # Of a row: intervals do not lie on each other.


def scores(tasks: Mapping[str, Any], readout: str) -> Chart:
  """A row a task: what each representation scores, the intervals of both encoders."""
  found = {name: task['readouts'][readout] for name, task in tasks.items()}
  data = []
  for key in next(iter(found.values()))['representations']:
    figures = [task['representations'][key] for task in found.values()]
    trace = {
      'name': NAMES[key],
      'x': [100 * figure['score'] for figure in figures],
      'y': [row + _OFFSETS.get(key, 0) for row in range(len(found))],
      'mode': 'markers',
      'marker': MARKERS[key],
      'customdata': [
        [plain(name), *(100 * end for end in figure['interval'])] for name, figure in zip(found, figures, strict=True)
      ],
      'hovertemplate': '%{customdata[0]}: <b>%{x:.1f} %</b><br>95 %: %{customdata[1]:.1f} to %{customdata[2]:.1f}'
      f'<extra>{NAMES[key]}</extra>',
    }
    if key in (UNTRAINED, TRAINED):
      trace['error_x'] = _error_bars(figures) | {'color': MARKERS[key]['color']}
    data.append(trace)
  layout = {
    'xaxis': {'title': {'text': 'test score, %'}, 'rangemode': 'tozero'},
    'yaxis': name_axis(list(found)),
  }
  text = 'Bars are 95 % intervals over the choice of test clips.'
  return Chart('scores', 'What each representation scores on each task', text, data, layout, 110 + 46 * len(found))


def _error_bars(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  return {
    'type': 'data',
    'symmetric': False,
    'array': [100 * (figure['interval'][1] - figure['score']) for figure in figures],
    'arrayminus': [100 * (figure['score'] - figure['interval'][0]) for figure in figures],
    'thickness': 1.5,
    'width': 4,
  }


def learning_curves(results: Mapping[str, Any], readout: str, history: Sequence[Mapping[str, Any]]) -> list[Chart]:
  """The mean's and each task's score over the checkpoints; none if fewer than two were evaluated.

  One task has no mean.
  """
  if len(history) < 2:
    return []
  steps = [line['step'] for line in history]
  charts = []
  if len(results['tasks']) > 1:
    means = [line.get('mean_score') for line in history]
    mean = _learning_curve('mean', 'unweighted mean of the tasks', steps, means, results['mean'][readout], {})
    charts.append(dataclasses.replace(mean, kind='wide', height=320))
  for name, task in results['tasks'].items():
    values = [line.get('scores', {}).get(name) for line in history]
    peers = {model: accuracies[name] for model, accuracies in PEERS.items() if accuracies.get(name)}
    charts.append(_learning_curve(f'task-{name}', name, steps, values, task['readouts'][readout], peers))
  return charts


def _learning_curve(
  key: str,
  title: str,
  steps: Sequence[int],
  values: Sequence[float | None],
  figures: Mapping[str, Any],
  peers: Mapping[str, float],
) -> Chart:
  data = []
  span = [steps[0], steps[-1]]
  for model, accuracy in peers.items():
    data.append(
      {
        'name': f'{model}, published',
        'x': span,
        'y': [accuracy, accuracy],
        'mode': 'lines',
        'line': {'color': '--faint', 'width': 1, 'dash': 'dot'},
        'hovertemplate': f'{model}, published: %{{y:.1f}} %<extra></extra>',
      }
    )
  for name, dash in ((LOG_MEL_STATISTICS, 'dot'), (UNTRAINED, 'dash')):
    if name in figures['representations']:
      level = 100 * figures['representations'][name]['score']
      data.append(
        {
          'name': NAMES[name],
          'x': span,
          'y': [level, level],
          'mode': 'lines',
          'line': {'color': '--muted', 'width': 1.5, 'dash': dash},
          'hovertemplate': f'{NAMES[name]}: %{{y:.1f}} %<extra></extra>',
        }
      )
  data.append(
    {
      'name': NAMES[TRAINED],
      'x': list(steps),
      'y': [None if value is None else 100 * value for value in values],
      'mode': 'lines+markers',
      'line': {'color': '--accent', 'width': 2.5},
      'marker': {'size': 6},
      'hovertemplate': 'step %{x:,}: <b>%{y:.1f} %</b><extra></extra>',
    }
  )
  layout = {
    'xaxis': {'title': {'text': 'step'}},
    'yaxis': {'title': {'text': 'test score, %'}},
    'showlegend': False,
  }
  return Chart(f'curve-{key}', title, '', data, layout, 240, 'small')


def published(tasks: Mapping[str, Any], readout: str) -> Chart | None:
  """The published scores of the tasks that are among the nine, and ours; None if there are no such tasks."""
  shared = [name for name in TASKS if name in tasks]
  if not shared:
    return None
  rows = range(len(shared))
  data = [
    {
      'name': f'{model} (published)',
      'x': [accuracies[name] for name in shared],
      'y': [row + 0.1 for row in rows],
      'mode': 'markers',
      'marker': {'color': PALETTE[i], 'size': 9, 'opacity': 0.8, 'symbol': 'diamond'},
      'hovertemplate': f'{model}: %{{x:.1f}} %<extra>published</extra>',
    }
    for i, (model, accuracies) in enumerate(PEERS.items())
  ]
  ours = [tasks[name]['readouts'][readout]['representations'][TRAINED] for name in shared]
  data.append(
    {
      'name': 'this encoder (measured here)',
      'x': [100 * figure['score'] for figure in ours],
      'y': [row - 0.2 for row in rows],
      'mode': 'markers',
      'marker': MARKERS[TRAINED],
      'error_x': _error_bars(ours) | {'color': '--accent'},
      'hovertemplate': 'this encoder: <b>%{x:.1f} %</b><extra>measured here</extra>',
    }
  )
  layout = {
    'xaxis': {'title': {'text': 'test accuracy, %'}, 'range': [0, 100]},
    'yaxis': name_axis([TASKS[name] for name in shared]),
  }
  title = 'This encoder beside published linear evaluations'
  text = 'Diamonds are numbers that others have published, circles were measured here.'
  return Chart('published', title, text, data, layout, 190 + 46 * len(shared))


def few_shots(mean: Mapping[str, Any]) -> Chart | None:
  """The mean score over the number of labelled clips a class; None of fewer than two such numbers."""
  shots = sorted(int(name.split('_')[1]) for name in mean if name.endswith('_shots'))
  if len(shots) < 2:
    return None
  data = []
  for key in (LOG_MEL_STATISTICS, UNTRAINED, TRAINED):
    if key in mean[f'linear_{shots[0]}_shots']['representations']:
      data.append(
        {
          'name': NAMES[key],
          'x': shots,
          'y': [100 * mean[f'linear_{count}_shots']['representations'][key]['score'] for count in shots],
          'mode': 'lines+markers',
          'line': {'color': MARKERS[key]['color'], 'width': 2.5},
          'marker': MARKERS[key] | {'size': 8},
          'hovertemplate': '%{x} a class: <b>%{y:.1f} %</b><extra>' + NAMES[key] + '</extra>',
        }
      )
  layout = {
    'xaxis': {'title': {'text': 'labelled clips a class'}, 'type': 'log', 'tickvals': shots},
    'yaxis': {'title': {'text': 'mean test score, %'}, 'rangemode': 'tozero'},
  }
  return Chart('shots', 'How much a few labelled clips are worth', 'Mean over the tasks.', data, layout, 320, 'half')
