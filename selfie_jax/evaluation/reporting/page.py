"""The report page: one HTML file that holds all it needs, to be read offline and passed on.

Its Content-Security-Policy lets a browser run the page's own two scripts, named by their hashes, and load nothing from
anywhere. All text from outside, such as a file's name, is escaped.
"""

import base64
import dataclasses
import datetime
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from selfie_jax.config import Config
from selfie_jax.evaluation.protocol import LOG_MEL_STATISTICS, TRAINED, UNTRAINED
from selfie_jax.evaluation.reporting import method, tables
from selfie_jax.evaluation.reporting.charts import clips as clip_charts
from selfie_jax.evaluation.reporting.charts import health as health_charts
from selfie_jax.evaluation.reporting.charts import scores as score_charts
from selfie_jax.evaluation.reporting.charts import training as training_charts
from selfie_jax.evaluation.reporting.charts.chart import Chart
from selfie_jax.evaluation.reporting.exhibits import Exhibit
from selfie_jax.evaluation.reporting.peers import TASKS
from selfie_jax.evaluation.reporting.results import headline, readout_title
from selfie_jax.files import write_atomically

_TEMPLATE = Path(__file__).parent / 'template'


def write_page(
  output: epath.Path,
  results: Mapping[str, Any],
  *,
  config: Config,
  exhibits: Mapping[str, Exhibit],
  history: Sequence[Mapping[str, Any]] = (),
  metrics: Sequence[Mapping[str, Any]] = (),
  now: datetime.datetime | None = None,
) -> None:
  """Writes the page, whole or not at all.

  Args:
    output: an .html file.
    results: what results.json holds.
    config: the run's: the encoder, the weights of the objective's terms.
    exhibits: of the tasks, by name.
    history: lines of scores.jsonl, by rising step.
    metrics: lines of the run's metrics.jsonl; none where there was no run.
    now: the date on the page; None: today.
  """
  context = _context(results, config, exhibits, history, metrics, now or datetime.datetime.now(datetime.UTC))
  scripts = {'plotly': _plotly(), 'script': (_TEMPLATE / 'page.js').read_text()}
  # File names need not be valid Unicode.
  text = _render(context | scripts | {'policy': _policy(scripts.values())})
  with write_atomically(output) as file:
    file.write(text.encode('utf-8', 'replace'))


def _context(
  results: Mapping[str, Any],
  config: Config,
  exhibits: Mapping[str, Exhibit],
  history: Sequence[Mapping[str, Any]],
  metrics: Sequence[Mapping[str, Any]],
  now: datetime.datetime,
) -> dict[str, Any]:
  """Returns what the template shows."""
  readout, tasks, health = headline(results), results['tasks'], results['health']
  history = [line for line in history if line['step'] is not None]
  published = score_charts.published(tasks, readout)
  spaces = (
    [health_charts.spectrum(health), health_charts.deviations(health), *health_charts.correlations(health)]
    if health
    else []
  )
  loss = training_charts.loss(metrics, config.objective)
  parts: dict[str, Any] = {
    'title': _title(results),
    'facts': _facts(results, config, now),
    'figures': _figures(results),
    'readout': readout_title(readout),
    'scores_lead': _scores_lead(results),
    'scores_chart': score_charts.scores(tasks, readout),
    'scores_table': tables.scores(results),
    'warnings': _warnings(tasks, readout),
    'readouts_table': tables.other_readouts(results),
    'shots_chart': score_charts.few_shots(results['mean']),
    'published_chart': published,
    'published_table': tables.published(results) if published else None,
    'published_lead': _published_lead(results),
    'curves': score_charts.learning_curves(results, readout, history),
    'curves_lead': _curves_lead(results),
    'training': [chart for chart in (loss, *training_charts.training_metrics(metrics)) if chart],
    'health_table': tables.health(health) if health else None,
    'health_lead': _health_lead(health),
    'health_charts': spaces,
    'tasks': [_task(i, name, task, exhibits.get(name)) for i, (name, task) in enumerate(tasks.items())],
    'method': method.describe(results, any_published=published is not None),
  }
  shown = [parts['scores_chart'], parts['shots_chart'], published, *parts['curves'], *parts['training'], *spaces]
  shown += [chart for task in parts['tasks'] for chart in task['charts']]
  parts['charts'] = {
    chart.name: {'data': _finite(chart.data), 'layout': _finite(chart.layout), 'height': chart.height}
    for chart in shown
    if chart
  }
  return parts | {'contents': _contents(parts)}


