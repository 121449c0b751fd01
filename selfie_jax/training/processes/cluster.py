"""The processes of a run: how they find each other, wait for each other, and hear of each other's end.

All of it goes through the key-value store and the barriers of JAX's coordination service, which process 0 keeps, and
none of it through the devices: it works while these are busy, or hang.
"""

import contextlib
import dataclasses
import json
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import jax
from jax._src import distributed  # The coordination service's client has no public name; Orbax takes it from here, too.

from selfie_jax import config as config_lib
from selfie_jax.errors import ClusterError, UserError, report, summary
from selfie_jax.training.processes import preemption
from selfie_jax.training.processes.detection import Place, find_place
from selfie_jax.training.processes.roll_call import called_roll, listing

_T = TypeVar('_T')

_CONNECT_SECONDS = 120  # All are there already.
_SHUTDOWN_SECONDS = 60  # JAX's own barrier at exit, to which all come from a barrier of ours.
_GRACE_SECONDS = 1.0  # For a process to find for itself what another one has ended with.
_SILENT_SECONDS = 3.0  # One that does not answer for so long is gone.
_LINGER_SECONDS = 5.0  # Of process 0, which keeps the notes, for the others to read its last one.
_PARTING_SECONDS = 1.0  # And then for them to be really gone: JAX has a page to say in a process that outlives it.
_FOLDER = 'selfie_jax'


@contextlib.contextmanager
def joined(config: config_lib.Cluster) -> Iterator[None]:
  """Joins the other processes, where the launcher says that there are some, before any device is used.

  An exception inside ends this process here, after its report, and the others within seconds with its line and its exit
  code: they may be waiting for it in a collective, and it must not wait for them in JAX's shutdown.

  Raises:
    UserError: what the launcher says is contradictory.
    ClusterError: not all processes are there within `join_minutes`.
  """
  global _peers
  place = find_place(60 * config.join_minutes)
  stop = preemption.heed()
  if place is None:
    stop.join(None)
    yield
    return
  with called_roll(place, 60 * config.join_minutes, stop.told) as hosts:
    if hosts is None:
      stop.leave_at_once()
    place = dataclasses.replace(place, names=hosts)
    jax.config.update('jax_enable_preemption_service', False)  # SIGTERM is ours: see preemption.py.
    jax.distributed.initialize(
      place.address,
      place.num_processes,
      place.process_id,
      local_device_ids=place.local_device_ids,
      cluster_detection_method='deactivate',
      initialization_timeout=_CONNECT_SECONDS,
      heartbeat_timeout_seconds=config.heartbeat_seconds,
      shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )
  _peers = peers = Peers(place, config, stop)
  try:
    yield
    barrier('end', 60 * config.barrier_minutes)
  except BaseException as error:
    peers.fail(error)
  peers.close()
  _peers = None


def barrier(name: str, timeout_seconds: float) -> None:
  """Waits for all processes to come to the barrier `name`; it can be used again and again.

  Raises:
    ClusterError: some did not come in time: which ones.
  """
  if _peers is not None:
    _peers.barrier(name, timeout_seconds)


def gather(text: str) -> dict[int, str]:
  """Returns, on all processes, the texts of those whose text is not empty, by process.

  All must ask, in the same order, as with all that follows. Process 0 keeps the texts and sends all of them to each
  process: of thousands of processes, only a few should have something to say, or seldom.

  Raises:
    ClusterError: some did not ask within `cluster.barrier_minutes`: which ones.
  """
  if _peers is None:
    return {0: text} if text else {}
  return _peers.gather(text)


def any_process(flag: bool) -> bool:
  """True, on all processes, if `flag` is on one of them; raises as `gather` does."""
  return bool(gather('yes' if flag else ''))


def of_first_process(value: _T) -> _T:
  """Returns, on all processes, the `value` of process 0, which JSON can tell; raises as `gather` does."""
  first = _peers is None or _peers.process_id == 0
  return json.loads(gather(json.dumps(value) if first else '')[0])


