import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from selfie_jax.errors import UserError
from tests.benchmarks import run
from tests.benchmarks.rounds import ROOT, Results, Turn, Way, compare

WAYS = 'tests.benchmarks.ways_to_count'


@pytest.fixture(scope='module')
def found(tmp_path_factory):
  """One comparison that all stories share: each way costs the start of a process."""
  ways = {
    'two at once': Way(f'{WAYS}:count', {'units': 2}),
    'one': Way(f'{WAYS}:count', {'units': 1}, {'MALLOC_ARENA_MAX': '3'}),
    'a child': Way(f'{WAYS}:child', {'units': 2}),
    'tired': Way(f'{WAYS}:tired'),
    'killed': Way(f'{WAYS}:killed'),
    'absent': Way(f'{WAYS}:absent'),
  }
  before = set(psutil.Process().children(recursive=True))
  folder = tmp_path_factory.mktemp('elsewhere')
  (folder / 'tests').mkdir()
  (folder / 'tests/__init__.py').touch()  # Another project's tests are not to be taken for ours.
  with contextlib.chdir(folder):
    results = compare(ways, rounds=2, seconds=0.2)
  assert set(psutil.Process().children(recursive=True)) <= before
  return results


def test_what_a_child_process_does_is_paid_for(found):
  assert all(turn.cpu_seconds > 0.02 for turn in found.turns['a child'])


def test_a_way_that_ends_is_named_with_its_reason_and_the_others_go_on(found):
  assert found.failed['tired'] == 'tired: ValueError: tired of it'
  assert found.failed['killed'] == f'killed: its process ended with {-signal.SIGKILL}: about to go'
  assert list(found.turns) == ['two at once', 'one', 'a child']
  assert {len(turns) for turns in found.turns.values()} == {2}


def test_a_missing_package_is_named(found, capsys):
  assert found.missing == {'absent': 'no_such_package'}
  run.show_left_out(found)
  assert 'absent is left out, no_such_package cannot be imported: pip install -r' in capsys.readouterr().out


def test_a_way_has_an_environment_of_its_own_and_notes(found):
  assert found.turns['one'][0].notes == {'arenas': 3.0}
  assert found.turns['two at once'][0].notes == {'arenas': 0.0}


def test_ctrl_c_leaves_no_process(tmp_path):
  program = f"""
from tests.benchmarks.rounds import Way, compare
compare({{name: Way('{WAYS}:note', {{'folder': {str(tmp_path)!r}, 'name': name}}) for name in 'ab'}}, 10, 0.1)
"""
  process = subprocess.Popen([sys.executable, '-c', program], cwd=ROOT, stderr=subprocess.DEVNULL)
  while len(list(tmp_path.iterdir())) < 2:
    assert process.poll() is None
    time.sleep(0.02)
  process.send_signal(signal.SIGINT)
  assert process.wait(10)
  assert not [int(file.name) for file in tmp_path.iterdir() if psutil.pid_exists(int(file.name))]


def test_a_row_says_what_was_reached():
  turns = {
    'ours': [Turn(40, 1, 2, {})] * 3,
    'peer': [Turn(10, 1, 1, {}), Turn(20, 2, 1, {}), Turn(5, 1, 1, {})],
    'limit': [Turn(100, 1, 1, {})] * 3,
  }

  class Part:
    NAME, UNIT, TARGETS = 'counting', 'sheep', {'peer': 1.5}

  rows = run.rows_of(Part, {name: Way('') for name in turns}, Results(turns, {}, {}))
  mine, theirs, _ = rows
  assert mine.ratio is None
  assert theirs.ratio == (2, 1, 4)
  assert theirs.verdict == '1.5: reached'
  *_, last = run.markdown(rows).splitlines()
  assert last == '| counting | peer | 2.00 (1.00 to 4.00) | 1.5: reached | 20.0 (20.0 to 20.0) sheep |'


def test_an_unknown_part_is_answered_with_those_there_are():
  with pytest.raises(UserError, match='there is no part stepp; the parts are step, log_mel, augment'):
    run.parse(['--only', 'step', 'stepp'])


def test_the_command_works_from_any_folder(tmp_path):
  command = [sys.executable, str(ROOT / 'tests/benchmarks/run.py'), '--only', 'nothing']
  environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
  ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
  assert ended.returncode == 1
  assert 'there is no part nothing' in ended.stderr


@pytest.mark.parametrize('name', run.PARTS)
def test_the_ways_of_every_part_are_what_the_harness_takes(name, tmp_path):
  for way in importlib.import_module(f'tests.benchmarks.parts.{name}').ways(tmp_path).values():
    json.dumps([way.arguments, way.environment])
    kinds = (str, str, (int, float), int)
    assert all(map(isinstance, (way.start, way.setting, way.flops_per_unit, way.cores), kinds))
