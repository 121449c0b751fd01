import os
import shutil
import subprocess

import pytest

from tests.conftest import require
from tests.processes import ROOT

SCRIPTS = (
  *sorted((ROOT / 'launch').glob('*.sh')),
  *sorted((ROOT / 'launch/slurm').iterdir()),
  ROOT / 'tests/run.sh',
  ROOT / '.ci/run',
)

# Stands for a Python without the minutes of a real installation: it writes down what it is asked to do.
FAKE_PYTHON = """#!/usr/bin/env bash
echo "$*" >>"$CALLS"
if [[ $* == "-m venv "* ]]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi
if [[ $* == --version ]]; then echo "Python 3.12.0"; fi
if [[ $* == *" install "* && -e $BROKEN ]]; then exit 1; fi
"""


@pytest.fixture
def set_up(tmp_path):
  """Runs the set-up with a fake Python into a fresh folder; returns (exit code, output, what Python was asked)."""
  python = tmp_path / 'python3.12'
  python.write_text(FAKE_PYTHON)
  python.chmod(0o755)
  calls = tmp_path / 'calls'

  def run(*arguments, python=python):
    calls.write_text('')
    environment = {'PYTHON': str(python), 'VENV': str(tmp_path / 'venv'), 'CALLS': str(calls)}
    result = subprocess.run(
      ['bash', ROOT / 'launch/setup_venv.sh', *arguments],
      env=os.environ | environment | {'BROKEN': str(tmp_path / 'broken')},
      capture_output=True,
      text=True,
    )
    return result.returncode, result.stdout + result.stderr, calls.read_text()

  return run


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script):
  require('shellcheck', shutil.which('shellcheck') is not None)
  result = subprocess.run(['shellcheck', script], capture_output=True, text=True)
  assert result.returncode == 0, result.stdout


def test_a_second_set_up_skips_what_is_done(set_up):
  code, output, calls = set_up()
  assert (code, 'making' in output) == (0, True)
  assert '-m pip install' in calls
  code, output, calls = set_up()
  assert (code, 'up to date' in output, calls) == (0, True, '')


def test_what_the_tests_need_is_installed_into_the_same_environment_and_is_enough_to_run(set_up):
  set_up()
  code, output, calls = set_up('test')
  assert code == 0
  assert 'making' not in output
  assert '.[test]' in calls
  assert 'up to date' in set_up()[1]


def test_changed_requirements_are_installed(set_up, tmp_path):
  set_up()
  (tmp_path / 'venv/installed').write_text('of an older requirements.txt')
  assert '-m pip install' in set_up()[2]


def test_a_failed_installation_is_not_taken_for_a_finished_one(set_up, tmp_path):
  (tmp_path / 'broken').touch()
  code, output, _ = set_up()
  assert code == 1
  assert 'pip could not install everything' in output
  (tmp_path / 'broken').unlink()
  code, _, calls = set_up()
  assert code == 0
  assert '-m pip install' in calls


def test_an_unsupported_python_is_refused_with_the_remedy(set_up):
  code, output, _ = set_up(python='/bin/false')
  assert code == 1
  assert output.startswith('error: Python 3.11 or 3.12 is needed (tried: /bin/false)')
