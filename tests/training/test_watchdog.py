import signal
import subprocess
import sys
import time

from tests.processes import ROOT, environment

STEPS = """
import sys, time
from selfie_jax.training.processes.watchdog import Watchdog

def step_that_hangs():
  print('hangs', flush=True)
  {hang}

with Watchdog(3 / 60) as watchdog:
  for _ in range({steps}):
    time.sleep(0.5)
    watchdog.beat()
  step_that_hangs()
"""


def start(code):
  return subprocess.Popen(
    [sys.executable, '-c', code], cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )


def test_a_run_that_hangs_ends_with_70_and_the_stacks_of_its_threads():
  process = start(STEPS.format(hang='time.sleep(60)', steps=8))
  output, errors = process.communicate(timeout=20)
  assert output == 'hangs\n'  # It went on as long as there were steps.
  assert process.returncode == 70
  assert errors.startswith('error: no step for 0.05 min (watchdog_minutes)')
  assert 'in step_that_hangs' in errors


def test_a_c_call_that_hangs_and_holds_the_interpreter_is_ended_too():
  hang = 'import ctypes; ctypes.PyDLL(None).sleep(60)'  # PyDLL keeps the interpreter's lock.
  process = start(STEPS.format(hang=hang, steps=1))
  errors = process.communicate(timeout=20)[1]
  assert process.returncode == -signal.SIGALRM
  assert 'in step_that_hangs' in errors


def test_a_process_that_was_stopped_for_longer_is_not_ended_at_waking():
  code = STEPS.format(hang='time.sleep(1); watchdog.beat(); time.sleep(0.5)', steps=1)
  process = start(code)
  process.stdout.readline()
  process.send_signal(signal.SIGSTOP)
  time.sleep(4)
  process.send_signal(signal.SIGCONT)
  assert process.communicate(timeout=20)[1] == ''
  assert process.returncode == 0


def test_no_minutes_mean_no_watchdog():
  code = STEPS.format(hang='pass', steps=1).replace('3 / 60', '0')
  process = start(code)
  assert process.communicate(timeout=20)[1] == ''
  assert process.returncode == 0
