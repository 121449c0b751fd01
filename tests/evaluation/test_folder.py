import shutil

import numpy as np
import pytest

from selfie_jax.config import Evaluation, Task
from selfie_jax.errors import UserError
from selfie_jax.evaluation.tasks.folder import find_tasks, load_folder
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


def test_a_table_without_a_split_valid_has_a_tenth_of_train_held_out_and_says_so(tmp_path, capsys):
  [split] = write(tmp_path, COLUMNS, rows_of(train=20, test=5)).splits
  assert [len(split.train), len(split.valid), len(split.test)] == [36, 4, 10]
  assert 'a tenth of train is held out' in capsys.readouterr().err


def test_a_label_of_one_clip_is_trained_on_and_said_to_have_none_to_validate_with(tmp_path, capsys):
  folder = write(tmp_path, COLUMNS, [*rows_of(train=20, test=5), ('c.wav', 'train', 'c')])
  [split] = folder.splits
  assert [len(split.train), len(split.valid), len(split.test)] == [37, 4, 10]
  assert 20 * 2 + 5 * 2 not in split.valid
  assert '1 labels have 1 clip to train on and none to validate with, as has "c"' in capsys.readouterr().err


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
      'no label has 2 clips, one to train on and one to validate with',
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


MULTI = ('file_name', 'split', 'labels')


def multi_rows():
  labels = ('dog;rain', ' rain ', '', 'cat; dog')
  return [(f'{split}{i}.wav', split, labels[i % 4]) for split in ('train', 'valid', 'test') for i in range(4)]


def test_a_column_labels_makes_a_multi_label_task_whose_clips_may_have_none(tmp_path):
  folder = write(tmp_path, MULTI, multi_rows())
  assert folder.multi_label
  assert folder.classes == ('cat', 'dog', 'rain')
  assert folder.labels.dtype == bool
  wanted = [(False, True, True), (False, False, True), (False, False, False), (True, True, False)]
  assert [tuple(row) for row in folder.labels] == wanted * 3
  assert [len(folder.splits[0].train), len(folder.splits[0].valid), len(folder.splits[0].test)] == [4, 4, 4]


def test_a_multi_label_class_that_train_lacks_is_mentioned(tmp_path, capsys):
  folder = write(tmp_path, MULTI, [*multi_rows(), ('bird.wav', 'test', 'bird')])
  assert folder.classes == ('bird', 'cat', 'dog', 'rain')
  assert '1 labels are in test and not in train, the first is "bird"' in capsys.readouterr().err


def test_multi_label_folds_hold_a_random_tenth_out(tmp_path):
  rows = [(f'{i}.wav', ('a;b', 'b', '')[i % 3], 1 + i % 3) for i in range(60)]
  folder = write(tmp_path, ('file_name', 'labels', 'fold'), rows)
  assert [(len(split.train), len(split.valid), len(split.test)) for split in folder.splits] == [(36, 4, 20)] * 3
  assert folder.labels.shape == (60, 2)


def test_a_multi_label_table_without_any_label_is_one_clear_line(tmp_path):
  with pytest.raises(UserError, match='no label in any row: a task needs at least 1'):
    write(tmp_path, MULTI, [(f'{split}.wav', split, '') for split in ('train', 'valid', 'test')])


def test_task_json_tells_the_unit_the_title_and_evars_rate_and_the_config_wins(tmp_path):
  folder = write(tmp_path, COLUMNS, rows_of(train=1, valid=1, test=1))
  assert (folder.title, folder.unit_seconds, folder.evar_learning_rate) == ('mine', 10.0, 1e-3)
  (tmp_path / 'task.json').write_text('{"title": "Mine", "unit_seconds": 4, "evar_learning_rate": 3e-5, "more": 1}')
  told = load_folder(Task('mine', str(tmp_path)))
  assert (told.title, told.unit_seconds, told.evar_learning_rate) == ('Mine', 4, 3e-5)
  assert load_folder(Task('mine', str(tmp_path), unit_seconds=2.5)).unit_seconds == 2.5


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{"title"', 'cannot be read as JSON'),
    ('[]', 'no JSON object'),
    ('{"unit_seconds": -1}', '"unit_seconds" is -1; it must be a number above 0'),
    ('{"evar_learning_rate": "1e-3"}', '"evar_learning_rate" is \'1e-3\''),
    ('{"title": 3}', '"title" is 3; it must be text'),
  ],
)
def test_a_task_json_that_cannot_be_used_is_one_clear_line(tmp_path, text, message):
  write(tmp_path, COLUMNS, rows_of(train=1, valid=1, test=1))
  (tmp_path / 'task.json').write_text(text)
  with pytest.raises(UserError, match=message):
    load_folder(Task('mine', str(tmp_path)))


