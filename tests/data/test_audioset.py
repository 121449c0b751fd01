import gzip
import json
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

import hypothesis
import pytest
import soundfile
from hypothesis import strategies as st

from selfie_jax.data import audioset
from selfie_jax.data.audioset import Segment
from selfie_jax.errors import UserError
from tests.data.audioset_tree import CLASSES, make_tree
from tests.data.sounds import RATE, voice

VIDEO = '-0ABC_efGHi'
ROW = f'{VIDEO}, 30.000, 40.000, "/m/09x0r,/t/dd00126"\n'
HEADER = '# Segments csv created\n# num_ytids=1\n# YTID, start_seconds, end_seconds, positive_labels\n'


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
  return make_tree(tmp_path_factory.mktemp('audioset') / 'tree')


@pytest.fixture
def inputs(tmp_path):
  """Writes the tables for some segments, by the splits' names, and empty files; lists them."""
  labels = tmp_path / 'class_labels_indices.csv'
  labels.write_text('index,mid,display_name\n' + ''.join(f'{i},{mid},class {i}\n' for i, mid in enumerate(CLASSES)))

  def list_clips(segments, files, audio=('audio',)):
    paths = []
    for split, rows in segments.items():
      paths.append(tmp_path / f'{split}_segments.csv')
      paths[-1].write_text(HEADER + ''.join(rows))
    (tmp_path / 'audio').mkdir(exist_ok=True)
    for name in files:
      (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
      (tmp_path / name).write_bytes(b'x')
    return audioset.list_clips(paths, labels, [str(tmp_path / name) for name in audio])

  return list_clips


def chosen(listing):
  """The files of the clips, by the clips' names."""
  return {clip.name: clip.sound and os.path.basename(clip.sound.path) for clip in listing.clips}


# Tables.


@pytest.mark.parametrize(
  'text',
  [
    HEADER + ROW,
    ROW,
    ROW.rstrip('\n'),
    '\ufeff' + HEADER + ROW,
    (HEADER + ROW + '\n').replace('\n', '\r\n'),
    'YTID,start_seconds,end_seconds,positive_labels\n' + ROW,
    ROW.replace(', ', ','),
    ROW.replace('"', '" ').replace(',/', ' , /'),
    ROW.replace('.000', ''),
  ],
)
def test_a_segment_csv_is_read_as_people_have_it(tmp_path, text):
  (tmp_path / 'x.csv').write_text(text, newline='')
  (segment,) = audioset.read_segments(tmp_path / 'x.csv')
  assert segment == Segment(f'{VIDEO}_30000', 30.0, 40.0, ('/m/09x0r', '/t/dd00126'))
  assert segment.video == VIDEO


@pytest.mark.parametrize(
  ('row', 'complaint'),
  [
    ('abc, 0.000, 10.000\n', '3 fields instead of 4'),
    ('abc, 0.000, 10.000, /m/09x0r, /m/04rlf\n', '5 fields instead of 4'),
    ('a b, 0.000, 10.000, "/m/09x0r"\n', "'a b' is no YTID"),
    ('../b, 0.000, 10.000, "/m/09x0r"\n', "'../b' is no YTID"),
    ('abc, zero, 10.000, "/m/09x0r"\n', "'zero' is no time in seconds"),
    ('abc, -1.0, 10.000, "/m/09x0r"\n', "'-1.0' is no time in seconds"),
    ('abc, nan, 10.000, "/m/09x0r"\n', "'nan' is no time in seconds"),
    ('abc, 10.000, 10.000, "/m/09x0r"\n', 'the segment of abc ends at 10 s, and starts at 10 s'),
    ('abc, 0.000, 10.000, "/m/09x0x"\n', "the label '/m/09x0x' is not among the 4 classes; is /m/09x0r meant"),
    ('abc, 0.000, 10.000, "Music"\n', "the label 'Music' is not among the 4 classes"),
    (ROW.replace('40.000', '35.000'), f'the segment of {VIDEO} that starts at 30 s is there twice'),
    ('abc, 0.000, 10.000, "/m/09x0r\nabd, 0.000, 10.000, "/m/09x0r"\n', ''),
  ],
)
def test_a_row_that_is_wrong_is_named_with_its_number(tmp_path, row, complaint):
  (tmp_path / 'x.csv').write_text(HEADER + ROW + '\n' + row + 'abe, 0.000, 10.000, "/m/09x0r"\n')
  with pytest.raises(UserError) as error:
    audioset.read_segments(tmp_path / 'x.csv', CLASSES)
  assert str(error.value).startswith(f'{tmp_path}/x.csv, row 6: {complaint}')
  assert '\n' not in str(error.value)


def test_a_segment_csv_that_is_none_is_named(tmp_path):
  with pytest.raises(UserError, match='does not exist'):
    audioset.read_segments(tmp_path / 'x.csv')
  for content, complaint in ((HEADER.encode(), 'has no segments'), (b'\xff\xfe', 'as a UTF-8 CSV')):
    (tmp_path / 'x.csv').write_bytes(content)
    with pytest.raises(UserError, match=complaint):
      audioset.read_segments(tmp_path / 'x.csv')


@st.composite
def _broken_csvs(draw):
  """Text that is nearly a segment CSV."""
  text = HEADER + ''.join(f'{VIDEO[:-1]}{i}, {i}.000, {i + 10}.000, "/m/09x0r,/m/04rlf"\n' for i in range(3))
  for _ in range(draw(st.integers(1, 4))):
    place = draw(st.integers(0, len(text)))
    text = (
      text[:place] + draw(st.text('",#\r\n\0 _-.0e\ufeff\u0661', max_size=3)) + text[place + draw(st.integers(0, 3)) :]
    )
  return text.encode()


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode), _broken_csvs()))
def test_any_bytes_are_segments_or_a_clear_error(content):
  with tempfile.NamedTemporaryFile(suffix='.csv') as file:
    file.write(content)
    file.flush()
    try:
      segments = audioset.read_segments(file.name, CLASSES)
    except UserError:
      return
  assert segments
  assert len({segment.name for segment in segments}) == len(segments)
  for segment in segments:
    assert 0 <= segment.start < segment.end
    assert segment.name == f'{segment.video}_{round(1_000 * segment.start)}'
    assert set(segment.mids) <= set(CLASSES)


