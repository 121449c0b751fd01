import csv
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import fsspec
import librosa
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from selfie_jax import files, prepare, terminal
from selfie_jax.config import LogMel
from selfie_jax.data import audit, chunk, dataset, estimate, inputs, shard, statistics, tfds_metadata, tfrecord, workers
from selfie_jax.data.clip import AudioFile, Clip, TfdsRecord, split_rank
from selfie_jax.errors import UserError
from tests.data.audioset_tree import CLASSES, make_tree, write_with_ffmpeg
from tests.data.sounds import RATE, voice, voice_int16, write_wavs
from tests.object_stores import _gcs_settings, _s3_settings, gcs, s3  # noqa: F401
from tests.processes import ROOT, environment, run_python


def in_this_process(function, tasks, workers):
  """A runner like `workers.run`, but for the second that starting processes takes."""
  return map(function, tasks)


RUN_BY_PROCESSES = workers.run


def run(source, output, *arguments, processes=None):
  """Prepares a folder, with as many worker processes or, with none, in this one."""
  with pytest.MonkeyPatch.context() as patch:
    if not processes and workers.run is RUN_BY_PROCESSES:
      patch.setattr(workers, 'run', in_this_process)
    options = ['--input', source, '--output', output, '--workers', processes or 2]
    prepare.main(['folder', *map(str, [*options, *arguments])])


def contents(path):
  return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob('*')) if file.is_file()}


def read_audit(output):
  """The rows of audit.csv by name, each as (status, flags, reason)."""
  with open(output / 'audit.csv', newline='') as file:
    return {row['name']: (row['status'], row['flags'], row['reason']) for row in csv.DictReader(file)}


def read_examples(output, split='train'):
  manifest = dataset.load_manifest(output)
  names = [entry.name for entry in manifest.shards if entry.split == split]
  return [tfrecord.decode_example(data) for name in names for _, data in tfrecord.scan(output / name)]


@pytest.fixture(scope='module')
def recordings(tmp_path_factory):
  """23 good clips, two of them the same and one distorted, and one of each kind of bad ones."""
  path = tmp_path_factory.mktemp('input') / 'recordings'
  write_wavs(path, 21)
  soundfile.write(path / 'b/zz_again.flac', voice_int16(0.5, 0), RATE)  # a/voice000.wav in another format.
  soundfile.write(path / 'loud.wav', np.clip(4 * voice(0.5, 50), -1, 1), RATE)
  (path / 'b/text.wav').write_text('not a sound')
  (path / 'b/zero.mp3').touch()
  soundfile.write(path / 'silence.wav', np.full(8_000, 20, np.int16), RATE)
  soundfile.write(path / 'click.wav', voice_int16(0.05, 0), RATE)
  (path / 'readme.txt').write_text('about the recordings')
  (path / '.hidden.wav').write_text('a companion file of another system')
  return path


SETTINGS = ('--clips_per_shard', 4, '--max_bad_fraction', 0.2)


@pytest.fixture(scope='module')
def prepared(recordings, tmp_path_factory):
  output = tmp_path_factory.mktemp('prepared') / 'dataset'
  run(recordings, output, *SETTINGS, processes=1)
  return output


def test_three_workers_write_the_same_bytes_as_one(recordings, prepared, tmp_path):
  run(recordings, tmp_path / 'dataset', *SETTINGS, processes=3)
  assert contents(tmp_path / 'dataset') == contents(prepared)