def test_the_fingerprint_changes_with_any_row_and_any_file(tmp_path):
  rows = rows_of(train=2, valid=1, test=1)
  first = write(tmp_path, COLUMNS, rows).fingerprint
  load = lambda: load_folder(Task('mine', str(tmp_path))).fingerprint  # noqa: E731
  assert load() == first
  write_table(tmp_path / 'metadata.csv', (*COLUMNS, 'speaker'), [(*row, 'x') for row in rows])
  assert load() == first  # Further columns are ignored.
  write_table(tmp_path / 'metadata.csv', COLUMNS, [(rows[0][0], 'train', 'b'), *rows[1:]])
  assert load() != first
  write_table(tmp_path / 'metadata.csv', COLUMNS, rows)
  assert load() == first
  (tmp_path / rows[0][0]).write_bytes(b'other')
  assert load() != first


def tasks_in(folder, *names):
  for name in names:
    (folder / name).mkdir(parents=True)
    write(folder / name, COLUMNS, rows_of(train=1, valid=1, test=1))
  return str(folder)


def test_every_folder_with_metadata_is_a_task_and_only_chooses(tmp_path):
  tasks_dir = tasks_in(tmp_path, 'us8k', 'esc50')
  (tmp_path / 'half_done' / 'audio').mkdir(parents=True)
  assert [task.name for task in find_tasks(Evaluation(tasks_dir=tasks_dir))] == ['esc50', 'us8k']
  [task] = find_tasks(Evaluation(tasks_dir=tasks_dir, only=('us8k',)))
  assert load_folder(task, tasks_dir).files[0].parent.name == 'us8k'
  named = (Task('b', 'x'), Task('a', 'y'))
  assert find_tasks(Evaluation(tasks_dir=tasks_dir, tasks=named)) == named
  with pytest.raises(UserError, match='"only" names the task "esc5", .* 2 tasks: did you mean "esc50"'):
    find_tasks(Evaluation(tasks_dir=tasks_dir, only=('esc5',)))


def test_a_folder_found_without_a_test_split_is_left_out_with_a_line_and_one_of_another_making_is_an_error(
  tmp_path, capsys
):
  tasks_dir = tasks_in(tmp_path, 'us8k')
  write_table(tmp_path / 'corpus/metadata.csv', COLUMNS, rows_of(train=3))
  assert [task.name for task in find_tasks(Evaluation(tasks_dir=tasks_dir))] == ['us8k']
  assert 'corpus: left out' in capsys.readouterr().err
  (tmp_path / 'us8k/metadata.csv').unlink()
  with pytest.raises(UserError, match='none of the 1 labelled folders in .* has clips to test on'):
    find_tasks(Evaluation(tasks_dir=tasks_dir))
  (tmp_path / 'corpus/metadata.csv').write_text('file_name;label;split\na.wav;a;train\n')
  with pytest.raises(UserError, match='no column "file_name"'):
    find_tasks(Evaluation(tasks_dir=tasks_dir))


def test_a_task_that_is_not_there_names_those_that_are_and_how_to_make_it(tmp_path):
  tasks_dir = tasks_in(tmp_path, 'esc50')
  with pytest.raises(UserError, match='us8k has no metadata.csv; labelled folders in .*: esc50; make .* --task us8k'):
    load_folder(Task('us8k'), tasks_dir)
  with pytest.raises(UserError, match='no folder in there has a metadata.csv: make some with'):
    find_tasks(Evaluation(tasks_dir=str(tmp_path / 'nowhere')))
  with pytest.raises(UserError, match='task "us8k" has no path: give it one, or --config.tasks_dir=DIR'):
    load_folder(Task('us8k'))