def _title(results: Mapping[str, Any]) -> str:
  run = Path(results['workdir']).name or results['workdir']
  return run if results['step'] is None else f'{run}, step {results["step"]:,}'


def _facts(results: Mapping[str, Any], config: Config, now: datetime.datetime) -> list[tuple[str, str]]:
  encoder = config.encoder
  size = f'{encoder.width:,} wide' if encoder.name == 'audiontt' else encoder.size
  return [
    ('Run', results['workdir']),
    ('Encoder', f'{encoder.name}, {size}'),
    ('Protocol', results['protocol']),
    ('Readout', readout_title(headline(results))),
    ('Written', now.strftime('%-d %B %Y, %H:%M UTC')),
  ]


def _figures(results: Mapping[str, Any]) -> list[dict[str, str]]:
  """Returns the few figures that stand large at the top."""
  mean, count = results['mean'][headline(results)], len(results['tasks'])
  found = mean['representations']
  over = f'mean over {count} tasks' if count > 1 else 'on the one task'
  figures = [{'value': f'{100 * found[TRAINED]["score"]:.1f}', 'unit': '%', 'text': f'trained encoder, {over}'}]
  if 'difference' in mean:
    untrained = 100 * found[UNTRAINED]['score']
    text = f'points over the untrained encoder’s {untrained:.1f} %'
    figures.append({'value': f'{100 * mean["difference"]["score"]:+.1f}'.replace('-', '−'), 'text': text})
  if LOG_MEL_STATISTICS in found:
    text = 'log-mel statistics, without any encoder'
    figures.append({'value': f'{100 * found[LOG_MEL_STATISTICS]["score"]:.1f}', 'unit': '%', 'text': text})
  if results['health']:
    measured = results['health'][TRAINED]
    most = min(measured['clips'], measured['dimensions'])
    text = f'effective rank (RankMe), of at most {most:,}'
    figures.append({'value': f'{measured["rankme"]:.0f}', 'text': text})
  return figures


def _scores_lead(results: Mapping[str, Any]) -> str:
  metrics = sorted(
    {'mean average precision' if task['multi_label'] else 'accuracy' for task in results['tasks'].values()}
  )
  return (
    f'Test {" or ".join(metrics)} under the readout {readout_title(headline(results))}, protocol {results["protocol"]}.'
  )


def _warnings(tasks: Mapping[str, Any], readout: str) -> list[str]:
  """Returns what is to be said of tasks that training has not helped."""
  lines = []
  for name, task in tasks.items():
    difference = task['readouts'][readout].get('difference')
    if difference and difference['score'] < 0:
      reading = (
        'too few test clips to tell them apart' if difference['interval'][1] >= 0 else 'more than chance explains'
      )
      lines.append(f'{name}: the trained encoder is below the untrained one; {reading}. {task["caveat"]}'.rstrip())
  return lines


def _published_lead(results: Mapping[str, Any]) -> str:
  ours = 'the same' if results['protocol'] == 'evar' else f'“{results["protocol"]}”, which is not the same'
  readout = readout_title(headline(results))
  if readout != 'linear':
    ours += f', and their readout is {readout}, not linear'
  return (
    'Accuracy in % of other encoders as their authors and EVAR’s have published it, under EVAR’s protocol. None of it '
    f'was measured here. The protocol of this encoder’s own figures is {ours}.'
  )


def _curves_lead(results: Mapping[str, Any]) -> str:
  lines = ['Solid: the trained encoder.']
  if UNTRAINED in results['mean'][headline(results)]['representations']:
    lines.append('Dashed: untrained. Dotted: log-mel statistics.')
  if any(name in TASKS for name in results['tasks']):
    lines.append('Finely dotted: published by others, under EVAR’s protocol.')
  return ' '.join(lines)