def test_bad_clips_are_left_out_counted_and_listed_by_name(recordings, prepared):
  found = read_audit(prepared)
  assert len(found) == 27
  assert {name: status for name, (status, *_) in found.items() if status != 'ok'} == {
    'b/text.wav': 'unreadable',
    'b/zero.mp3': 'empty',
    'b/zz_again.flac': 'duplicate',
    'click.wav': 'too_short',
    'silence.wav': 'silent',
  }
  assert found['b/zz_again.flac'][2] == 'same audio as a/voice000.wav of train'
  assert found['click.wav'][2] == '0.050 s, under 0.1 s'
  assert found['silence.wav'][2] == '-inf dBFS, under -70 dBFS'
  assert found['loud.wav'] == ('ok', 'clipped', '11.0% of its samples are at full scale')
  assert {flags for name, (_, flags, _) in found.items() if name != 'loud.wav'} == {''}
  manifest = dataset.load_manifest(prepared)
  counts = dict(unreadable=1, empty=1, too_short=1, silent=1, duplicate=1, clipped=1, missing=0, short=0)
  assert manifest.audit == dataset.Audit(clips=27, ok=22, **counts)
  assert manifest.num_clips == 22
  assert [(split.name, split.clips) for split in manifest.splits] == [('train', 22)]
  with open(prepared / 'audit.csv', newline='') as file:
    row = next(row for row in csv.DictReader(file) if row['name'] == 'loud.wav')
  assert (row['seconds'], row['level_dbfs'], row['file']) == ('0.500', '-5.3', str(recordings / 'loud.wav'))
  assert float(row['clipped']) == pytest.approx(0.11, abs=0.001)


