import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfie_jax.errors import UserError
from selfie_jax.evaluation.tasks import cremad, gtzan, surge
from selfie_jax.evaluation.tasks.lists import parse_numbered, read_named, split_in_name
from selfie_jax.evaluation.tasks.splitting import make_folds, split_as_tfds, split_by_hash

_WORDS = st.text('abcdefghijklmnop0123456789_-', min_size=1, max_size=10)
_SPLITS = {'1': 'train', '2': 'valid', '3': 'test'}


@settings(deadline=None)
@given(st.dictionaries(st.tuples(_WORDS, _WORDS), st.sampled_from('123'), min_size=1))
def test_iden_split_is_read_as_it_was_written(files):
  lines = {f'id10{a}/{b}/00001.wav': number for (a, b), number in files.items()}
  text = '\n'.join(f'{number} {file}' for file, number in lines.items()) + '\n\n'
  assert parse_numbered(text, 'iden_split.txt') == {file: _SPLITS[number] for file, number in lines.items()}


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_an_iden_split_or_one_clear_line(text):
  lines = [line.split() for line in text.splitlines() if line.strip()]
  if all(len(line) == 2 and line[0] in _SPLITS for line in lines):
    assert parse_numbered(text, 'x.txt') == {file: _SPLITS[number] for number, file in lines}
  else:
    with pytest.raises(UserError, match=r'x.txt, line \d+ is '):
      parse_numbered(text, 'x.txt')


@pytest.mark.parametrize(
  ('name', 'split'),
  [
    ('train_filtered.txt', 'train'),
    ('gs://b/val.txt', 'valid'),
    ('VALID-1.csv', 'valid'),
    ('testing_list.txt', 'test'),
  ],
)
def test_the_split_of_a_list_is_in_its_name(name, split):
  assert split_in_name(name) == split


@pytest.mark.parametrize('name', ['filtered.txt', 'train_test.txt', 'trainer.txt'])
def test_a_list_whose_name_tells_no_split_is_refused(name):
  with pytest.raises(UserError, match='must say of which split it is'):
    split_in_name(name)


def test_a_track_in_two_lists_is_an_error(tmp_path):
  for name in ('train.txt', 'test.txt'):
    (tmp_path / name).write_text('blues/blues.00001.wav\n')
  with pytest.raises(UserError, match='have blues/blues.00001.wav in train and in test'):
    read_named([str(tmp_path / 'train.txt'), str(tmp_path / 'test.txt')])
  with pytest.raises(UserError, match='which does not exist'):
    read_named([str(tmp_path / 'valid.txt')])


@settings(deadline=None)
@given(st.integers(0, 9_999), st.sampled_from(['ANG', 'DIS', 'FEA', 'HAP', 'NEU', 'SAD']), st.sampled_from(['XX', 'X']))
def test_crema_d_names(speaker, emotion, level):
  assert cremad.parse(f'{speaker:04d}_DFA_{emotion}_{level}.wav') == (f'{speaker:04d}', emotion)


@settings(deadline=None)
@given(st.integers(0, 99_999), st.sampled_from(['jazz/jazz.{:05d}.wav', 'jazz.{:05d}', 'a/b/jazz.{:05d}.au']))
def test_gtzan_names(number, form):
  assert gtzan.parse(form.format(number)) == (f'jazz.{number:05d}', 'jazz')


@settings(deadline=None)
@given(st.text(max_size=12))
def test_other_names_are_no_clips_of_theirs(name):
  assert cremad.parse(name) is None
  assert gtzan.parse(name) is None or re.search(r'\.\d{5}', name)


@settings(deadline=None)
@given(st.text(st.characters(blacklist_categories=('Nd', 'Cs')), max_size=8), st.integers(0, 200))
def test_a_surge_note_is_the_number_a_name_ends_in(prefix, note):
  assert surge.parse(f'{prefix}{note}.ogg') == (note if 21 <= note <= 108 else None)
  assert surge.parse(f'{prefix}{note}.wav') is None


@settings(deadline=None)
@given(st.lists(_WORDS, min_size=1), st.sampled_from([(63, 9, 19), (70, 15, 15)]), st.randoms())
def test_splits_depend_on_the_names_alone(names, shares, random):
  for split in (split_by_hash, split_as_tfds):
    splits = split(names, shares)
    assert splits.keys() == set(names)
    shuffled = random.sample(names, len(names))
    assert split(shuffled, shares) == splits


def test_a_group_count_of_the_shares_sum_is_dealt_out_exactly():
  presets = [f'preset {i}' for i in range(2_084)]
  dealt = list(split_by_hash(presets, (1_692, 195, 197)).values())
  assert [dealt.count(split) for split in ('train', 'valid', 'test')] == [1_692, 195, 197]


def test_folds_keep_groups_together_and_classes_in_proportion():
  names = [f'{i:03d}.wav' for i in range(60)]
  labels = ['ab'[i // 30] for i in range(60)]
  groups = [f'g{i // 3}' for i in range(60)]
  folds = make_folds(names, labels, groups, 5)
  assert len({(group, fold) for group, fold in zip(groups, folds, strict=True)}) == 20
  for fold in '12345':
    assert [sum((f, x) == (fold, label) for f, x in zip(folds, labels, strict=True)) for label in 'ab'] == [6, 6]
  backwards = make_folds(names[::-1], labels[::-1], groups[::-1], 5)
  assert backwards[::-1] == folds
  assert set(make_folds(names, None, [''] * 60, 4)) == set('1234')


@pytest.mark.parametrize(
  ('labels', 'groups', 'message'),
  [
    (list('aab'), [''] * 3, 'label "b" has 1 clips: give fewer'),
    (list('aaa'), list('ggg'), 'there are 1 groups: give fewer'),
    (None, [''] * 1, 'there are 1 clips: give fewer'),
  ],
)
def test_more_folds_than_can_be_is_one_line(labels, groups, message):
  with pytest.raises(UserError, match=message):
    make_folds([f'{i}.wav' for i in range(len(groups))], labels, groups, 2)