def test_labels_come_in_the_order_of_their_index(tmp_path):
  (tmp_path / 'x.csv').write_text('index,mid,display_name\n1,/m/b,"Bark, ""loud"""\n0,/m/a,Animal\n')
  assert audioset.read_labels(tmp_path / 'x.csv') == (('Animal', 'Bark, "loud"'), ('/m/a', '/m/b'))


@pytest.mark.parametrize(
  ('table', 'complaint'),
  [
    ('index,mid,name\n0,/m/a,A\n', 'has no column "display_name"'),
    ('index,mid,display_name\n0,/m/a,A\n2,/m/b,B\n', 'has 2 rows, and none has the index 1'),
    ('index,mid,display_name\n0,/m/a,A\n0,/m/b,B\n', 'has the index 0 2 times'),
    ('index,mid,display_name\n0,/m/a,A\n1,/m/a,B\n', 'has the mid /m/a 2 times'),
  ],
)
def test_labels_that_are_wrong_are_named(tmp_path, table, complaint):
  (tmp_path / 'x.csv').write_text(table)
  with pytest.raises(UserError, match=complaint):
    audioset.read_labels(tmp_path / 'x.csv')


def test_an_ontology_of_other_classes_is_refused(tmp_path, tree):
  labels = audioset.read_labels(tree.labels)
  audioset.check_ontology(tree.ontology, labels)
  (tmp_path / 'x.json').write_text(json.dumps(json.loads(tree.ontology.read_bytes())[:2]))
  with pytest.raises(UserError, match=r'lacks 2 of the 4 classes, the first is /m/04rlf \(Music\)'):
    audioset.check_ontology(tmp_path / 'x.json', labels)
  for content in ('{"a": 1}', '[1]', 'text', ''):
    (tmp_path / 'x.json').write_text(content)
    with pytest.raises(UserError, match="not AudioSet's ontology"):
      audioset.check_ontology(tmp_path / 'x.json', labels)