def _health_lead(health: Mapping[str, Any] | None) -> str:
  if not health:
    return ''
  measured = health[TRAINED]
  crops = f', and of two augmented views of {measured["crops"]:,} crops' if 'crops' in measured else ''
  return f'Of the embeddings of {measured["clips"]:,} of the tasks’ clips{crops}.'


def _task(number: int, name: str, task: Mapping[str, Any], exhibit: Exhibit | None) -> dict[str, Any]:
  """Returns what the template shows of a task."""
  clips = task['clips']
  split = ', '.join(f'{sum(fold[key] for fold in clips) // len(clips):,} {key}' for key in ('train', 'valid', 'test'))
  folds = f'{len(clips)} folds of about ' if len(clips) > 1 else ''
  several = ', several a clip' if task['multi_label'] else ''
  note = ''
  if task['confusion'] is None and not task['multi_label']:
    note = f'No confusion matrix: {len(task["classes"]):,} classes are too many to be drawn.'
  drawn = (exhibit and clip_charts.embedding_map(name, exhibit), clip_charts.confusion(name, task))
  return {
    'id': f'task-{number}',
    'key': name,
    'name': name,
    'title': task['title'],
    'text': (f'{len(task["classes"]):,} classes{several}; clips cut at {task["unit_seconds"]:g} s; {folds}{split}.'),
    'charts': _aligned([chart for chart in drawn if chart]),
    'note': note,
    'clips': _clips(exhibit) if exhibit else [],
  }


def _aligned(row: Sequence[Chart]) -> list[Chart]:
  """Returns charts that stand beside each other with one height."""
  return [dataclasses.replace(chart, height=max(other.height for other in row)) for chart in row]


def _clips(exhibit: Exhibit) -> list[dict[str, Any]]:
  return [
    {
      'file': exhibit.files[clip.row],
      'label': exhibit.labels[clip.row] or 'no label',
      'predicted': exhibit.predicted and exhibit.predicted[clip.row],
      'right': not exhibit.is_wrong(clip.row),
      'url': f'data:audio/flac;base64,{base64.b64encode(clip.flac).decode()}',
    }
    for clip in exhibit.clips
  ]


def _contents(parts: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns the table of contents: of the sections that there are."""
  sections = [
    ('scores', 'Scores', True),
    ('readouts', 'Other readouts', parts['readouts_table']),
    ('published', 'Published numbers', parts['published_table']),
    ('checkpoints', 'Checkpoints', parts['curves']),
    ('training', 'Pre-training', parts['training']),
    ('health', 'Health', parts['health_table']),
    ('tasks', 'Task by task', True),
  ]
  contents = [{'id': key, 'text': text} for key, text, there in sections if there]
  contents += [{'id': task['id'], 'text': task['name'], 'sub': True} for task in parts['tasks']]
  return [*contents, {'id': 'method', 'text': 'Method'}]


def _finite(value: Any) -> Any:
  """Returns nested figures with None for what JSON has no number for: the charts have a gap there."""
  if isinstance(value, dict):
    return {key: _finite(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_finite(item) for item in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


@functools.cache
def _plotly() -> str:
  from plotly.offline import get_plotlyjs  # Slow to import.

  return get_plotlyjs()


def _policy(scripts: Sequence[str]) -> str:
  """Returns a policy that allows these scripts alone, what plotly does to styles and images, and no connection."""
  hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
  sources = ' '.join(f"'sha256-{digest}'" for digest in hashes)
  return (
    f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'; img-src data: blob:; media-src data:; "
    "base-uri 'none'; form-action 'none'"
  )


def _render(context: Mapping[str, Any]) -> str:
  import jinja2
  import markupsafe

  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_TEMPLATE),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  own = {'plotly', 'script', 'policy'}  # Ours, and to be taken literally.
  safe = {key: markupsafe.Markup(value) if key in own else value for key, value in context.items()}
  style = markupsafe.Markup((_TEMPLATE / 'page.css').read_text())
  return environment.get_template('page.html').render(safe | {'style': style})