def test_the_records_hold_the_clips_in_the_order_of_their_names(recordings, prepared):
  examples = read_examples(prepared)
  names = [example['id'][0].decode() for example in examples]
  assert names == sorted(name for name, (status, *_) in read_audit(prepared).items() if status == 'ok')
  for example, name in zip(examples, names, strict=True):
    expected, _ = soundfile.read(recordings / name, dtype='int16')
    np.testing.assert_array_equal(np.frombuffer(example['audio'][0], '<i2'), expected)
    assert example['sample_rate'] == [RATE]
    assert example['labels'] == []
  manifest = dataset.load_manifest(prepared)
  samples = sum(len(example['audio'][0]) // 2 for example in examples)
  assert manifest.hours == manifest.splits[0].hours == pytest.approx(samples / RATE / 3_600)
  assert len(manifest.shards) == 7


def test_flac_records_hold_the_same_samples(recordings, prepared, tmp_path):
  run(recordings, tmp_path / 'dataset', *SETTINGS, '--audio_format', 'flac')
  manifest = dataset.load_manifest(tmp_path / 'dataset')
  clips = dataset.open_clips(tmp_path / 'dataset', manifest.shards, 'flac')
  expected = dataset.open_clips(prepared, dataset.load_manifest(prepared).shards, 'int16')
  for i in range(len(expected)):
    np.testing.assert_array_equal(clips[i]['audio'], expected[i]['audio'])
  assert sum(entry.bytes for entry in manifest.shards) < 400_000  # Of 490,000.


def test_mean_and_std_are_those_of_all_log_mel_values(prepared):
  manifest = dataset.load_manifest(prepared)
  clips = dataset.open_clips(prepared, manifest.shards, 'int16')
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
  run(recordings, prepared, *SETTINGS)
  assert 'left as it is' in capsys.readouterr().err
  assert {file: file.stat().st_mtime_ns for file in prepared.iterdir()} == before
  with pytest.raises(UserError, match='min_seconds was 0.1 and is 0.3 now'):
    run(recordings, prepared, '--clips_per_shard', 4, '--min_seconds', 0.3)
  with pytest.raises(UserError, match='audio_format was int16 and is flac now'):
    run(recordings, prepared, '--clips_per_shard', 4, '--audio_format', 'flac')
  with pytest.raises(UserError, match='--max_bad_fraction is 0.05'):
    run(recordings, prepared, '--clips_per_shard', 4)
  write_wavs(tmp_path / 'others', 2)
  with pytest.raises(UserError, match='its files have changed'):
    run(tmp_path / 'others', prepared, '--clips_per_shard', 4)


def test_too_many_bad_clips_are_an_error_that_names_them_and_leaves_no_dataset(recordings, tmp_path, capsys):
  output = tmp_path / 'dataset'
  with pytest.raises(UserError, match=r'4 of 27 files are bad \(1 unreadable, 1 empty, 1 too') as error:
    run(recordings, output, '--clips_per_shard', 4)
  assert str(output / 'audit.csv') in str(error.value)
  assert read_audit(output)['b/text.wav'] == ('unreadable', '', 'Invalid data found when processing input')
  with pytest.raises(UserError, match='unfinished'):
    dataset.load_manifest(output)
  capsys.readouterr()
  run(recordings, output, *SETTINGS)  # Nothing is decoded again.
  assert '27 of 27 clips were done before' in capsys.readouterr().err
  assert dataset.open_dataset(output).manifest.num_clips == 22


def test_a_mended_input_is_decoded_anew_where_no_dataset_came_of_it_before(tmp_path, capsys):
  write_wavs(tmp_path / 'input', 9)
  bad = tmp_path / 'input/bad.wav'
  bad.write_text('not a sound')
  output = tmp_path / 'dataset'
  with pytest.raises(UserError, match='mend the input'):
    run(tmp_path / 'input', output, '--clips_per_shard', 2)
  bad.unlink()
  run(tmp_path / 'input', output, '--clips_per_shard', 4)
  assert 'its files have changed): starting anew' in capsys.readouterr().err
  run(tmp_path / 'input', tmp_path / 'fresh/dataset', '--clips_per_shard', 4)
  assert contents(output) == contents(tmp_path / 'fresh/dataset')


def test_an_output_with_other_things_in_it_is_refused(recordings, tmp_path):
  (tmp_path / 'thesis.tex').touch()
  with pytest.raises(UserError, match='is there already and is no dataset'):
    run(recordings, tmp_path)
  with pytest.raises(UserError, match='is there already and is no dataset'):
    run(recordings, tmp_path / 'thesis.tex')
  assert os.listdir(tmp_path) == ['thesis.tex']


def test_the_config_sets_the_log_mel_settings(tmp_path):
  write_wavs(tmp_path / 'input', 2)
  config = tmp_path / 'config.py'
  config.write_text("def get_config():\n  return {'log_mel': {'sample_rate': 8_000, 'f_max': 3_800.0}}\n")
  run(tmp_path / 'input', tmp_path / 'output', '--config', config)
  opened = dataset.open_dataset(tmp_path / 'output')
  dataset.check_log_mel(opened, LogMel(sample_rate=8_000, f_max=3_800.0))
  assert opened.manifest.sample_rate == 8_000
  assert len(opened.clips[0]['audio']) == 4_000


def test_a_csv_says_which_files_and_their_labels(tmp_path):
  names = write_wavs(tmp_path / 'sounds', 4)
  table = tmp_path / 'sounds/metadata.csv'
  table.write_text(f'label,file_name\ndog,{names[2]}\ncat,{names[0]}\n,{names[1]}\n')
  run(table, tmp_path / 'output')
  examples = read_examples(tmp_path / 'output')
  assert [example['id'][0].decode() for example in examples] == names[:3]
  assert [example['labels'] for example in examples] == [[0], [], [1]]
  assert dataset.load_manifest(tmp_path / 'output').classes == ('cat', 'dog')


def test_a_csv_says_what_is_held_out(tmp_path):
  names = write_wavs(tmp_path, 3)
  table = tmp_path / 'x.csv'
  table.write_text('file_name,split\n' + f'{names[0]},train\n{names[1]},\n{names[2]},test\n')
  run(table, tmp_path / 'output')
  for split, expected in (('train', names[:2]), ('test', names[2:])):
    assert [example['id'][0].decode() for example in read_examples(tmp_path / 'output', split)] == expected


def test_names_with_brackets_are_shown_as_they_are(tmp_path, capsys):
  [name] = write_wavs(tmp_path, 1)
  (tmp_path / name).rename(tmp_path / 'talk [dQw4w9WgXcQ].wav')
  (tmp_path / '[').mkdir()
  (tmp_path / '[/x].wav').touch()
  run(tmp_path, tmp_path.parent / f'{tmp_path.name}_output', '--max_bad_fraction', 0.5)
  assert '[/x].wav' in capsys.readouterr().out


def test_csv_mistakes_are_named(tmp_path):
  table = tmp_path / 'x.csv'
  for content, complaint in (
    ('path,label\na,b\n', 'has no column "file_name": it has path, label'),
    ('filename,label\na,b\n', 'has no column "file_name": is "filename" meant'),
    ('', 'has no rows'),
    ('file_name\n', 'has no rows'),
    ('file_name\na.wav\na.wav \n', 'lists a.wav twice'),
    ('file_name,split\na.wav,my/test\n', "has the split 'my/test' of a.wav: rename it"),
    ('file_name,label\na.wav\n,dog\n', '1 rows without a "file_name", the first in row 3'),
  ):
    table.write_text(content)
    with pytest.raises(UserError, match=complaint):
      inputs.list_folder(table)
  table.write_bytes(b'file_name\n\xff\xfe.wav\n')
  with pytest.raises(UserError, match='cannot be read as a UTF-8 CSV file'):
    inputs.list_folder(table)
  with tarfile.open(tmp_path / 'x.tar.gz', 'w:gz') as tar:
    tar.add(table)
  with pytest.raises(UserError, match='is compressed, .* unpack it with gzip -d first'):
    inputs.list_folder(tmp_path / 'x.tar.gz')
  with pytest.raises(UserError, match='neither a folder nor a CSV'):
    inputs.list_folder(tmp_path / 'nothing')


def test_files_that_a_csv_names_and_that_are_missing_are_listed(tmp_path):
  names = write_wavs(tmp_path, 3)
  (tmp_path / 'x.csv').write_text('\n'.join(['file_name', *names, 'gone.wav']))
  run(tmp_path / 'x.csv', tmp_path / 'output')
  assert read_audit(tmp_path / 'output')['gone.wav'] == ('missing', '', 'there is no such file')
  assert dataset.load_manifest(tmp_path / 'output').audit.missing == 1


def test_too_many_missing_clips_are_an_error_before_anything_is_decoded(tmp_path):
  names = write_wavs(tmp_path, 3)
  (tmp_path / 'x.csv').write_text('\n'.join(['file_name', *names, 'gone.wav', 'lost.wav']))
  output = tmp_path / 'output'
  with pytest.raises(UserError, match='2 of 5 clips are missing, .* --max_missing_fraction is 0.3'):
    run(tmp_path / 'x.csv', output)
  assert set(read_audit(output)) == {'gone.wav', 'lost.wav'}
  assert not list(output.glob('*.tfrecord'))
  run(tmp_path / 'x.csv', output, '--max_missing_fraction', 0.5)
  assert len(read_audit(output)) == 5


def test_loudness_is_the_rms_around_the_mean():
  assert audit.loudness(np.tile(np.array([16_384, -16_384], np.int16), 100)) == pytest.approx(-6.0206)
  assert audit.loudness(np.full(100, 5_000, np.int16)) == -np.inf


def test_an_estimate_has_clips_hours_bytes_and_shards(tmp_path):
  for i in range(3):
    soundfile.write(tmp_path / f'{i}.wav', voice_int16(1, i), RATE)
  write_with_ffmpeg(tmp_path / '3.m4a', voice(1, 3), RATE, 'aac')
  soundfile.write(tmp_path / '4.wav', np.zeros(0), RATE)
  (tmp_path / '5.wav').write_text('not a sound')
  clips = inputs.list_folder(tmp_path).clips
  line = estimate.describe(clips, 9, 2, tmp_path, RATE, 'int16')  # 6 times 0.8 s: one of the five that open is empty.
  assert re.fullmatch(r'6 of 9 clips found, about 0.00 h: 15\d kB in 2 shards of 7[78]\.\d kB', line)
  ten_seconds = [Clip(f'{i}', AudioFile('x.wav', 1), seconds=10.0) for i in range(72_000)]
  assert estimate.describe(ten_seconds, 80_000, 100, 'gs://bucket/x', RATE, 'int16') == (
    '72,000 of 80,000 clips found, about 200.00 h: 23 GB in 100 shards of 230 MB'
  )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=12))
