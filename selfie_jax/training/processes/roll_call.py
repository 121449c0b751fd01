"""Who is there? Asked before JAX is told to connect the processes, as its own time-out aborts and names nobody.

Process 0 listens on the coordinator's port. Each other process connects, says in one line of JSON who it is, and waits
for the answer, which comes when all are there or the time is over. Then JAX's own service takes the port over. The
connections stay open until all are connected to that, and tell of a process that dies meanwhile.
"""

import contextlib
import dataclasses
import json
import os
import resource
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from selfie_jax.errors import EXIT_CRASHED, ClusterError
from selfie_jax.training.processes.detection import Place
from selfie_jax.training.processes.preemption import end_process

_LONGEST_LINE = 1 << 12
_RETRY_SECONDS = 0.5
_STOP_SECONDS = 10.0  # Once one of them was told to stop: for the others to come and hear of it.
_ANSWER_SECONDS = 30.0  # Of grace: the answer comes when process 0's time is over, and it may have begun later.
_WATCH_SECONDS = 0.1  # How often the thread that watches the connections looks whether it is done.


@contextlib.contextmanager
def called_roll(place: Place, timeout_seconds: float, told: Callable[[], bool]) -> Iterator[tuple[str, ...] | None]:
  """Yields the host name of each process once all of them are there; None if one was `told` to stop meanwhile.

  Within the context the processes connect to JAX's service. If one of them dies there, JAX waits for two minutes and
  aborts without its name; here the others are ended at once, with a line that names it.

  Raises:
    ClusterError: some of them are not there after `timeout_seconds`, two have the same number, they differ in how many
      they are, process 0 cannot be reached, or its port is taken. Those that are there raise the same.
  """
  guests: dict[socket.socket, _Guest] = {}
  try:
    hosts = (_ask if place.process_id == 0 else _answer)(place, guests, timeout_seconds, told)
    if hosts is None:
      yield None
    else:
      with _watched(dataclasses.replace(place, names=hosts), guests):
        yield hosts
      _tell(place, guests, {'connected': True})
  finally:
    for connection in guests:
      connection.close()


@dataclasses.dataclass
class _Guest:
  """A connection, and what has come over it: of the others on process 0, of process 0 on the others."""

  received: bytes = b''
  said: dict[str, Any] | None = None


def _introduction(place: Place) -> dict[str, Any]:
  return {
    'selfie_jax': 'roll call',
    'process': place.process_id,
    'of': place.num_processes,
    'host': socket.gethostname(),
    'pid': os.getpid(),
  }


# ---------------------------------------------------------------- process 0


def _ask(
  place: Place, guests: dict[socket.socket, _Guest], timeout_seconds: float, told: Callable[[], bool]
) -> tuple[str, ...] | None:
  deadline = time.monotonic() + timeout_seconds
  _allow_connections(place.num_processes)
  try:
    with _listen(place, deadline) as listener:
      hosts = _gather(place, listener, guests, deadline, timeout_seconds, told)
  except ClusterError as error:
    _tell(place, guests, {'error': str(error)})
    raise
  # The port is free before the others know, so that they find JAX's service on it.
  _tell(place, guests, {'hosts': hosts})
  return hosts


