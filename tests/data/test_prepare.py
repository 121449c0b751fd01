import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile

from selfie_jax.config import LogMel
from selfie_jax.data import audit, dataset, inputs, statistics, tfrecord
from selfie_jax.errors import UserError
from selfie_jax.prepare import main
from tests.data.sounds import RATE, voice_int16, write_wavs
from tests.processes import ROOT, environment, run_python


def prepare(source, output, *arguments, workers=2):
  main(['folder', '--input', str(source), '--output', str(output), '--workers', str(workers), *map(str, arguments)])


def contents(path):
  return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob('*')) if file.is_file()}


def read_audit(output):
  with open(output / 'audit.csv', newline='') as file:
    return {row['file_name']: (row['status'], row['reason']) for row in csv.DictReader(file)}


@pytest.fixture(scope='module')
def recordings(tmp_path_factory):
  """22 good clips, two of them the same, and one of each kind of bad ones."""
  path = tmp_path_factory.mktemp('input') / 'recordings'
  write_wavs(path, 21)
  soundfile.write(path / 'b/zz_again.flac', voice_int16(0.5, 0), RATE)  # a/voice000.wav in another format.
  (path / 'b/text.wav').write_text('not a sound')
  (path / 'b/zero.mp3').touch()
  soundfile.write(path / 'silence.wav', np.full(8_000, 20, np.int16), RATE)
  soundfile.write(path / 'click.wav', voice_int16(0.05, 0), RATE)
  (path / 'readme.txt').write_text('about the recordings')
  (path / '.hidden.wav').write_text('a companion file of another system')
  return path


@pytest.fixture(scope='module')
def prepared(recordings, tmp_path_factory):
  output = tmp_path_factory.mktemp('prepared') / 'dataset'
  prepare(recordings, output, '--clips_per_shard', 4, '--max_bad_fraction', 0.2)
  return output


def test_one_worker_writes_the_same_bytes_as_three(recordings, prepared, tmp_path):
  prepare(recordings, tmp_path / 'one', '--clips_per_shard', 4, '--max_bad_fraction', 0.2, workers=1)
  prepare(recordings, tmp_path / 'three', '--clips_per_shard', 4, '--max_bad_fraction', 0.2, workers=3)
  assert contents(tmp_path / 'one') == contents(prepared)
  assert contents(tmp_path / 'three') == contents(prepared)


def test_bad_clips_are_left_out_counted_and_listed_by_name(prepared):
  found = read_audit(prepared)
  assert len(found) == 26
  assert {name: status for name, (status, _) in found.items() if status != 'ok'} == {
    'b/text.wav': 'unreadable',
    'b/zero.mp3': 'empty',
    'b/zz_again.flac': 'duplicate',
    'click.wav': 'too_short',
    'silence.wav': 'silent',
  }
  assert found['b/zz_again.flac'][1] == 'same audio as a/voice000.wav'
  assert found['click.wav'][1] == '0.050 s, under 0.1 s'
  assert found['silence.wav'][1] == '-inf dBFS, under -70 dBFS'
  manifest = dataset.load_manifest(prepared)
  assert manifest.audit == dataset.Audit(26, 21, unreadable=1, empty=1, too_short=1, silent=1, duplicate=1)
  assert manifest.num_clips == 21