def test_of_clips_with_the_same_audio_the_first_stays_and_a_held_out_one_before_all(clips):
  digests = np.array([(number, 5) if number else (0, 0) for number, _ in clips], np.uint64).reshape(-1, 2)
  kept = audit.first_of_each(digests, np.array([not held_out for _, held_out in clips], np.int64))
  for i, (number, _) in enumerate(clips):
    same = [k for k, (other, _) in enumerate(clips) if other == number] if number else [i]  # 0: not a good clip.
    assert kept[i] == next((k for k in same if clips[k][1]), same[0])


@given(
  st.builds(
    Clip,
    st.text(),
    st.builds(AudioFile, st.text(), st.integers(0), st.none() | st.integers(0))
    | st.builds(TfdsRecord, st.text(), st.text(), st.integers(0), st.integers(0), st.integers(0)),
    st.text(),
    st.lists(st.integers(0)).map(tuple),
    st.none() | st.floats(0, 1e9),
    st.none() | st.floats(0, 1e9),
  )
)
@settings(max_examples=100, deadline=None)
def test_a_clip_comes_to_the_workers_as_it_was(clip):
  line = chunk.encode_clip(clip)
  assert line.count(b'\n') == 1
  assert chunk.decode_clip(line) == clip


def test_a_log_file_gets_lines_with_the_rate_and_the_time_left(capsys, monkeypatch):
  monkeypatch.setattr(terminal, '_LINE_SECONDS', 0.05)
  with terminal.progress_bar('decoding', 1_000, 'clips', before=400) as show:
    time.sleep(0.1)
    show(500)
    time.sleep(0.12)
  lines = capsys.readouterr().err.splitlines()
  assert lines[0] == 'decoding: 400 of 1,000 clips'
  (rate,) = re.fullmatch(r'decoding: 500 of 1,000 clips, ([\d.,]+) clips/s, 0:00:\d\d left', lines[-1]).groups()
  assert 1 < float(rate.replace(',', '')) < 500  # 100 in 0.2 s: what was done before does not count.


