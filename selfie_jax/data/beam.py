"""Work shared out by Apache Beam: to processes here, or by Dataflow, Flink or Spark to many machines.

This project has run the DirectRunner, here and in its tests, and no other; the others get their options as given. Their
workers must be able to import this package (`--setup_file` or `--sdk_container_image`), and to reach the audio and the
output: both in an object store, or on a file system that all share.

Imported only where it is asked for: importing Beam takes seconds.
"""

import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import apache_beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, TypeOptions, WorkerOptions
from apache_beam.runners.runner import PipelineRunner, PipelineState, create_runner

from selfie_jax.errors import UserError

_Task = TypeVar('_Task')
_TICK_SECONDS = 1.0
_KINDS = re.compile(r'^([\w.]*(Error|Exception): )+')  # Such as "RuntimeError: OSError: ".


def make_runner(
  name: str, options: Sequence[str], workers: int
) -> Callable[[Callable[[_Task], None], Sequence[_Task]], Iterator[None]]:
  """Returns `run(function, tasks)`, which calls a function on every task in a pipeline: Create, Reshuffle, Map.

  A runner may repeat a task that failed, or one that seems slow while it still runs: the function must allow for that.
  It is a module's, which the workers import; and tasks are what can be pickled, and small: the pipeline's graph holds
  them. `run` yields None every second until the pipeline ends.

  Args:
    name: of the runner, as Beam knows it; DirectRunner works here.
    options: of Beam, such as `--project=...`.
    workers: processes of the DirectRunner, unless `options` say otherwise.

  Raises:
    UserError: Beam has no such runner, or not these options; or, in `run`, a task failed for good.
  """
  parsed = _parse(options)
  if name.lower().removesuffix('runner') == 'direct':
    _set_up_direct_runner(parsed, options, workers)
  try:
    engine = create_runner(name)
    apache_beam.Pipeline(engine, parsed)  # Checks that the options fit the runner.
  except (ImportError, ValueError, AttributeError) as error:
    raise UserError(f'cannot use the Beam runner {name} with the options given after "--": {error}') from error

  def run(function: Callable[[_Task], None], tasks: Sequence[_Task]) -> Iterator[None]:
    errors: list[Exception] = []
    thread = threading.Thread(target=_run, args=(engine, parsed, function, tasks, errors), daemon=True)
    thread.start()
    while thread.is_alive():
      thread.join(_TICK_SECONDS)
      yield
    if errors:
      raise UserError(f'the Beam pipeline failed: {_cause(errors[0])}') from errors[0]

  return run


def _parse(options: Sequence[str]) -> PipelineOptions:
  parsed = PipelineOptions(list(options))
  try:
    parsed.get_all_options()
  except SystemExit as error:  # Its parser has told why on stderr.
    raise UserError(f'Beam cannot read its options: {" ".join(options)}') from error
  return parsed


def _set_up_direct_runner(parsed: PipelineOptions, given: Sequence[str], workers: int) -> None:
  """Makes the runner of this machine one of several processes that asks no network and talks little."""
  if unknown := parsed.get_all_options(retain_unknown_options=True).keys() - parsed.get_all_options():
    raise UserError(f'Beam knows no option --{min(unknown)}')  # Other runners pass on what Beam does not know.
  if not any(option.startswith(('--direct_running_mode', '--direct_num_workers')) for option in given):
    direct = parsed.view_as(DirectOptions)
    direct.direct_running_mode, direct.direct_num_workers = 'multi_processing', workers
  # Else it would first download and start another program, Prism. (Ours is a pipeline without triggers.)
  parsed.view_as(TypeOptions).allow_unsafe_triggers = True
  # A failure ends in one line here, and not also in tracebacks of each layer of Beam.
  logging.getLogger().setLevel(logging.CRITICAL)
  parsed.view_as(WorkerOptions).default_sdk_harness_log_level = 'CRITICAL'


def _run(
  engine: PipelineRunner,
  options: PipelineOptions,
  function: Callable[[_Task], None],
  tasks: Sequence[_Task],
  errors: list[Exception],
) -> None:
  """Runs the pipeline to its end. Appends what goes wrong to `errors`: nobody sees what a thread raises."""
  try:
    pipeline = apache_beam.Pipeline(engine, options)
    created = pipeline | 'Tasks' >> apache_beam.Create(list(tasks), reshuffle=False)
    # Without this, the tasks would be done where they are created: all of them on one machine.
    _ = created | 'Spread' >> apache_beam.Reshuffle() | 'Work' >> apache_beam.Map(function)
    result = pipeline.run()
    state = result.wait_until_finish() or result.state
    if state != PipelineState.DONE:
      raise RuntimeError(f'it ended as {state}')
  except Exception as error:  # Each runner has errors of its own.
    errors.append(error)


def _cause(error: Exception) -> str:
  """Returns the last line of an error: before it are the tracebacks of the worker and of each layer above."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return _KINDS.sub('', lines[-1]).partition(' [while running')[0] if lines else type(error).__name__