# Listing.


def list_tree(tree):
  return audioset.list_clips(tree.segments, tree.labels, [str(path) for path in tree.audio], tree.ontology)


def test_every_segment_of_a_tree_finds_its_file(tree):
  listing = list_tree(tree)
  assert sorted(clip.name for clip in listing.clips) == sorted(tree.expected)
  assert [(clip.split, clip.name) for clip in listing.clips] == sorted(
    (clip.split, clip.name) for clip in listing.clips
  )
  for clip in listing.clips:
    assert (clip.sound is None) == (tree.expected[clip.name] == 'missing')
    if clip.sound:
      video, _, _ = clip.name.rpartition('_')
      assert clip.sound.tar_offset is not None or video in clip.sound.path
      assert os.path.getsize(clip.sound.path) >= clip.sound.size
  assert {clip.split for clip in listing.clips} == {'balanced_train', 'unbalanced_train', 'eval'}
  assert listing.classes == tuple(CLASSES.values())
  assert listing.class_mids == tuple(CLASSES)
  assert {labels for clip in listing.clips for labels in clip.labels} == set(range(4))
  assert listing.notes == (
    'segments with more than one file, of which the likeliest is taken: 1',
    'audio files of no segment: 1, such as Y22ABC-stray_5000_7000.wav',
    'files left out, for their endings are not of audio: 1 .part, 1 .txt',
  )