def test_the_records_hold_the_clips_in_the_order_of_their_names(recordings, prepared):
  manifest = dataset.load_manifest(prepared)
  examples = [
    tfrecord.decode_example(data) for entry in manifest.shards for _, data in tfrecord.scan(prepared / entry.name)
  ]
  names = [example['id'][0].decode() for example in examples]
  assert names == sorted(name for name, (status, _) in read_audit(prepared).items() if status == 'ok')
  for example, name in zip(examples, names, strict=True):
    expected, _ = soundfile.read(recordings / name, dtype='int16')
    np.testing.assert_array_equal(np.frombuffer(example['audio'][0], '<i2'), expected)
    assert example['sample_rate'] == [RATE]
    assert 'labels' not in example
  samples = sum(len(example['audio'][0]) // 2 for example in examples)
  assert manifest.hours == pytest.approx(samples / RATE / 3_600)
  assert len(manifest.shards) == 7


def test_mean_and_std_are_those_of_all_log_mel_values(prepared):
  manifest = dataset.load_manifest(prepared)
  clips = dataset.open_clips(prepared, manifest.shards)
  values = []
  for i in range(len(clips)):
    audio = clips[i]['audio'].astype(np.float32) / 32_768
    mel = librosa.feature.melspectrogram(y=audio, sr=RATE, n_fft=1_024, hop_length=160, n_mels=64, fmin=60, fmax=7_800)
    values.append(np.log(mel + np.finfo(np.float32).eps).ravel())
  values = np.concatenate(values)
  assert manifest.mean == pytest.approx(values.mean(dtype=np.float64), abs=1e-5)
  assert manifest.std == pytest.approx(values.std(dtype=np.float64), abs=1e-5)


def test_statistics_take_a_long_recording_in_blocks():
  audio = voice_int16(70, 0)
  count, total, _ = statistics.sums_of_clip(audio, LogMel())
  whole = statistics.log_mel_spectrogram(audio, LogMel())
  assert count == 64 * (2 * 3_001 + 1_001)  # A block more is a frame more.
  assert total / count == pytest.approx(whole.mean(), abs=1e-2)


def test_a_finished_dataset_is_left_alone_and_another_one_is_refused(recordings, prepared, tmp_path, capsys):
  before = {file: file.stat().st_mtime_ns for file in prepared.iterdir()}
  prepare(recordings, prepared, '--clips_per_shard', 4, '--max_bad_fraction', 0.2)
  assert 'left as it is' in capsys.readouterr().err
  assert {file: file.stat().st_mtime_ns for file in prepared.iterdir()} == before
  with pytest.raises(UserError, match='min_seconds was 0.1 and is 0.3 now'):
    prepare(recordings, prepared, '--clips_per_shard', 4, '--min_seconds', 0.3)
  with pytest.raises(UserError, match='--max_bad_fraction is 0.05'):
    prepare(recordings, prepared, '--clips_per_shard', 4)
  write_wavs(tmp_path / 'others', 2)
  with pytest.raises(UserError, match='its files have changed'):
    prepare(tmp_path / 'others', prepared, '--clips_per_shard', 4)


def test_too_many_bad_clips_are_an_error_that_names_them_and_leaves_no_dataset(recordings, tmp_path):
  output = tmp_path / 'dataset'
  with pytest.raises(UserError, match=r'4 of 26 files are bad \(1 unreadable, 1 empty, 1 too') as error:
    prepare(recordings, output, '--clips_per_shard', 4)
  assert str(output / 'audit.csv') in str(error.value)
  assert read_audit(output)['b/text.wav'] == ('unreadable', 'Invalid data found when processing input')
  with pytest.raises(UserError, match='unfinished'):
    dataset.check_dataset(output, LogMel())
  prepare(recordings, output, '--clips_per_shard', 4, '--max_bad_fraction', 0.2)  # Nothing is decoded again.
  assert dataset.check_dataset(output, LogMel()).num_clips == 21


def test_a_mended_input_is_decoded_anew_where_no_dataset_came_of_it_before(tmp_path, capsys):
  write_wavs(tmp_path / 'input', 9)
  bad = tmp_path / 'input/bad.wav'
  bad.write_text('not a sound')
  output = tmp_path / 'dataset'
  with pytest.raises(UserError, match='mend the input'):
    prepare(tmp_path / 'input', output, '--clips_per_shard', 2)
  bad.unlink()
  prepare(tmp_path / 'input', output, '--clips_per_shard', 4)
  assert 'its files have changed): starting anew' in capsys.readouterr().err
  prepare(tmp_path / 'input', tmp_path / 'fresh', '--clips_per_shard', 4)
  assert contents(output) == contents(tmp_path / 'fresh')


def test_an_output_with_other_things_in_it_is_refused(recordings, tmp_path):
  (tmp_path / 'thesis.tex').touch()
  with pytest.raises(UserError, match='is there already and is no dataset'):
    prepare(recordings, tmp_path)
  assert os.listdir(tmp_path) == ['thesis.tex']


def test_the_config_sets_the_log_mel_settings(tmp_path):
  write_wavs(tmp_path / 'input', 2)
  config = tmp_path / 'config.py'
  config.write_text("def get_config():\n  return {'log_mel': {'sample_rate': 8_000, 'f_max': 3_800.0}}\n")
  prepare(tmp_path / 'input', tmp_path / 'output', '--config', config)
  manifest = dataset.check_dataset(tmp_path / 'output', LogMel(sample_rate=8_000, f_max=3_800.0))
  assert manifest.sample_rate == 8_000
  assert len(dataset.open_clips(tmp_path / 'output', manifest.shards)[0]['audio']) == 4_000


def test_a_csv_says_which_files_and_their_labels(tmp_path):
  names = write_wavs(tmp_path / 'sounds', 4)
  table = tmp_path / 'sounds/metadata.csv'
  table.write_text(f'label,file_name\ncat,{names[2]}\ndog,{names[0]}\n,{names[1]}\n')
  prepare(table, tmp_path / 'output')
  (file,) = (tmp_path / 'output').glob('*.tfrecord')
  examples = [tfrecord.decode_example(data) for _, data in tfrecord.scan(file)]
  assert [example['id'][0].decode() for example in examples] == names[:3]
  assert [example.get('labels') for example in examples] == [[b'dog'], None, [b'cat']]


def test_csv_mistakes_are_named(tmp_path):
  table = tmp_path / 'x.csv'
  for content, complaint in (
    ('path,label\na,b\n', 'has no column "file_name": it has path, label'),
    ('filename,label\na,b\n', 'has no column "file_name": is "filename" meant'),
    ('', 'has no rows'),
    ('file_name\n', 'has no rows'),
    ('file_name\na.wav\na.wav \n', 'lists a.wav twice'),
    ('file_name,label\na.wav\n,dog\n', '1 rows without a "file_name", the first in row 3'),
  ):
    table.write_text(content)
    with pytest.raises(UserError, match=complaint):
      inputs.list_clips(table)
  table.write_bytes(b'file_name\n\xff\xfe.wav\n')
  with pytest.raises(UserError, match='cannot be read as a UTF-8 CSV file'):
    inputs.list_clips(table)
  with pytest.raises(UserError, match='neither a folder nor a CSV'):
    inputs.list_clips(tmp_path / 'nothing')


def test_files_that_a_csv_names_and_that_are_missing_are_listed(tmp_path):
  names = write_wavs(tmp_path, 3)
  (tmp_path / 'x.csv').write_text('\n'.join(['file_name', *names, 'gone.wav']))
  prepare(tmp_path / 'x.csv', tmp_path / 'output', '--max_bad_fraction', 0.3)
  assert read_audit(tmp_path / 'output')['gone.wav'] == ('unreadable', 'No such file or directory')


def test_loudness_is_the_rms_around_the_mean():
  assert audit.loudness(np.tile(np.array([16_384, -16_384], np.int16), 100)) == pytest.approx(-6.0206)
  assert audit.loudness(np.full(100, 5_000, np.int16)) == -np.inf


def test_mistakes_end_with_one_line_and_exit_code_1(tmp_path):
  for arguments in (('folder', '--input', tmp_path), ('verify', tmp_path), ('verify', tmp_path, '--workers', '0')):
    result = run_python('-m', 'selfie_jax.prepare', *arguments, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith('error: ')
    assert result.stderr.count('\n') == 1


# Interruptions.


def start(source, output):
  return subprocess.Popen(
    [sys.executable, '-m', 'selfie_jax.prepare', 'folder', '--input', str(source), '--output', str(output)]
    + ['--workers', '2', '--clips_per_shard', '1'],
    cwd=ROOT,
    env=environment(),
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )


def wait_for_chunks(output, process, count):
  """Waits until `count` chunks are finished; returns False if the process ended before."""
  while len(list((output / '.partial').glob('shard-*.json'))) < count:
    if process.poll() is not None:
      return False
    time.sleep(0.002)
  return True


def processes_of(session):
  """The ids of the processes of a session (Linux)."""
  found = []
  for stat in Path('/proc').glob('[0-9]*/stat'):
    try:
      _, fields = stat.read_text().rsplit(')', 1)
    except OSError:
      continue
    state, _, _, its_session = fields.split()[:4]
    if int(its_session) == session and state != 'Z':
      found.append(int(stat.parent.name))
  return found


def assert_all_gone(session):
  deadline = time.monotonic() + 10
  while left := processes_of(session):
    assert time.monotonic() < deadline, f'still running: {left}'
    time.sleep(0.02)


@pytest.fixture(scope='module')
def slow_input(tmp_path_factory):
  """40 clips that take some time to decode, so that there is time to interrupt; the last is a duplicate."""
  path = tmp_path_factory.mktemp('slow')
  for i in range(39):
    soundfile.write(path / f'{i:02d}.flac', np.tile(voice_int16(2, i), 4), 44_100)
  soundfile.write(path / '99.flac', np.tile(voice_int16(2, 3), 4), 44_100)
  return path


@pytest.fixture(scope='module')
def slow_reference(slow_input, tmp_path_factory):
  output = tmp_path_factory.mktemp('slow_output') / 'dataset'
  prepare(slow_input, output, '--clips_per_shard', 1)
  return contents(output)


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_a_killed_preparation_looks_unfinished_leaves_no_workers_and_goes_on(slow_input, slow_reference, tmp_path):
  output = tmp_path / 'dataset'
  inodes = {}
  for count in (3, 12):
    process = start(slow_input, output)
    assert wait_for_chunks(output, process, count), process.stderr.read()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert_all_gone(process.pid)
    with pytest.raises(UserError, match='unfinished'):
      dataset.check_dataset(output, LogMel())
    inodes |= {
      file.name: file.with_suffix('.tfrecord').stat().st_ino for file in (output / '.partial').glob('shard-*.json')
    }
  prepare(slow_input, output, '--clips_per_shard', 1)
  assert contents(output) == slow_reference
  for name, inode in inodes.items():  # What was finished has not been written again.
    assert (output / name).with_suffix('.tfrecord').stat().st_ino == inode


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.parametrize('how', ['ctrl-c', 'sigterm'])
def test_an_interrupted_preparation_ends_without_noise_or_orphans(slow_input, tmp_path, how):
  output = tmp_path / 'dataset'
  process = start(slow_input, output)
  assert wait_for_chunks(output, process, 2), process.stderr.read()
  if how == 'ctrl-c':
    os.killpg(process.pid, signal.SIGINT)  # As a terminal does: to the workers as well.
  else:
    process.terminate()
  _, talk = process.communicate(timeout=20)
  assert process.returncode == 130
  assert 'Traceback' not in talk
  assert talk.strip().endswith('interrupted')
  assert_all_gone(process.pid)
  assert not (output / 'manifest.json').exists()


@pytest.mark.parametrize('moment', ['move 0', 'move 5', 'move 13', 'manifest', 'clean-up'])
def test_a_death_while_shards_get_their_place_is_survived(recordings, prepared, tmp_path, monkeypatch, moment):
  """14 files are moved (7 shards and their indexes); then comes the manifest, then the clean-up."""
  output = tmp_path / 'dataset'
  arguments = (recordings, output, '--clips_per_shard', 4, '--max_bad_fraction', 0.2)

  class DeathError(Exception):
    pass

  def die(*_, **__):
    raise DeathError

  def replace_until_death(source, target):
    if Path(source).name == Path(target).name and next(moves, None) is None:
      raise DeathError
    replace(source, target)

  with monkeypatch.context() as patch:
    if moment == 'manifest':
      patch.setattr(dataset, 'write_manifest', die)
    elif moment == 'clean-up':
      patch.setattr(shutil, 'rmtree', die)
    else:
      moves = iter(range(int(moment.split()[1])))
      replace = os.replace
      patch.setattr(os, 'replace', replace_until_death)
    with pytest.raises(DeathError):
      prepare(*arguments)
  assert (output / 'manifest.json').exists() == (moment == 'clean-up')
  prepare(*arguments)
  assert contents(output) == contents(prepared)


def test_other_settings_after_a_death_while_shards_get_their_place_start_anew(recordings, tmp_path, monkeypatch):
  """Nothing of the old shards, of which some have their place already, gets into the new dataset."""
  output = tmp_path / 'dataset'
  with monkeypatch.context() as patch:
    patch.setattr(dataset, 'write_manifest', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      prepare(recordings, output, '--clips_per_shard', 4, '--max_bad_fraction', 0.2)
  assert len(list(output.glob('*.tfrecord'))) == 7
  other = ('--clips_per_shard', 9, '--max_bad_fraction', 0.2)
  prepare(recordings, output, *other)
  prepare(recordings, tmp_path / 'fresh', *other)
  assert contents(output) == contents(tmp_path / 'fresh')


@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='Linux only')
def test_a_process_confined_to_one_core_counts_one():
  code = 'import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); '
  code += 'from selfie_jax.data.workers import cpu_count; print(cpu_count())'
  assert run_python('-c', code).stdout == '1\n'


def test_a_worker_that_dies_is_one_clear_line(tmp_path):
  script = tmp_path / 'script.py'
  script.write_text(
    'import os\n'
    'from selfie_jax.data import workers\n'
    'from selfie_jax.errors import run_command\n'
    'def die(task):\n'
    '  os.kill(os.getpid(), 9)\n'
    "if __name__ == '__main__':\n"
    '  run_command(lambda _: print(list(workers.run(die, [1, 2, 3], 2))))\n'
  )
  result = run_python(script, check=False)
  assert result.returncode == 1
  assert result.stderr == 'error: a worker process died (out of memory?): start again with fewer --workers\n'


def test_results_come_in_the_order_of_the_tasks_and_errors_come_through(tmp_path):
  script = tmp_path / 'script.py'
  script.write_text(
    'import time\n'
    'from selfie_jax.data import workers\n'
    'from selfie_jax.data.decode import DecodeError\n'
    'from selfie_jax.errors import run_command\n'
    'def work(task):\n'
    '  time.sleep(0.1 * (task == 0))\n'
    '  if task == 4:\n'
    "    raise DecodeError('x.wav', 'no sound')\n"
    '  return task\n'
    "if __name__ == '__main__':\n"
    '  print(list(workers.run(work, range(4), 2)))\n'
    '  run_command(lambda _: print(list(workers.run(work, range(9), 2))))\n'
  )
  result = run_python(script, check=False)
  assert result.stdout == '[0, 1, 2, 3]\n'
  assert (result.returncode, result.stderr) == (1, 'error: cannot read x.wav: no sound\n')
