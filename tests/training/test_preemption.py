import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from selfie_jax.training.processes.preemption import StopSignal
from tests.processes import ROOT, environment
from tests.training.test_cluster import ends, start_pair, wait_for


class Board:
  """The notes of processes that are threads here, and the steps that a device of theirs would have been given."""

  def __init__(self, num_processes):
    self.notes, self.numbers, self.over = {}, {}, threading.Event()
    self.dispatched = [0] * num_processes
    self.changed = threading.Condition()


class Member:
  """A process's view of the board."""

  patience_seconds = 60.0

  def __init__(self, board, process_id):
    self.board, self.process_id, self.num_processes = board, process_id, len(board.dispatched)
    self.stop = StopSignal()
    self.stop.join(self)
    self.stopped_after = None

  def tell(self, note, text):
    self.board.notes[note] = text

  def announce(self, number):
    self.board.numbers[self.process_id] = number

  def announced(self):
    return dict(self.board.numbers)

  def watch(self):
    while not self.board.over.wait(0.002):
      self.stop.hear(dict(self.board.notes))

  def train(self, steps, ahead, seed):
    """Steps at a random pace, `ahead` of the slowest at most: then it waits for the device, as a flush does."""
    rng, board = random.Random(seed), self.board
    with self.stop.stepping(0):
      for step in range(1, steps + 1):
        with board.changed:
          board.dispatched[self.process_id] = step
          board.changed.notify_all()
          assert board.changed.wait_for(lambda step=step: min(board.dispatched) >= step - ahead, timeout=20)
        time.sleep(rng.uniform(0, 0.002))
        if self.stop.stop_after(step):
          self.stopped_after = step
          break


@pytest.mark.parametrize('seed', range(20))
def test_all_processes_stop_after_the_same_step_whoever_was_told_and_whoever_waits_for_the_device(seed):
  rng = random.Random(seed)
  board = Board(num_processes=3)
  members = [Member(board, i) for i in range(3)]
  watchers = [threading.Thread(target=member.watch) for member in members]
  mains = [threading.Thread(target=member.train, args=(60, rng.choice((0, 1, 5)), rng.random())) for member in members]
  for thread in watchers + mains:
    thread.start()
  with board.changed:  # Before that, a process that has not begun to step would end at once: all of this one.
    assert board.changed.wait_for(lambda: min(board.dispatched) > 0, timeout=20)
  time.sleep(rng.uniform(0, 0.08))
  for member in rng.sample(members, rng.choice((1, 1, 3))):
    member.stop.receive(signal.SIGTERM)
  for thread in mains:
    thread.join(timeout=30)
    assert not thread.is_alive()
  board.over.set()
  for thread in watchers:
    thread.join()
  # The same step on all of them; or, told too late, none: all have gone on to the end.
  assert len({member.stopped_after for member in members}) == 1
  assert len(set(board.dispatched)) == 1


@pytest.mark.parametrize('told', [[0], [1], [0, 1]])
def test_a_signal_to_any_process_stops_all_after_the_same_step(told):
  pair = start_pair('step')
  wait_for('steps', pair)
  for i in told:
    pair[i].send_signal(signal.SIGTERM)
  outputs = [process.communicate(timeout=60) for process in pair]
  assert [process.returncode for process in pair] == [75, 75], outputs
  assert outputs[0][0] == outputs[1][0]
  assert outputs[0][0].startswith('stopped after ')


def test_before_the_first_step_nothing_is_lost_and_all_end_with_75_at_once():
  pair = start_pair('sleep')
  wait_for('joined', pair)
  pair[1].send_signal(signal.SIGTERM)
  codes, errors = ends(pair)
  assert codes == [75, 75], errors
  assert 'nothing to save' in errors[0]


def test_a_signal_to_one_process_while_it_starts_ends_all_of_them():
  pair = start_pair('sleep')
  wait_for('heeds', pair[1:])
  pair[1].send_signal(signal.SIGTERM)
  codes, errors = ends(pair)
  assert codes == [75, 75], errors


def start(code):
  process = subprocess.Popen(
    [sys.executable, '-c', 'from selfie_jax.training.processes import preemption\nstop = preemption.heed()\n' + code],
    cwd=ROOT,
    env=environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  process.stdout.readline()
  time.sleep(0.2)
  return process


def test_a_signal_is_heard_inside_of_a_long_call_of_c_and_while_modules_are_imported():
  for code in (
    # A minute in C, in which no Python handler would run.
    'import hashlib; print(1, flush=True); hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)',
    'print(1, flush=True)\nimport jax, time; time.sleep(60)',
  ):
    process = start(code)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=20)[1]
    assert process.returncode == 75
    assert errors == 'told to stop, and there is nothing to save: start me again\n'


STEPS = """
import time
with stop.stepping(5):
  print(1, flush=True)
  for step in range(6, 10_000):
    time.sleep({seconds})
    if stop.stop_after(step):
      print('stopped', flush=True)
      break
time.sleep(1)
print('saved', flush=True)
"""


def test_a_signal_that_is_repeated_or_comes_at_the_end_changes_nothing():
  process = start(STEPS.format(seconds=0.01))
  for _ in range(3):
    process.send_signal(signal.SIGTERM)
  assert process.stdout.readline() == 'stopped\n'
  process.send_signal(signal.SIGINT)
  assert process.communicate(timeout=20) == ('saved\n', '')
  assert process.returncode == 0


def test_a_second_interrupt_ends_at_once():
  process = start(STEPS.format(seconds=30))
  process.send_signal(signal.SIGINT)
  time.sleep(2.5)
  process.send_signal(signal.SIGINT)
  assert process.communicate(timeout=20)[1] == 'interrupted twice: ended without a save\n'
  assert process.returncode == 130


def test_a_forked_child_that_is_ended_does_not_stop_its_parent():
  process = start("""
import os, signal, time
child = os.fork()
if not child:
  time.sleep(60)
time.sleep(0.2)
print(1, flush=True)
os.kill(child, signal.SIGTERM)
assert os.waitpid(child, 0)[1] == signal.SIGTERM
time.sleep(0.5)
""")
  assert process.communicate(timeout=20)[1] == ''
  assert process.returncode == 0