@hypothesis.settings(
  max_examples=100, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(
  st.dictionaries(
    st.from_regex(r'[A-Za-z0-9_-]{11}', fullmatch=True),
    st.tuples(
      st.integers(0, 20_000_000),
      st.sampled_from(['{id}', '{id}_{s}_{e}', '{id}_{s}', '{id}_{ms}_{me}', '{id}_{ms}', '{id}_{s:09.3f}_{e:09.3f}']),
      st.sampled_from(['', 'Y']),
      st.sampled_from(['wav', 'flac', 'mp3', 'm4a', 'ogg', 'opus', 'webm', 'WAV', 'Mp3']),
      st.sampled_from(['', 'a/', 'a/eval_segments/']),
    ),
    min_size=1,
    max_size=8,
  )
)
def test_any_id_and_start_are_found_under_any_of_the_names(inputs, files):
  rows, names = [], {}
  for video, (ms, form, prefix, ending, folder) in files.items():
    start, end = ms / 1_000, (ms + 10_000) / 1_000
    rows.append(f'{video}, {start:.3f}, {end:.3f}, "/m/09x0r"\n')
    name = prefix + form.format(id=video, s=start, e=end, ms=ms, me=ms + 10_000)
    names[f'{video}_{ms}'] = f'audio/{folder}{name}.{ending}'
  with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    listing = inputs({'eval': rows}, [root / name for name in names.values()], [root / 'audio'])
  assert {clip.name: clip.sound and clip.sound.path for clip in listing.clips} == {
    name: str(root / path) for name, path in names.items()
  }
  for clip in listing.clips:
    video = clip.name.rpartition('_')[0]
    is_cut = '_' in files[video][1]
    assert clip.start == (None if is_cut else files[video][0] / 1_000)
    assert clip.seconds == pytest.approx(10)


def test_a_time_in_a_name_may_be_rounded_and_tells_the_segments_of_a_video_apart(inputs):
  rows = [f'abcdefghijk, {start}, {start + 10}, "/m/09x0r"\n' for start in (0, 30.52, 30_520, 60, 95.6)]
  files = ['abcdefghijk_0.wav', 'abcdefghijk_30_40.wav', 'abcdefghijk_30520_30530.wav', 'abcdefghijk_60000_70000.wav']
  listing = inputs({'eval': rows}, [f'audio/{name}' for name in [*files, 'abcdefghijk_96.wav', 'abcdefghijk_20.wav']])
  assert chosen(listing) == {
    'abcdefghijk_0': 'abcdefghijk_0.wav',
    'abcdefghijk_30520': 'abcdefghijk_30_40.wav',
    'abcdefghijk_30520000': 'abcdefghijk_30520_30530.wav',
    'abcdefghijk_60000': 'abcdefghijk_60000_70000.wav',
    'abcdefghijk_95600': 'abcdefghijk_96.wav',
  }
  assert listing.notes == ('audio files of no segment: 1, such as abcdefghijk_20.wav',)


def test_the_file_of_a_whole_video_serves_all_its_segments(inputs):
  rows = [f'abcdefghijk, {start}, {start + 10}, "/m/09x0r"\n' for start in (0, 30)]
  listing = inputs({'eval': rows}, ['audio/Yabcdefghijk.m4a'])
  assert set(chosen(listing).values()) == {'Yabcdefghijk.m4a'}
  assert [clip.start for clip in listing.clips] == [0, 30]


def test_of_several_files_the_same_one_is_taken_in_whatever_order_they_are_found(inputs, tmp_path):
  best_first = [
    'audio/z/Yabcdefghijk_30.000_40.000.wav',
    'more/abcdefghijk_30.wav',
    'audio/abcdefghijk_30000.m4a',
    'audio/abcdefghijk.flac',
    'audio/abcdefghijk.mp3',
    'audio/abcdefghijk.amr',
  ]
  row = 'abcdefghijk, 30.000, 40.000, "/m/09x0r"\n'
  (tmp_path / 'audio').mkdir()
  (tmp_path / 'audio/abcdefghijk_30_40.wav').touch()  # Empty: better than nothing, to be found empty.
  while best_first:
    listing = inputs({'eval': [row]}, best_first, ['audio', 'more'])
    assert chosen(listing) == {'abcdefghijk_30000': os.path.basename(best_first[0])}
    assert listing.notes == ('segments with more than one file, of which the likeliest is taken: 1',)
    os.unlink(tmp_path / best_first.pop(0))
    (tmp_path / 'more').mkdir(exist_ok=True)
  assert chosen(inputs({'eval': [row]}, [], ['audio'])) == {'abcdefghijk_30000': 'abcdefghijk_30_40.wav'}


def test_where_no_file_is_of_any_segment_the_error_shows_a_name_of_each(inputs):
  row = 'abcdefghijk, 30.000, 40.000, "/m/09x0r"\n'
  with pytest.raises(
    UserError, match='no audio files; expected are names such as abcdefghijk.wav or abcdefghijk_30_40'
  ):
    inputs({'eval': [row]}, ['audio/readme.txt'])
  with pytest.raises(UserError, match='none of 2 audio files is of a segment, such as 00001.wav; expected are'):
    inputs({'eval': [row]}, ['audio/00001.wav', 'audio/00002.wav'])
  with pytest.raises(UserError, match='there is no folder or tar .*nothing'):
    inputs({'eval': [row]}, [], ['nothing'])


def test_a_segment_of_two_csvs_is_kept_out_of_training(inputs):
  rows = [f'abcdefghij{i}, 30.000, 40.000, "/m/09x0r"\n' for i in range(4)]
  segments = {'unbalanced_train': rows, 'valid': rows[1:], 'eval': rows[2:3], 'balanced_train': rows[3:]}
  listing = inputs(segments, ['audio/abcdefghij0.wav'])
  assert {clip.name[:11]: clip.split for clip in listing.clips} == {
    'abcdefghij0': 'unbalanced_train',
    'abcdefghij1': 'valid',
    'abcdefghij2': 'eval',
    'abcdefghij3': 'valid',
  }
  assert listing.notes == (
    'segments of valid that are in eval as well, and left to it: 1',
    'segments of balanced_train that are in valid as well, and left to it: 1',
    'segments of unbalanced_train that are in valid as well, and left to it: 2',
    'segments of unbalanced_train that are in eval as well, and left to it: 1',
  )


def test_the_splits_are_named_after_the_csvs():
  assert audioset.split_of('/x/balanced_train_segments.csv') == 'balanced_train'
  assert audioset.split_of('gs://x/my_list.csv') == 'my_list'
  for name in ('eval-2.csv', 'eval_segments (1).csv', '.csv', '1st.csv'):
    with pytest.raises(UserError, match='rename it'):
      audioset.split_of(name)


def test_two_csvs_of_one_split_are_refused(tmp_path, tree):
  (tmp_path / 'eval.csv').write_text(ROW)
  with pytest.raises(UserError, match='are both of the split eval'):
    audioset.list_clips([*tree.segments, tmp_path / 'eval.csv'], tree.labels, ['x'])


# Folders and tars.


def test_a_folder_that_contains_itself_is_listed_once(inputs, tmp_path):
  row = 'abcdefghijk, 30.000, 40.000, "/m/09x0r"\n'
  (tmp_path / 'audio').mkdir()
  (tmp_path / 'audio/again').symlink_to(tmp_path / 'audio')
  (tmp_path / 'elsewhere').mkdir()
  (tmp_path / 'audio/linked').symlink_to(tmp_path / 'elsewhere')
  (tmp_path / 'audio/gone.wav').symlink_to(tmp_path / 'nowhere')
  listing = inputs({'eval': [row]}, ['elsewhere/abcdefghijk.wav'])
  assert chosen(listing) == {'abcdefghijk_30000': 'abcdefghijk.wav'}
  assert not listing.notes


def test_paths_hold_in_any_current_folder(tree, monkeypatch):
  monkeypatch.chdir(tree.audio[0].parent)
  listing = audioset.list_clips(tree.segments, tree.labels, ['audio', './more.tar'])
  assert listing == list_tree(tree)


def test_a_tar_that_is_compressed_or_damaged_or_none_is_refused(tmp_path, tree):
  source = tree.audio[1].read_bytes()
  with tarfile.open(tree.audio[1]) as archive:
    second = archive.getmembers()[-1].offset
  for content, complaint in (
    (gzip.compress(source), 'is compressed, and cannot be read at any place: unpack it with gzip -d first'),
    (source[:-15_000], 'cannot be read as a tar: unexpected end of data'),
    (source[: second + 100] + b'xxxx' + source[second + 104 :], f'a damaged header at byte {second}'),
    (b'RIFF' * 500, 'cannot be read as a tar'),
  ):
    (tmp_path / 'x.tar').write_bytes(content)
    with pytest.raises(UserError, match=complaint):
      audioset.list_clips(tree.segments, tree.labels, [str(tmp_path / 'x.tar')])


def test_the_fingerprint_tells_whether_anything_changed_and_not_where_it_is(tree, tmp_path):
  def fingerprint():
    audio = [str(path) for path in (tmp_path / 'tree/audio', tmp_path / 'tree/more.tar')]
    segments = [tmp_path / 'tree' / path.name for path in tree.segments]
    return audioset.list_clips(segments, tmp_path / 'tree' / tree.labels.name, audio).fingerprint

  shutil.copytree(tree.labels.parent, tmp_path / 'tree')
  before = fingerprint()
  assert before == list_tree(tree).fingerprint == fingerprint()
  file = tmp_path / 'tree/audio/Yc5ABC-efGHi.wav'
  soundfile.write(file, voice(9, 1), RATE)
  after = fingerprint()
  assert after != before
  os.unlink(file)
  assert fingerprint() not in (before, after)
  table = tmp_path / 'tree/eval_segments.csv'
  before = fingerprint()
  table.write_text(table.read_text().replace('32.400', '33.400'))
  assert fingerprint() != before
