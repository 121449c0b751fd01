import dataclasses
import json
import socket
import subprocess
import sys
import threading
import time

import pytest

from selfie_jax.errors import ClusterError, UserError
from selfie_jax.training.processes.detection import Place, find_place
from selfie_jax.training.processes.roll_call import called_roll
from tests.processes import ROOT, environment, run_python


def free_port():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


def start(story, process_id, port, of=2, join_minutes=1.0):
  return subprocess.Popen(
    [sys.executable, '-m', 'tests.training.cluster_worker', story, str(join_minutes)],
    cwd=ROOT,
    env=environment(
      JAX_COORDINATOR_ADDRESS=f'127.0.0.1:{port}', JAX_NUM_PROCESSES=str(of), JAX_PROCESS_ID=str(process_id)
    ),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def start_pair(story, **keywords):
  port = free_port()
  return [start(story, i, port, **keywords) for i in range(2)]


def wait_for(word, processes):
  for process in processes:
    while (line := process.stdout.readline().strip()) != word:
      assert line, process.stderr.read()


def ends(processes):
  """The processes' exit codes and what they wrote to stderr."""
  errors = [process.communicate(timeout=60)[1] for process in processes]
  return [process.returncode for process in processes], errors


# ---------------------------------------------------------------- the roll call


def test_processes_find_each_other_and_agree():
  codes, errors = ends(start_pair('agree'))
  assert codes == [0, 0], errors


def test_hosts_that_do_not_come_are_named_to_all_that_did():
  port = free_port()
  codes, errors = ends([start('agree', i, port, of=4, join_minutes=0.1) for i in (0, 2)])
  assert codes == [70, 70]
  for text in errors:
    assert text.count('\n') == 1
    assert text.startswith('error: 2 of 4 processes did not come within 0.1 min (cluster.join_minutes)')
    assert 'process 1, process 3: ' in text


def call_rolls(places, minutes, told=()):
  """Each place's answer or error; in threads, as no roll call needs JAX."""
  results = [None] * len(places)

  def call(i):
    try:
      with called_roll(places[i], 60 * minutes, told=lambda: i in told) as results[i]:
        pass
    except ClusterError as error:
      results[i] = str(error)

  threads = [threading.Thread(target=call, args=(i,)) for i in range(len(places))]
  for thread in threads:
    thread.start()
  return threads, results


def results_of(calls):
  threads, results = calls
  for thread in threads:
    thread.join(timeout=60)
  return results


def say(port, line):
  """Says something on the port, as soon as somebody listens; returns the connection."""
  for _ in range(3000):
    try:
      stranger = socket.create_connection(('127.0.0.1', port), timeout=10)
      if stranger.getsockname() == stranger.getpeername():  # TCP lets a free port be called from itself.
        stranger.close()
        continue
      stranger.sendall(line)
      return stranger
    except OSError:
      time.sleep(0.02)
  raise AssertionError('nobody listens')


def introduction(process, of, **more):
  said = {'selfie_jax': 'roll call', 'process': process, 'of': of, 'host': 'n7', 'pid': 1}
  return json.dumps(said | more).encode() + b'\n'


def test_a_process_that_dies_after_the_roll_call_is_named_to_all_before_jax_waits_for_it():
  port = free_port()
  others = [start('agree', i, port, of=3) for i in (0, 2)]
  with say(port, introduction(1, of=3)) as dying:
    dying.settimeout(60)
    assert b'hosts' in dying.recv(1 << 12)
  codes, errors = ends(others)
  assert codes == [70, 70]
  for text in errors:
    assert text.startswith(
      'error: process 1 (n7) is gone: it came to the roll call, and ended before all were connected'
    )
    assert text.count('\n') == 1


def test_the_first_process_that_dies_after_the_roll_call_is_named_too():
  with socket.create_server(('127.0.0.1', 0)) as first:
    first.settimeout(60)
    other = start('agree', 1, first.getsockname()[1])
    with first.accept()[0] as connection:
      connection.recv(1 << 12)
      connection.sendall(introduction(0, of=2, hosts=['n7', 'n8']))
  codes, errors = ends([other])
  assert codes == [70]
  assert errors[0].startswith('error: process 0 (n7) is gone: it came to the roll call, and ended before all were')


def test_an_answer_is_understood_also_if_more_has_come_after_it():
  """As where a process is slow to read, and process 0 quick to connect."""
  with socket.create_server(('127.0.0.1', 0)) as first:
    first.settimeout(30)
    calls = call_rolls([Place(f'127.0.0.1:{first.getsockname()[1]}', 2, 1)], 0.2)
    with first.accept()[0] as connection:
      connection.recv(1 << 12)
      connection.sendall(introduction(0, of=2, hosts=['n7', 'n8']) + introduction(0, of=2, connected=True))
      assert results_of(calls) == [('n7', 'n8')]


def test_a_process_that_cannot_reach_the_coordinator_says_its_address():
  place = Place(f'127.0.0.1:{free_port()}', 2, 1)
  (message,) = results_of(call_rolls([place], 0.01))
  assert f'cannot reach process 0 at {place.address} within 0.01 min' in message


def test_two_processes_of_one_number_are_named_to_all():
  port = free_port()
  calls = call_rolls([Place(f'127.0.0.1:{port}', 3, i) for i in (0, 1)], 1)
  with say(port, introduction(1, of=3)):
    messages = results_of(calls)
  assert messages[0] == messages[1]
  assert messages[0].startswith('two processes say that they are process 1 of 3: ')
  assert 'n7 (pid 1)' in messages[0]


def test_processes_that_differ_in_how_many_they_are_are_named():
  address = f'127.0.0.1:{free_port()}'
  messages = results_of(call_rolls([Place(address, 2, 0), Place(address, 3, 1)], 1))
  assert messages[0] == messages[1]
  assert 'process 1 ' in messages[0]
  assert 'as one of 3 processes, and process 0 ' in messages[0]


def test_strangers_on_the_port_do_not_disturb():
  """Such as a process of an earlier start, which talks gRPC to what it takes for its coordinator."""
  port = free_port()
  place = Place(f'127.0.0.1:{port}', 2, 0)
  calls = call_rolls([place], 1)
  garbage = (b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0', b'\xff' * 9000 + b'\n', b'[1]\n', b'{"process": 1}\n', b'')
  strangers = [say(port, line) for line in garbage]
  host = socket.gethostname()
  assert results_of(call_rolls([dataclasses.replace(place, process_id=1)], 1)) == [(host, host)]
  assert results_of(calls) == [(host, host)]
  for stranger in strangers:
    stranger.close()


def test_a_process_that_is_told_to_stop_before_it_has_joined_tells_all():
  address = f'127.0.0.1:{free_port()}'
  places = [Place(address, 3, i) for i in range(3)]
  for told in ([0], [2]):
    assert results_of(call_rolls(places, 1, told)) == [None, None, None]
  told = []
  calls = call_rolls(places[:2], 1, told)  # The third one never comes: the others do not wait for it to the end.
  told.append(1)
  assert results_of(calls) == [None, None]


def test_a_port_that_an_earlier_start_still_holds_is_waited_for():
  port = free_port()
  with socket.create_server(('', port)) as earlier:  # A coordinator that hangs up on the newcomers.
    calls = call_rolls([Place(f'127.0.0.1:{port}', 2, i) for i in range(2)], 1)
    earlier.settimeout(30)
    earlier.accept()[0].close()
  assert results_of(calls) == [(socket.gethostname(),) * 2] * 2


def test_a_port_that_stays_taken_is_named_with_the_remedy():
  port = free_port()
  with socket.create_server(('', port)):
    (message,) = results_of(call_rolls([Place(f'127.0.0.1:{port}', 2, 0)], 0.01))
  assert f'port {port} of ' in message
  assert 'set JAX_COORDINATOR_PORT' in message


def test_processes_that_were_asked_for_different_things_say_what_differs_and_all_end():
  codes, errors = ends(start_pair('differ'))
  assert codes == [1, 1]
  host = socket.gethostname()
  line = (
    f'error: process 1 ({host}) was started with --config.checkpoint.every_steps=5, and process 0 ({host}) with 10: '
    'give all processes the same\n'
  )
  assert errors == [line, line]


# ---------------------------------------------------------------- one of them ends


def test_a_barrier_that_a_process_does_not_come_to_names_it():
  codes, errors = ends(start_pair('leave_alone'))
  assert codes == [70, 70]
  assert f'did not come to "save" within {1 / 60:g} min: process 1 ({socket.gethostname()})' in errors[0]
  assert errors[1].startswith(f'process 0 ({socket.gethostname()}) ended: some processes did not come')


def test_the_line_of_a_process_that_fails_reaches_the_others_and_ends_them():
  pair = start_pair('fail')
  wait_for('joined', pair)
  begin = time.monotonic()
  codes, errors = ends(pair)
  assert time.monotonic() < begin + 30  # The barrier would be waited for a minute.
  assert codes == [1, 1]
  assert errors[0] == f'process 1 ({socket.gethostname()}) ended: the disk of process 1 is full\n'
  assert errors[1] == 'error: the disk of process 1 is full\n'


def test_processes_that_fail_alike_each_say_so():
  codes, errors = ends(start_pair('fail_alike'))
  assert codes == [1, 1]
  assert errors == ['error: all of them found the same\n'] * 2


def test_process_0_which_keeps_the_notes_is_the_last_to_go():
  """Or JAX ends the others with a page of its own, where the machine is busy and they are slow."""
  codes, errors = ends(start_pair('end_slowly'))
  assert codes == [1, 1]
  assert errors == ['error: all of them found the same\n'] * 2


def test_a_process_that_is_killed_while_the_other_waits_for_it_on_the_device_is_named_in_one_line():
  pair = start_pair('step')
  wait_for('steps', pair)
  pair[1].kill()
  codes, errors = ends(pair)
  assert codes[0] == 70
  assert errors[0].startswith(f'error: process 1 ({socket.gethostname()}) is gone without a word (killed, or ')
  assert errors[0].count('\n') == 1


def test_a_process_that_is_killed_takes_the_other_down_by_its_missing_heartbeat():
  """10 s here, 40 s by default."""
  pair = start_pair('sleep')
  wait_for('joined', pair)
  pair[1].kill()
  codes, errors = ends(pair)
  assert codes[0] not in (0, 1, 75), errors


def test_an_error_of_the_device_with_all_processes_there_is_a_bug_of_ours_and_has_its_traceback():
  codes, errors = ends(start_pair('device_fails'))
  assert codes == [70, 70]
  assert errors[1].startswith('Traceback')
  assert errors[1].endswith('JaxRuntimeError: INTERNAL: no such luck\n')
  assert errors[0] == f'process 1 ({socket.gethostname()}) ended: jax.errors.JaxRuntimeError: INTERNAL: no such luck\n'


# ---------------------------------------------------------------- what the cluster says

SLURM = {
  'SLURM_JOB_ID': '4097',
  'SLURM_STEP_NODELIST': 'n[01-02]',
  'SLURM_NTASKS': '2',
  'SLURM_STEP_NUM_TASKS': '2',
  'SLURM_PROCID': '1',
  'SLURM_LOCALID': '0',
  'SLURM_GTIDS': '1',
}


@pytest.fixture
def variables(monkeypatch):
  """Sets environment variables for `find_place`."""
  for name in ('JAX_COORDINATOR_ADDRESS', 'JAX_COORDINATOR_PORT', *SLURM):
    monkeypatch.delenv(name, raising=False)
  return lambda given: [monkeypatch.setenv(name, value) for name, value in given.items()]


def test_a_process_without_a_cluster_is_alone(variables):
  assert find_place(1) is None


def test_a_task_a_node_has_all_its_gpus_and_a_task_a_gpu_its_own(variables):
  variables(SLURM)
  place = find_place(1)
  assert (place.address, place.num_processes, place.process_id) == ('n01:61441', 2, 1)
  assert place.local_device_ids is None
  variables({'SLURM_NTASKS': '4', 'SLURM_STEP_NUM_TASKS': '4', 'SLURM_GTIDS': '0,1', 'SLURM_LOCALID': '1'})
  assert find_place(1).local_device_ids == (1,)
  variables({'SLURM_GPUS_PER_TASK': '1'})  # Then Slurm lets each task see its own only.
  assert find_place(1).local_device_ids is None


@pytest.mark.parametrize(
  'changed',
  [
    {'SLURM_NTASKS': '1', 'SLURM_STEP_NUM_TASKS': '1', 'SLURM_PROCID': '0'},
    {'SLURM_STEP_NUM_TASKS': '1', 'SLURM_PROCID': '0'},  # An interactive shell in an allocation for two tasks.
  ],
)
def test_a_single_task_waits_for_nobody(variables, changed):
  variables(SLURM | changed)
  assert find_place(1) is None


def test_a_batch_script_without_srun_waits_for_nobody(variables):
  variables({name: value for name, value in SLURM.items() if not name.startswith('SLURM_STEP')})
  assert find_place(1) is None


def test_tpu_slices_are_counted_through_on_the_pinned_port(variables, monkeypatch):
  from jax._src.clusters import cloud_tpu_cluster

  monkeypatch.setattr(cloud_tpu_cluster, 'running_in_cloud_tpu_vm', True)  # Which says that there are TPU chips.
  variables(
    {
      'TPU_WORKER_ID': '1',
      'TPU_WORKER_HOSTNAMES': 'localhost,w1',
      'MEGASCALE_NUM_SLICES': '2',
      'MEGASCALE_SLICE_ID': '1',
      'MEGASCALE_COORDINATOR_ADDRESS': 'localhost:8080',
    }
  )
  place = find_place(1)
  assert (place.address, place.num_processes, place.process_id) == ('localhost:8476', 4, 3)
  assert place.describe(2) == 'process 2 (slice 1, worker 0)'
  variables({'JAX_COORDINATOR_PORT': '9000'})
  assert find_place(1).address == 'localhost:9000'
  variables({'MEGASCALE_NUM_SLICES': '1', 'MEGASCALE_SLICE_ID': '0', 'MEGASCALE_COORDINATOR_ADDRESS': ''})
  assert find_place(1).names == ('localhost', 'w1')


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'JAX_COORDINATOR_ADDRESS': 'n1:1234'}, 'JAX_NUM_PROCESSES'),
    ({'JAX_COORDINATOR_ADDRESS': 'n1', 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '0'}, 'must be HOST:PORT'),
    ({'JAX_COORDINATOR_ADDRESS': 'n1:1', 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '2'}, 'must be one of 0 to 1'),
  ],
)
def test_variables_that_contradict_each_other_are_named(variables, monkeypatch, given, message):
  for name in ('JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'):
    monkeypatch.delenv(name, raising=False)
  variables(given)
  with pytest.raises(UserError, match=message):
    find_place(1)


def test_a_crash_is_not_taken_for_a_mistake():
  """A launcher starts a run again that ended with 70, and not one that ended with 1."""
  for error, code in (('ValueError("no")', 70), ('UserError("no")', 1), ('ClusterError("no")', 70)):
    program = f"""
from selfie_jax.errors import ClusterError, UserError, run_command
def main(arguments):
  raise {error}
run_command(main)
"""
    ended = run_python('-c', program, check=False)
    assert ended.returncode == code
    assert ended.stderr == 'error: no\n' or (code == 70 and ended.stderr.endswith('ValueError: no\n'))