def check_alike(asked: Any) -> None:
  """Checks that all processes were asked for the same, or they would soon wait for each other for ever.

  Args:
    asked: the command's arguments: a dataclass.

  Raises:
    UserError: they differ. On all processes, the same: the first that differs from process 0, and where.
  """
  mine = dict(_flat(json.loads(json.dumps(dataclasses.asdict(asked), default=str))))
  theirs = of_first_process(mine)
  key = next((key for key in theirs | mine if mine.get(key) != theirs.get(key)), None)
  found = gather('' if key is None else _peers.difference(key, mine.get(key), theirs.get(key)))
  if found:
    raise UserError(found[min(found)])


def _flat(values: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Yields ('config.checkpoint.every_steps', 500) and the like."""
  for key, value in values.items():
    if isinstance(value, dict):
      yield from _flat(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


class Peers:
  """This process among the others: notes that all of them read, and a thread that watches for these."""

  def __init__(self, place: Place, config: config_lib.Cluster, stop: preemption.StopSignal) -> None:
    self._place = place
    self._client: Any = distributed.global_state.client
    self._stop = stop
    self._questions = 0
    self._lost: Sequence[int] = ()  # Processes that are gone without a word.
    self._closed = threading.Event()
    self._leaving = threading.Lock()  # Held by the thread that ends the process, and never given back.
    self.process_id = place.process_id
    self.num_processes = place.num_processes
    self.patience_seconds = 60 * config.barrier_minutes
    # The coordinator of thousands of processes answers a thousand questions a second.
    self._pause = max(0.5, self.num_processes / 1000)
    stop.join(self)
    self._thread = threading.Thread(target=self._watch, name='peers', daemon=True)
    self._thread.start()

  def close(self) -> None:
    """Stops listening to the others."""
    self._closed.set()
    self._thread.join()

  # ---------------------------------------------------------------- notes

  def tell(self, note: str, text: str) -> None:
    """Leaves a note that all processes hear of within a second or so."""
    self._put(f'news/{note}', text)

  def announce(self, number: int) -> None:
    """Leaves this process's number for process 0."""
    self._put(f'numbers/{self.process_id}', str(number))

  def announced(self) -> dict[int, int]:
    """Returns the numbers of the processes that have left one."""
    return {int(process): int(number) for process, number in self._get('numbers').items()}

  def missing(self, present: Mapping[int, object]) -> str:
    """Returns, in words, which processes are not among `present`."""
    return listing([self._place.describe(i) for i in range(self.num_processes) if i not in present])

  def _put(self, key: str, text: str) -> None:
    self._client.key_value_set(f'{_FOLDER}/{key}', text, allow_overwrite=True)

  def _get(self, folder: str) -> dict[str, str]:
    folder = f'{_FOLDER}/{folder}/'
    return {key.removeprefix(folder): text for key, text in self._client.key_value_dir_get(folder)}

  # ---------------------------------------------------------------- waiting for each other

  def barrier(self, name: str, timeout_seconds: float) -> None:
    """See the function of this name."""
    try:
      self._client.wait_at_barrier(f'{_FOLDER}/{name}', round(1000 * timeout_seconds))
    except jax.errors.JaxRuntimeError as error:
      if 'DEADLINE_EXCEEDED' not in str(error):
        raise ClusterError(f'waiting for the others at "{name}" failed: {error}') from error
      # '... Some timed out task names:\n1\n3\n\n\nRPC: ...'
      tasks = re.search(r'timed out task names:\s*((?:\d+\s+)+)', str(error))
      absent = (
        [self._place.describe(int(task)) for task in tasks[1].split()] if tasks else ['who it is, JAX does not say']
      )
      raise ClusterError(
        f'some processes did not come to "{name}" within {timeout_seconds / 60:g} min: {listing(absent)}: see what '
        'their logs say; cluster.barrier_minutes is how long to wait'
      ) from error

  def gather(self, text: str) -> dict[int, str]:
    """See the function of this name."""
    self._questions += 1
    if text:
      self._put(f'questions/{self._questions}/{self.process_id}', text)
    self.barrier('question', self.patience_seconds)
    texts = self._get(f'questions/{self._questions}')
    if self.process_id == 0:
      # All have read the last answers before they came to this barrier. (A run of weeks would fill the store.)
      self._client.key_value_delete(f'{_FOLDER}/questions/{self._questions - 1}/')
    return {int(process): text for process, text in texts.items()}

  def difference(self, key: str, mine: object, theirs: object) -> str:
    """Says which argument of this process is another one than that of process 0."""
    me, first = self._place.describe(self.process_id), self._place.describe(0)
    return f'{me} was started with --{key}={mine!r}, and {first} with {theirs!r}: give all processes the same'

  # ---------------------------------------------------------------- ends

  def fail(self, error: BaseException) -> NoReturn:
    """Ends this process, and soon the others, with `error`; or with that of the process whose end led to it."""
    # A mistake, a full disk: these are found, not suffered. All else may be what another process's end has led to.
    if isinstance(error, ClusterError) or not isinstance(error, (UserError, OSError)):
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        self._follow(self._get('news'))
        # A collective's 'Connection reset by peer' comes as the one from the device, as the other from a dispatch.
        if isinstance(error, (jax.errors.JaxRuntimeError, ValueError)):
          error = self._loss_behind(error) or error
    self._leaving.acquire()
    self._leave(report(error), summary(error))

  def leave(self, code: int, line: str) -> NoReturn:
    """Ends this process, from any thread, and soon the others, with this line and code."""
    self._leaving.acquire()
    print(line, file=sys.stderr)
    self._leave(code, line)

  def _loss_behind(self, error: Exception) -> ClusterError | None:
    """Asks who is still there; returns what to say of those who are not, if any, as what has led to `error`.

    JAX's `get_live_nodes` would wait for the heartbeat to miss them, which ends this process without a word of ours.
    """
    self.tell('roll call', '')
    deadline = time.monotonic() + _SILENT_SECONDS + 2 * self._pause
    while len(there := self._get('there')) < self.num_processes and time.monotonic() < deadline:
      time.sleep(self._pause)
    self._follow(self._get('news'))  # It may have had a last word after all.
    self._lost = [i for i in range(self.num_processes) if str(i) not in there]
    if not self._lost:
      return None
    names = listing([self._place.describe(i) for i in self._lost])
    are = 'is' if len(self._lost) == 1 else 'are'
    return ClusterError(
      f'{names} {are} gone without a word (killed, or the machine or its network is down), and so this process cannot '
      f'go on ({summary(error)}): start me again'
    )

  def _leave(self, code: int, line: str) -> NoReturn:
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # Without process 0 nobody can be told anything.
      self.tell(f'ended/{self.process_id}', json.dumps({'code': code, 'line': line}))
    self._go(code)

  def _go(self, code: int) -> NoReturn:
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._put(f'gone/{self.process_id}', '')
      deadline = time.monotonic() + _LINGER_SECONDS
      alive = self.num_processes - len(self._lost)
      while self.process_id == 0 and len(self._get('gone')) < alive and time.monotonic() < deadline:
        time.sleep(0.1)
      if self.process_id == 0:
        time.sleep(_PARTING_SECONDS)
    preemption.end_process(code)

  def _follow(self, news: Mapping[str, str]) -> None:
    """Ends this process if another one has ended."""
    ended = sorted(int(note.removeprefix('ended/')) for note in news if note.startswith('ended/'))
    if ended:
      last = json.loads(news[f'ended/{ended[0]}'])
      self._leaving.acquire()
      print(f'{self._place.describe(ended[0])} ended: {last["line"]}', file=sys.stderr)
      self._go(last['code'])

  def _watch(self) -> None:
    while not self._closed.wait(self._pause):
      try:
        news = self._get('news')
        if 'roll call' in news:
          self._put(f'there/{self.process_id}', '')
        if any(note.startswith('ended/') for note in news):
          self._closed.wait(_GRACE_SECONDS)
          self._follow(news)
        self._stop.hear(news)
      except jax.errors.JaxRuntimeError:
        pass  # The network, and the next look may do. That process 0 is dead is for JAX's heartbeat to say.
      except Exception as error:  # Whatever it is: without this thread the process is deaf.
        self.fail(error)


_peers: Peers | None = None  # While the process has joined others.