def _allow_connections(count: int) -> None:
  """Raises the limit of open files, a shell's usual 1024: for a time JAX's connections come on top of ours."""
  needed = 2 * count + 1000
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft < needed <= hard:
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _listen(place: Place, deadline: float) -> socket.socket:
  """Returns the listening socket, as soon as the last incarnation of the run has left the port."""
  port = int(place.address.rpartition(':')[2])
  while True:
    try:
      if socket.has_dualstack_ipv6():
        return socket.create_server(('', port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
      return socket.create_server(('', port), backlog=1024)
    except OSError as error:
      if time.monotonic() > deadline:
        raise ClusterError(
          f'port {port} of {socket.gethostname()}, where the processes are to meet, is taken ({error.strerror}): end '
          'the process that has it (an earlier start of this run?), or set JAX_COORDINATOR_PORT or the port in '
          'JAX_COORDINATOR_ADDRESS'
        ) from error
      time.sleep(_RETRY_SECONDS)


def _gather(
  place: Place,
  listener: socket.socket,
  guests: dict[socket.socket, _Guest],
  deadline: float,
  timeout_seconds: float,
  told: Callable[[], bool],
) -> tuple[str, ...] | None:
  """Fills `guests` until all are there; returns their host names, or None if one of them was told to stop."""
  me = _introduction(place)
  shortened = False
  with selectors.DefaultSelector() as selector:
    listener.setblocking(False)
    selector.register(listener, selectors.EVENT_READ)
    while True:
      there = {0: me} | {guest.said['process']: guest.said for guest in guests.values() if guest.said}
      stopping = told() or any(said.get('told') for said in there.values())
      if stopping and not shortened:
        deadline, shortened = min(deadline, time.monotonic() + _STOP_SECONDS), True
      if len(there) == place.num_processes:
        return None if stopping else tuple(there[i]['host'] for i in range(place.num_processes))
      left = deadline - time.monotonic()
      if left <= 0 and stopping:
        return None
      if left <= 0:
        raise ClusterError(_absence(place, set(there), timeout_seconds))
      for key, _ in selector.select(min(left, _RETRY_SECONDS)):
        if key.fileobj is listener:
          connection, _ = listener.accept()
          connection.setblocking(False)
          _notice_a_dead_host(connection)
          selector.register(connection, selectors.EVENT_READ)
          guests[connection] = _Guest()
        elif not _read(key.fileobj, guests[key.fileobj]):
          selector.unregister(key.fileobj)
          del guests[key.fileobj]
          key.fileobj.close()
        else:
          _check(place, key.fileobj, guests, me)


def _read(connection: socket.socket, guest: _Guest) -> bool:
  """Reads what has come; False if the connection is to be closed: it was at the other end, or talks something else."""
  try:
    received = connection.recv(_LONGEST_LINE)
  except BlockingIOError:
    return True
  except OSError:
    return False
  guest.received += received
  if not received or len(guest.received) > _LONGEST_LINE:
    return False
  return _take_lines(guest)


def _take_lines(guest: _Guest) -> bool:
  """Notes what the whole lines say that have come; False if they are none of ours."""
  *lines, guest.received = guest.received.split(b'\n')
  for line in lines:  # Who it is; later, perhaps, that it was told to stop.
    said = _parse(line)
    if said is None:
      return False
    guest.said = (guest.said or {}) | said
    if not {'process', 'of', 'host', 'pid'} <= guest.said.keys():
      return False
  return True


def _parse(line: bytes) -> dict[str, Any] | None:
  """Returns what was said, or None if it is none of ours: such as an earlier start's process that talks gRPC."""
  try:
    said = json.loads(line)
  except ValueError:
    return None
  return said if isinstance(said, dict) and said.get('selfie_jax') == 'roll call' else None


def _check(place: Place, connection: socket.socket, guests: dict[socket.socket, _Guest], me: dict[str, Any]) -> None:
  said = guests[connection].said
  if said is None:
    return
  if said['of'] != place.num_processes or not 0 <= said['process'] < place.num_processes:
    raise ClusterError(
      f'process {said["process"]} ({said["host"]}) was started as one of {said["of"]} processes, and process 0 '
      f'({me["host"]}) as one of {place.num_processes}: give all of them the same number'
    )
  others = [me, *(guest.said for other, guest in guests.items() if guest.said and other is not connection)]
  for other in others:
    if other['process'] == said['process'] and (other['host'], other['pid']) != (said['host'], said['pid']):
      raise ClusterError(
        f'two processes say that they are process {said["process"]} of {place.num_processes}: {other["host"]} (pid '
        f'{other["pid"]}) and {said["host"]} (pid {said["pid"]}): give each a number of its own, and end what an '
        'earlier start of this run has left'
      )


def _absence(place: Place, there: set[int], timeout_seconds: float) -> str:
  absent = [place.describe(i) for i in range(place.num_processes) if i not in there]
  return (
    f'{len(absent)} of {place.num_processes} processes did not come within {timeout_seconds / 60:g} min '
    f'(cluster.join_minutes): {listing(absent)}: see whether they were started, what their logs say, and whether they '
    f'can reach {place.address}'
  )


def listing(names: list[str], longest: int = 8) -> str:
  """Returns the first `longest` of the names, and how many more there are."""
  more = len(names) - longest
  return ', '.join(names[:longest]) + (f' and {more} more' if more > 0 else '')


def _tell(place: Place, guests: dict[socket.socket, _Guest], answer: dict[str, Any]) -> None:
  line = json.dumps(_introduction(place) | answer).encode() + b'\n'
  for connection in guests:
    try:
      connection.settimeout(_ANSWER_SECONDS)
      connection.sendall(line)
    except OSError:
      pass  # It is gone, and whoever watches the connection will say so.


def _notice_a_dead_host(connection: socket.socket) -> None:
  """Lets a read fail half a minute after the other end's machine or network is gone, which hangs up no connection."""
  connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
  connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
  connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


# ---------------------------------------------------------------- the others


def _answer(
  place: Place, guests: dict[socket.socket, _Guest], timeout_seconds: float, told: Callable[[], bool]
) -> tuple[str, ...] | None:
  deadline = time.monotonic() + timeout_seconds
  host, _, port = place.address.rpartition(':')
  reason = 'no answer'
  while time.monotonic() < deadline:
    try:
      with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection((host.strip('[]'), int(port)), timeout=10))
        if connection.getsockname() == connection.getpeername():
          raise ConnectionRefusedError('nobody listens')  # TCP lets a free port be called from itself.
        _notice_a_dead_host(connection)
        # Told already? With the introduction: a line of its own may come after the answer.
        connection.sendall(json.dumps(_introduction(place) | {'told': told()}).encode() + b'\n')
        # There may be more than the answer by now: that process 0 is connected.
        guest = _Guest(received=_wait_for_line(connection, timeout_seconds + _ANSWER_SECONDS, told))
        answer = guest.said if _take_lines(guest) else None
        if answer and answer.get('hosts'):
          guests[connection] = guest
          stack.pop_all()  # It stays open.
    except OSError as error:  # Not up yet, a name that is not known yet, or gone in the middle.
      answer, reason = None, error.strerror or str(error)
    if answer is None:
      time.sleep(_RETRY_SECONDS)
    elif 'error' in answer:
      raise ClusterError(answer['error'])
    else:
      return None if answer['hosts'] is None else tuple(answer['hosts'])
  raise ClusterError(
    f'{place.describe(place.process_id)} on {socket.gethostname()} cannot reach {place.describe(0)} at {place.address} '
    f'within {timeout_seconds / 60:g} min (cluster.join_minutes): {reason}: see whether it was started, what its log '
    'says, and whether a firewall closes the port'
  )


def _wait_for_line(connection: socket.socket, timeout_seconds: float, told: Callable[[], bool]) -> bytes:
  """Returns what has come once there is a line, or nothing more comes; tells process 0 if we are told to stop."""
  line, said, deadline = b'', False, time.monotonic() + timeout_seconds
  connection.settimeout(_RETRY_SECONDS)
  while b'\n' not in line and time.monotonic() < deadline:
    if told() and not said:
      connection.sendall(b'{"selfie_jax": "roll call", "told": true}\n')
      said = True
    try:
      received = connection.recv(1 << 16)
    except TimeoutError:
      continue
    if not received:
      break
    line += received
  return line


# ---------------------------------------------------------------- all, while they connect to JAX's service


@contextlib.contextmanager
def _watched(place: Place, guests: dict[socket.socket, _Guest]) -> Iterator[None]:
  """Ends this process, within the context, if the one at the other end of a connection is gone."""
  done = threading.Event()
  thread = threading.Thread(target=_watch, args=(place, guests, done), name='roll call', daemon=True)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join()


def _watch(place: Place, guests: dict[socket.socket, _Guest], done: threading.Event) -> None:
  # The last one of each process: it may have come twice, over a network that lost its first connection.
  connections = {guest.said['process']: connection for connection, guest in guests.items() if guest.said}
  with selectors.DefaultSelector() as selector:
    for connection in connections.values():
      connection.setblocking(False)
      selector.register(connection, selectors.EVENT_READ)
    while not done.is_set():
      for key, _ in selector.select(_WATCH_SECONDS):
        guest = guests[key.fileobj]
        hung_up = not _read(key.fileobj, guest)
        if 'error' in guest.said:
          _end(place, guests, guest.said['error'])
        if hung_up and 'connected' in guest.said:  # And so will we be in a moment.
          selector.unregister(key.fileobj)
        elif hung_up:
          _end(
            place,
            guests,
            f'{place.describe(guest.said["process"])} is gone: it came to the roll call, and ended before all were '
            'connected: see what its log says',
          )


def _end(place: Place, guests: dict[socket.socket, _Guest], error: str) -> None:
  """Ends this process from another thread than the main one, which is inside of C++."""
  _tell(place, guests, {'error': error})
  print(f'error: {error}', file=sys.stderr)
  end_process(EXIT_CRASHED)