def test_mistakes_end_with_one_line_and_exit_code_1(tmp_path):
  for arguments in (
    ('folder', '--input', tmp_path),
    ('verify', tmp_path),
    ('verify', tmp_path, '--workers', '0'),
    ('folder', '--input', tmp_path, '--output', tmp_path, '--', '--project=x'),
  ):
    result = run_python('-m', 'selfie_jax.prepare', *arguments, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith('error: ')
    assert result.stderr.count('\n') == 1


# AudioSet.


def test_every_fault_in_a_tree_of_audioset_is_named(tmp_path, capsys):
  tree = make_tree(tmp_path / 'tree')
  output = tmp_path / 'dataset'
  arguments = ['--labels', tree.labels, '--ontology', tree.ontology, '--audio', *tree.audio, '--output', output]
  prepare.main(list(map(str, ['audioset', '--segments', *tree.segments, *arguments, '--max_bad_fraction', 0.4])))
  found = {name: flags or status for name, (status, flags, _) in read_audit(output).items()}
  assert found == tree.expected
  opened = dataset.load_manifest(output)
  assert opened.classes == tuple(CLASSES.values())
  assert opened.class_mids == tuple(CLASSES)
  assert [split.name for split in opened.splits] == ['balanced_train', 'eval', 'unbalanced_train']
  kept = {name for name, outcome in tree.expected.items() if outcome in ('ok', 'short', 'clipped')}
  examples = [example for split in opened.splits for example in read_examples(output, split.name)]
  assert {example['id'][0].decode() for example in examples} == kept
  table = capsys.readouterr()
  assert f'{len(tree.expected)} clips found' in table.err  # The estimate.
  for kind in ('missing', 'unreadable', 'empty', 'too_short', 'silent', 'duplicate', 'short', 'clipped'):
    row = next(line for line in table.out.splitlines() if f': {kind} ' in line)
    assert next(name for name, outcome in sorted(tree.expected.items()) if outcome == kind) in row


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
    # Where the tests run in the background of a shell, Ctrl-C is ignored, and would be by this process.
    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
  )


