import dataclasses
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

import selfie_jax
from selfie_jax import embed
from selfie_jax.embedding import audio_encoder
from selfie_jax.errors import UserError
from tests.evaluation.conftest import CONFIG, SAMPLE_RATE, VIT, tone, write_run, write_table
from tests.processes import ROOT, environment


def run(workdir, output, *arguments):
  embed.main(['--workdir', str(workdir), '--output', str(output), *map(str, arguments)])


def read_npz(path):
  with np.load(path) as written:
    return written['files'].tolist(), written['embeddings']


def test_it_keeps_the_given_order_and_gives_what_load_gives(workdir, tones, tmp_path):
  files = [str(tones / name) for name in ('middle_9.wav', 'low_0.wav', 'high_4.wav', 'low_0.wav')]
  run(workdir, tmp_path / 'out.npz', *files)
  names, embeddings = read_npz(tmp_path / 'out.npz')
  assert names == files
  assert embeddings.dtype == np.float32
  sounds = [soundfile.read(file)[0] for file in files]
  expected = selfie_jax.load(workdir).embed(sounds, SAMPLE_RATE)
  np.testing.assert_allclose(embeddings, expected, rtol=1e-5, atol=1e-6)


def test_other_sample_rates_and_channels_are_decoded_as_load_resamples_them(workdir, tmp_path):
  stereo = np.stack([np.repeat(tone(300, 1, 0), 3), np.repeat(tone(900, 1, 1), 3)], axis=1)[:44_100]
  soundfile.write(tmp_path / 'a.wav', stereo, 44_100, 'PCM_16')
  run(workdir, tmp_path / 'out.npz', tmp_path / 'a.wav')
  samples, sample_rate = soundfile.read(tmp_path / 'a.wav')
  expected = selfie_jax.load(workdir).embed(samples.mean(1), sample_rate)
  np.testing.assert_allclose(read_npz(tmp_path / 'out.npz')[1], expected, rtol=1e-5, atol=1e-5)


def test_folders_stand_for_the_audio_files_below_them_sorted(workdir, tones, tmp_path):
  folder = tmp_path / 'sounds'
  for name in ('b/2.wav', 'b/10.WAV', 'a.wav', '.hidden.wav'):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).symlink_to(tones / 'low_1.wav')
  (folder / 'notes.txt').write_text('no sound')
  (tmp_path / 'empty').mkdir()
  high = str(tones / 'high_1.wav')
  run(workdir, tmp_path / 'out.npz', high, f'{folder}/', high)
  names, embeddings = read_npz(tmp_path / 'out.npz')
  assert names == [high, *(f'{folder}/{name}' for name in ('a.wav', 'b/10.WAV', 'b/2.wav')), high]
  np.testing.assert_array_equal(embeddings[0], embeddings[4])
  with pytest.raises(UserError, match='empty has no audio files'):
    run(workdir, tmp_path / 'out.npz', tmp_path / 'empty')


@pytest.fixture
def table(tones, tmp_path):
  (tmp_path / 'tones').symlink_to(tones)
  rows = [(f'0{i}', f'tones/{name}_{i}.wav', '') for i in range(3) for name in ('low', 'high')]
  write_table(tmp_path / 'list.csv', ('speaker', 'file_name', 'note'), rows)
  return tmp_path / 'list.csv'


def test_a_csv_is_relative_to_itself_and_parquet_keeps_its_columns_as_they_stand_there(workdir, table, tmp_path):
  run(workdir, tmp_path / 'out.npz', '--csv', table)
  run(workdir, tmp_path / 'out.parquet', '--csv', table)
  names, embeddings = read_npz(tmp_path / 'out.npz')
  written = pq.read_table(tmp_path / 'out.parquet')
  assert written.column_names == ['file', 'embedding', 'speaker', 'note']
  assert str(written.schema.field('embedding').type) == 'fixed_size_list<element: float>[64]'
  assert written['file'].to_pylist() == names == [f'tones/{n}_{i}.wav' for i in range(3) for n in ('low', 'high')]
  assert written['speaker'].to_pylist() == ['00', '00', '01', '01', '02', '02']
  np.testing.assert_array_equal(np.array(written['embedding'].to_pylist(), np.float32), embeddings)


