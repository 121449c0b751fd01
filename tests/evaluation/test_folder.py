import shutil

import numpy as np
import pytest

from selfie_jax.config import Task
from selfie_jax.errors import UserError
from selfie_jax.evaluation.tasks.folder import load_folder
from tests.evaluation.conftest import write_table


def write(folder, columns, rows):
  """A labelled folder whose audio files are empty: reading metadata decodes nothing."""
  write_table(folder / 'metadata.csv', columns, rows)
  for row in rows:
    (folder / row[0]).touch()
  return load_folder(Task('mine', str(folder)))


def rows_of(**counts):
  return [(f'{split}_{label}_{i}.wav', split, label) for split, n in counts.items() for label in 'ab' for i in range(n)]


COLUMNS = ('file_name', 'split', 'label')


def test_the_splits_are_those_of_the_table_and_further_columns_are_ignored(tmp_path):
  rows = [(*row, 'x') for row in rows_of(test=1, train=3, valid=2)]
  folder = write(tmp_path, (*COLUMNS, 'speaker'), rows)
  [split] = folder.splits
  assert folder.classes == ('a', 'b')
  for name, count in (('train', 6), ('valid', 4), ('test', 2)):
    assert [folder.files[row].name.split('_')[0] for row in getattr(split, name)] == [name] * count
  assert [folder.classes[label] for label in folder.labels] == [row[2] for row in rows]


def test_other_splits_are_left_out_and_mentioned(tmp_path, capsys):
  folder = write(tmp_path, COLUMNS, rows_of(train=2, valid=1, test=1, test_unseen_voice=3))
  assert len(folder.files) == 8
  assert 'test_unseen_voice 6' in capsys.readouterr().err


def test_each_fold_is_the_test_set_in_turn_and_a_tenth_of_every_class_of_the_rest_is_held_out(tmp_path):
  rows = [(f'{label}{i}.wav', label, str(1 + i % 11)) for label in 'ab' for i in range(44)]
  folder = write(tmp_path, ('file_name', 'label', 'fold'), rows)
  folds = np.array([row[2] for row in rows])
  assert len(folder.splits) == 11
  for number, split in enumerate(folder.splits, 1):  # Fold 10 comes after fold 9.
    assert set(folds[split.test]) == {str(number)}
    assert sorted([*split.train, *split.valid, *split.test]) == list(range(88))
    assert np.bincount(folder.labels[split.valid]).tolist() == [4, 4]
  again = load_folder(Task('mine', str(tmp_path)))
  assert all((a.valid == b.valid).all() for a, b in zip(folder.splits, again.splits, strict=True))


@pytest.mark.parametrize(
  ('columns', 'rows', 'message'),
  [
    (('filename', 'split', 'label'), rows_of(train=1, valid=1, test=1), 'no column "file_name": is "filename" meant?'),
    (('file_name', 'fold_', 'tag'), [('a', '', '')], 'no column "label": it has file_name, fold_, tag'),
    (
      COLUMNS,
      rows_of(train=1, validation=1, test=1),
      'no clips of split "valid"; it has train 2, validation 2, test 2',
    ),
    (
      COLUMNS,
      [*rows_of(train=1, valid=1, test=1), ('c.wav', 'test', 'c')],
      '1 labels are in test and not in train.*"c"',
    ),
    (COLUMNS, [*rows_of(train=1, valid=1, test=1), ('c.wav', 'test', '')], '1 rows without a "label", .* in row 8'),
    (COLUMNS, [('a.wav', s, 'a') for s in ('train', 'valid', 'test')], 'lists 1 files more than once.*a.wav'),
    (COLUMNS, [(f'{s}.wav', s, 'a') for s in ('train', 'valid', 'test')], 'one label only, "a"'),
    (COLUMNS, [], 'no rows'),
    (('file_name', 'label', 'fold'), [('a.wav', 'a', '1'), ('b.wav', 'b', '1')], 'one fold only, "1"'),
    (
      ('file_name', 'label', 'fold'),
      [(f'{label}{i}.wav', label, i % 2) for label in 'ab' for i in range(2)],
      'label "a" has 1 clip outside fold "0"',
    ),
    (('file_name', 'label', 'fold'), [('a.wav', 'a', '1'), ('b.wav', 'b', '')], '1 rows without a "fold"'),
  ],
)
def test_a_table_that_cannot_be_used_is_one_clear_line(tmp_path, columns, rows, message):
  with pytest.raises(UserError, match=message) as error:
    write(tmp_path, columns, rows)
  assert '\n' not in str(error.value)


def test_missing_files_are_counted_and_the_first_is_named(tones, tmp_path):
  folder = shutil.copytree(tones, tmp_path / 'tones')
  (folder / 'low_3.wav').unlink()
  (folder / 'high_1.wav').unlink()
  with pytest.raises(UserError, match='lists 30 files and 2 of them do not exist, the first is .*low_3.wav'):
    load_folder(Task('tones', str(folder)))


def test_a_folder_without_metadata_is_named(tmp_path):
  with pytest.raises(UserError, match='metadata.csv does not exist'):
    load_folder(Task('nothing', str(tmp_path)))


def test_a_table_that_is_not_text_is_one_clear_line(tmp_path):
  (tmp_path / 'metadata.csv').write_bytes(b'file_name,label\n\xff\xfe\x00')
  with pytest.raises(UserError, match='cannot be read as a UTF-8 CSV file'):
    load_folder(Task('mine', str(tmp_path)))