def wait_for_chunks(output, process, count):
  """Waits until `count` chunks are finished; returns False if the process ended before."""
  while len(list((output / '.partial').glob('train-*.json'))) < count:
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
  run(slow_input, output, '--clips_per_shard', 1, processes=2)
  return contents(output)


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_a_killed_preparation_looks_unfinished_leaves_no_workers_and_goes_on(
  slow_input, slow_reference, tmp_path, capsys
):
  output = tmp_path / 'dataset'
  inodes = {}
  for count in (3, 12):
    process = start(slow_input, output)
    assert wait_for_chunks(output, process, count), process.stderr.read()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert_all_gone(process.pid)
    with pytest.raises(UserError, match='unfinished'):
      dataset.open_dataset(output)
    notes = (output / '.partial').glob('train-*.json')
    inodes |= {note.stem: (output / note.stem).stat().st_ino for note in notes}
  run(slow_input, output, '--clips_per_shard', 1)
  assert f'{len(inodes)} of 40 clips were done before' in capsys.readouterr().err
  assert contents(output) == slow_reference
  for name, inode in inodes.items():  # What was finished has not been written again.
    assert (output / name).stat().st_ino == inode


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


class DeathError(Exception):
  pass


def die(*_, **__):
  raise DeathError


def work_until(number, instead=die):
  """Workers that do, in this process, as many tasks; in place of the next one, they do something else and die."""
  numbers = iter(range(number))

  def work(function, tasks, workers):
    for task in tasks:
      if next(numbers, None) is None:
        instead(task)
        raise DeathError
      yield function(task)

  return work


def rewrite_without_a_note(removal):
  shard.drop_clips(
    Path(removal.chunk.output, removal.chunk.shard),
    removal.chunk.split,
    removal.names,
    removal.chunk.source.audio_format,
  )


MOMENTS = {
  'the first shard': (workers, 'run', work_until(0)),
  'the last shard': (workers, 'run', work_until(6)),
  'the duplicates': (workers, 'run', work_until(7)),
  'the note that they are removed': (workers, 'run', work_until(7, rewrite_without_a_note)),
  'the statistics': (statistics, 'log_mel_mean_and_std', die),
  "TFDS's files": (tfds_metadata, 'write', die),
  'the manifest': (dataset, 'write_manifest', die),
}


@pytest.mark.parametrize('moment', MOMENTS)
def test_a_death_before_any_step_is_survived(recordings, prepared, tmp_path, monkeypatch, moment):
  """There are 7 shards to make, then the duplicate in one of them is removed."""
  output = tmp_path / 'dataset'
  with monkeypatch.context() as patch:
    patch.setattr(*MOMENTS[moment])
    with pytest.raises(DeathError):
      run(recordings, output, *SETTINGS)
  assert not (output / 'manifest.json').exists()
  (output / 'train-00003-of-00007.tfrecord.0a1b2c3d.tmp').touch()  # As a writer leaves it that is killed.
  run(recordings, output, *SETTINGS)
  assert contents(output) == contents(prepared)


def test_a_death_before_the_clean_up_is_survived(recordings, prepared, tmp_path, monkeypatch):
  output = tmp_path / 'dataset'
  with monkeypatch.context() as patch:
    patch.setattr(fsspec.implementations.local.LocalFileSystem, 'rm', die)
    with pytest.raises(DeathError):
      run(recordings, output, *SETTINGS)
  assert (output / '.partial').exists()
  run(recordings, output, *SETTINGS)
  assert contents(output) == contents(prepared)