@pytest.mark.parametrize('ending', ['npz', 'parquet'])
def test_what_is_embedded_bit_by_bit_is_what_is_embedded_at_once(workdir, table, tmp_path, monkeypatch, ending):
  def read(path):
    if ending == 'npz':
      return read_npz(path)
    written = pq.read_table(path)
    return written['file'].to_pylist(), np.array(written['embedding'].to_pylist(), np.float32)

  run(workdir, tmp_path / f'whole.{ending}', '--csv', table)
  monkeypatch.setattr(embed, '_FILES_AT_ONCE', 4)
  run(workdir, tmp_path / f'parts.{ending}', '--csv', table)
  names, embeddings = read(tmp_path / f'parts.{ending}')
  assert names == read(tmp_path / f'whole.{ending}')[0]
  np.testing.assert_allclose(embeddings, read(tmp_path / f'whole.{ending}')[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('damage', ['text', 'empty', 'missing', 'endless'])
@pytest.mark.parametrize('ending', ['npz', 'parquet'])
def test_a_bad_file_is_named_and_nothing_is_written(workdir, tones, tmp_path, monkeypatch, damage, ending):
  bad = tmp_path / 'bad.wav'
  if damage == 'text':
    bad.write_text('not a sound')
  elif damage == 'empty':
    bad.touch()
  elif damage == 'endless':
    monkeypatch.setattr(audio_encoder, '_MOST_SECONDS', 2)
    soundfile.write(bad, np.full(3 * SAMPLE_RATE, 0.1), SAMPLE_RATE)
  output = tmp_path / 'new' / f'out.{ending}'
  output.parent.mkdir()
  monkeypatch.setattr(embed, '_FILES_AT_ONCE', 2)  # Some are written when the bad one's turn comes.
  with pytest.raises(UserError, match='bad.wav'):
    run(workdir, output, *[tones / 'low_1.wav'] * 3, bad)
  assert not list(output.parent.iterdir())


def test_skip_broken_names_what_it_leaves_out(workdir, tones, tmp_path, monkeypatch, capsys):
  (tmp_path / 'tones').symlink_to(tones)
  (tmp_path / 'text.wav').write_text('not a sound')
  (tmp_path / 'empty.wav').touch()
  names = ['text.wav', 'gone.wav', 'tones/low_1.wav', 'empty.wav', 'text.wav', 'tones/low_2.wav', 'text.wav']
  write_table(tmp_path / 'list.csv', ('file_name', 'number'), list(zip(names, range(7), strict=True)))
  monkeypatch.setattr(embed, '_FILES_AT_ONCE', 2)
  run(workdir, tmp_path / 'out.parquet', '--csv', tmp_path / 'list.csv', '--skip_broken')
  written = pq.read_table(tmp_path / 'out.parquet')
  assert written['file'].to_pylist() == ['tones/low_1.wav', 'tones/low_2.wav']
  assert written['number'].to_pylist() == ['2', '5']
  lines = capsys.readouterr().err.splitlines()
  left_out = [line for line in lines if line.startswith('left out: ')]
  assert [next(name for name in set(names) if name in line) for line in left_out] == [
    *('gone.wav', 'text.wav', 'empty.wav', 'text.wav', 'text.wav')
  ]
  assert '2 embeddings' in lines[-1]
  assert '5 of 7 files are left out' in lines[-1]
  with pytest.raises(UserError, match='none of the 2 files can be embedded'):
    run(workdir, tmp_path / 'none.npz', '--skip_broken', tmp_path / 'text.wav', tmp_path / 'empty.wav')
  assert not (tmp_path / 'none.npz').exists()


def test_nothing_is_left_of_an_embedding_that_is_killed(workdir, tones, tmp_path):
  """Killed when some of the embeddings are on disk."""
  (tmp_path / 'out').mkdir()
  output = tmp_path / 'out/out.parquet'
  write_table(tmp_path / 'list.csv', ('file_name',), [[tones / 'low_1.wav']] * 10_000)
  code = 'import sys; from selfie_jax import embed; embed._FILES_AT_ONCE = 16; embed.main(sys.argv[1:])'
  arguments = ['--workdir', workdir, '--output', output, '--csv', tmp_path / 'list.csv']
  command = [sys.executable, '-c', code, *arguments]
  process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment(), stderr=subprocess.PIPE)
  scratch = f'/proc/{process.pid}/fd'
  deadline = time.monotonic() + 60
  while max(_sizes_of_unnamed_files(scratch), default=0) < 10_000:
    assert process.poll() is None, process.stderr.read()
    assert time.monotonic() < deadline
    time.sleep(0.05)
  process.send_signal(signal.SIGKILL)
  process.wait()
  process.stderr.close()
  assert not list(output.parent.iterdir())


def _sizes_of_unnamed_files(descriptors):
  sizes = []
  for name in os.listdir(descriptors):
    try:
      if '(deleted)' in os.readlink(f'{descriptors}/{name}'):
        sizes.append(os.stat(f'{descriptors}/{name}').st_size)
    except FileNotFoundError:
      continue
  return sizes


@pytest.fixture
def learned_run(tmp_path, learned_vit):
  settings = dataclasses.replace(CONFIG, encoder=dataclasses.replace(VIT, positions='learned'))
  (tmp_path / 'learned').mkdir()
  return write_run(tmp_path / 'learned', settings)


def test_it_takes_a_vit_and_names_the_clip_that_its_learned_positions_are_too_few_for(learned_run, tones, tmp_path):
  output = tmp_path / 'out.npz'
  run(learned_run, output, tones / 'low_0.wav')
  assert read_npz(output)[1].shape == (1, 64)
  with pytest.raises(UserError, match=r'low_9.wav is 1.20 s long, and .* for 1.03 s'):
    run(learned_run, output, tones / 'low_9.wav')


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], 'either FILES or --csv'),
    (['a.wav', '--csv', 'b.csv'], 'either FILES or --csv'),
    (['--csv', 'nowhere.csv'], 'nowhere.csv does not exist'),
    (['--output', 'nowhere/out.npz', __file__], 'nowhere does not exist'),
    (['--output', 'out.csv', __file__], r'out.csv ends neither in .npz nor in .parquet'),
    (['nowhere/a.wav', __file__], '1 of 2 files do not exist, the first is nowhere/a.wav'),
  ],
)
def test_it_wants_to_know_what_to_embed(workdir, arguments, message):
  with pytest.raises(UserError, match=message):
    run(workdir, 'out.npz', *arguments)


def test_a_column_that_parquet_would_have_twice_is_refused(workdir, tmp_path):
  write_table(tmp_path / 'list.csv', ('file_name', 'file'), [('a.wav', 'b')])
  with pytest.raises(UserError, match='has a column "file"'):
    run(workdir, tmp_path / 'out.parquet', '--csv', tmp_path / 'list.csv')
