"""The job `prepare task`: goes on where it was stopped, writes the same bytes again, mixes no two inputs."""

import os
import signal
import subprocess
import sys
import time

import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from selfie_jax.config import Evaluation, Task
from selfie_jax.errors import UserError
from selfie_jax.evaluation.tasks.convert import name_outputs
from selfie_jax.evaluation.tasks.folder import find_tasks, load_folder
from selfie_jax.files import filesystem
from tests.evaluation.tasks import trees
from tests.evaluation.tasks.test_official_layouts import prepare, table_of
from tests.object_stores import _gcs_settings, gcs  # noqa: F401
from tests.processes import ROOT


def contents(folder):
  return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def times(folder):
  return {path: path.stat().st_mtime_ns for path in folder.rglob('*.flac')}


def test_a_job_that_was_killed_goes_on_and_ends_with_the_same_bytes(tmp_path):
  root, _ = trees.cremad(tmp_path / 'download')
  output = tmp_path / 'killed'
  command = [sys.executable, '-m', 'selfie_jax.prepare', 'task', '--task', 'cremad', '--workers', '1']
  command += ['--input', str(root), '--output', str(output)]
  with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
    while process.poll() is None and not times(output):
      time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
  assert process.returncode == -signal.SIGKILL
  assert not (output / 'metadata.csv').exists()
  time.sleep(0.2)  # The worker leaves with its parent; it may finish the clip that it writes.
  before = times(output)
  assert 0 < len(before) < 91
  prepare('cremad', root, output)
  after = times(output)
  assert len(after) == 91
  assert {path: after[path] for path in before} == before  # None of them is decoded again.
  prepare('cremad', root, tmp_path / 'whole')
  left = {name: data for name, data in contents(output).items() if not name.endswith('.tmp')}
  assert left == contents(tmp_path / 'whole')


def test_another_input_and_foreign_files_are_refused(tmp_path):
  root, lists = trees.gtzan(tmp_path / 'download')
  prepare('gtzan', root, tmp_path / 'gtzan', lists)
  made = contents(tmp_path / 'gtzan')
  (root / 'genres_original' / 'jazz' / 'jazz.00051.wav').write_bytes(b'other')
  with pytest.raises(UserError, match='was begun with another input or other settings: give another --output'):
    prepare('gtzan', root, tmp_path / 'gtzan', lists)
  assert contents(tmp_path / 'gtzan') == made
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'thesis.tex').touch()
  with pytest.raises(UserError, match='has files that prepare task did not write'):
    prepare('gtzan', root, tmp_path / 'mine', lists)


def test_silent_and_empty_files_are_named_and_left_out(tmp_path, capsys):
  root, lists = trees.gtzan(tmp_path / 'download')
  silent, empty = (root / 'genres_original' / 'blues' / f'blues.0005{i}.wav' for i in (1, 2))
  soundfile.write(silent, [0.0] * 4_000, 22_050)
  empty.write_bytes(b'')
  prepare('gtzan', root, tmp_path / 'gtzan', lists, max_bad_fraction=0.3)
  told = capsys.readouterr().err
  assert '1 files are silent, and left out: genres_original/blues/blues.00051.wav' in told
  assert '1 files are empty, and left out: genres_original/blues/blues.00052.wav' in told
  assert 'all is written, but evaluate cannot use it as it is' in told  # Of blues, no train clip is left.
  assert len(table_of(tmp_path / 'gtzan')) == 6


def test_input_and_output_may_be_in_an_object_store(tmp_path, gcs):  # noqa: F811
  root, _ = trees.esc50(tmp_path / 'download')
  filesystem(gcs).put(str(root), f'{gcs}/ESC-50-master', recursive=True)
  prepare('esc50', f'{gcs}/ESC-50-master', f'{gcs}/tasks/esc50')
  prepare('esc50', root, tmp_path / 'esc50')
  [task] = find_tasks(Evaluation(tasks_dir=f'{gcs}/tasks'))
  there = load_folder(task, f'{gcs}/tasks')
  here = load_folder(Task('esc50'), str(tmp_path))
  for ours, theirs in zip(here.files, there.files, strict=True):
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'task': 'esc5'}, "invalid choice: 'esc5'"),
    ({'task': 'esc50'}, '--input is .*, and there is no such folder'),
    ({'task': 'esc50', 'lists': ['a.txt']}, '--lists has 1 files, and task "esc50" takes none'),
    ({'task': 'esc50', 'folds': 5}, '--folds is for task "csv"'),
    ({'task': 'csv', 'folds': 1}, '1 is less than 2'),
    ({'task': 'csv'}, '--input is .*, and there is no such folder or CSV'),
    ({'task': 'esc50', 'unit_seconds': 3}, '--unit_seconds is for task "csv"; that of "esc50" is part'),
  ],
)
def test_a_wrong_argument_is_one_line(tmp_path, arguments, message):
  with pytest.raises(UserError, match=message) as error:
    prepare(root=tmp_path / 'nowhere', output=tmp_path / 'out', **arguments)
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'out').exists()


_PARTS = st.text(st.characters(blacklist_characters='/\0', blacklist_categories=('Cs',)), min_size=1, max_size=8)
_NAMES = st.lists(_PARTS.filter(lambda part: part != '.'), min_size=1, max_size=4).map('/'.join)
_TRICKY = st.sampled_from(['a.wav', 'a.mp3', '../a.wav', '/a.wav', 'b/a.wav'])
_SOURCES = st.lists(st.one_of(_NAMES, _TRICKY), min_size=1, unique=True)


@settings(deadline=None)
@given(_SOURCES)
def test_no_two_sources_share_an_output_and_none_leaves_the_folder(sources):
  names = name_outputs(sources)
  assert len(set(names.values())) == len(sources) == len(names)
  for name in names.values():
    assert name.startswith('audio/')
    assert name.endswith('.flac')
    assert '..' not in name.split('/')
  assert names == name_outputs(sources[::-1])