@pytest.mark.parametrize('damage', ['gone', 'without an index', 'overwritten by a late worker'])
def test_a_finished_shard_that_is_not_as_its_note_says_is_made_again(
  recordings, prepared, tmp_path, monkeypatch, damage
):
  output = tmp_path / 'dataset'
  with monkeypatch.context() as patch:
    patch.setattr(dataset, 'write_manifest', die)
    with pytest.raises(DeathError):
      run(recordings, output, *SETTINGS)
  victim = output / 'train-00005-of-00007.tfrecord'  # The one that had a duplicate.
  if damage == 'gone':
    victim.unlink()
  elif damage == 'without an index':
    victim.with_name(victim.name + '.index').unlink()
  else:
    victim.write_bytes(victim.read_bytes() + b'the duplicate')
  run(recordings, output, *SETTINGS)
  assert contents(output) == contents(prepared)


def test_other_settings_after_a_death_at_the_end_start_anew(recordings, tmp_path, monkeypatch):
  """Nothing of the old shards, all in their places, gets into the new dataset."""
  output = tmp_path / 'dataset'
  with monkeypatch.context() as patch:
    patch.setattr(dataset, 'write_manifest', die)
    with pytest.raises(DeathError):
      run(recordings, output, *SETTINGS)
  assert len(list(output.glob('*.tfrecord'))) == 7
  other = ('--clips_per_shard', 9, '--max_bad_fraction', 0.2)
  run(recordings, output, *other)
  run(recordings, tmp_path / 'fresh/dataset', *other)
  assert contents(output) == contents(tmp_path / 'fresh/dataset')


def test_workers_that_leave_a_shard_undone_are_an_error(recordings, tmp_path, monkeypatch):
  monkeypatch.setattr(workers, 'run', lambda function, tasks, workers: iter(()))
  with pytest.raises(UserError, match='7 of 7 shards are not done, the first is train-00000-of-00007.tfrecord'):
    run(recordings, tmp_path / 'dataset', *SETTINGS)


@pytest.mark.parametrize('store', ['gcs', 's3'])
def test_a_preparation_in_an_object_store_is_taken_up_again(
  recordings, prepared, tmp_path, monkeypatch, request, capsys, store
):
  bucket = request.getfixturevalue(store)
  output = f'{bucket}/sets/dataset'
  with monkeypatch.context() as patch:
    patch.setattr(workers, 'run', work_until(3))
    with pytest.raises(DeathError):
      run(recordings, output, *SETTINGS)
  with pytest.raises(UserError, match='unfinished'):
    dataset.load_manifest(output)
  run(recordings, output, *SETTINGS, processes=1)  # It has connections of its own.
  assert '12 of 27 clips were done before' in capsys.readouterr().err
  store = files.filesystem(output)
  found = {path.rpartition('/')[2]: store.cat_file(path) for path in store.find(output)}
  assert found == contents(prepared)


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


def test_a_tar_that_holds_a_name_twice_gives_its_last_one(tmp_path):
  """As `tar -x` does; `tar -r` makes such tars."""
  names = write_wavs(tmp_path / 'sounds', 3)
  with tarfile.open(tmp_path / 'x.tar', 'w') as tar:
    for name in (names[0], names[1], names[2]):
      tar.add(tmp_path / 'sounds' / name, 'same.wav' if name != names[1] else 'other.wav')
  run(tmp_path / 'x.tar', tmp_path / 'output')
  clips = dataset.open_dataset(tmp_path / 'output').clips
  expected = [soundfile.read(tmp_path / 'sounds' / names[i], dtype='int16')[0] for i in (1, 2)]
  for i, audio in enumerate(expected):
    np.testing.assert_array_equal(clips[i]['audio'], audio)


def test_of_audio_in_two_splits_the_one_that_is_not_for_training_stays():
  splits = ['eval_strong', 'balanced_train', 'val']
  assert sorted(splits, key=split_rank) == ['eval_strong', 'val', 'balanced_train']


@pytest.mark.parametrize('option', ['--silence_dbfs=nan', '--min_seconds=inf', '--min_seconds=-1'])
def test_thresholds_are_finite_numbers(tmp_path, option):
  with pytest.raises(UserError, match='is not a finite number|is less than 0'):
    prepare.main(['folder', '--input', str(tmp_path), '--output', str(tmp_path / 'output'), option])
