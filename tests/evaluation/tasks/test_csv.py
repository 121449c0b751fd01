"""Any labelled audio as a task."""

import collections
import json
import shutil

import numpy as np
import pytest

from selfie_jax.config import Task
from selfie_jax.errors import UserError
from selfie_jax.evaluation.tasks.csv_table import listing
from selfie_jax.evaluation.tasks.folder import load_folder
from tests.evaluation.tasks import trees
from tests.evaluation.tasks.test_official_layouts import prepare, table_of


def write(folder, columns, rows):
  for number, row in enumerate(rows):
    trees.write_clip(folder / row[0], number)
  trees.write_rows(folder / 'metadata.csv', columns, rows)
  return folder


def test_a_table_of_files_anywhere_becomes_a_folder_that_needs_nothing_else(tmp_path):
  rows = [(f'{s}/{x} {i}.wav', x, s, 'who') for s in ('train', 'valid', 'test') for x in 'ab' for i in range(2)]
  rows += [('../elsewhere/c.ogg', 'a', 'train', ''), (str(tmp_path / 'abs.flac'), 'b', 'training', '')]
  mine = write(tmp_path / 'mine', ('file_name', 'label', 'split', 'group'), rows)
  prepare('csv', mine / 'metadata.csv', tmp_path / 'task', unit_seconds=1.5)
  shutil.rmtree(mine)
  folder = load_folder(Task('task'), str(tmp_path))
  assert (len(folder.files), folder.unit_seconds, folder.title, folder.multi_label) == (14, 1.5, 'task', False)
  assert [len(folder.splits[0].train), len(folder.splits[0].valid)] == [6, 4]
  assert {row['source'] for row in table_of(tmp_path / 'task')} == {row[0] for row in rows}


def test_several_labels_a_clip_and_none(tmp_path):
  labels, splits = ('dog; rain', 'rain', '', 'cat;dog'), ('train', 'valid', 'test')
  rows = [(f'{i}.wav', labels[i % 4], splits[i % 3]) for i in range(24)]
  write(tmp_path / 'mine', ('file_name', 'labels', 'split'), rows)
  prepare('csv', tmp_path / 'mine', tmp_path / 'task')
  folder = load_folder(Task('task', str(tmp_path / 'task')))
  assert (folder.multi_label, folder.classes) == (True, ('cat', 'dog', 'rain'))
  wanted = {'dog; rain': (0, 1, 1), 'rain': (0, 0, 1), '': (0, 0, 0), 'cat;dog': (1, 1, 0)}
  by_source = {row[0]: wanted[row[1]] for row in rows}
  for row, labels in zip(table_of(tmp_path / 'task'), folder.labels, strict=True):
    assert tuple(labels) == by_source[row['source']]
  assert json.loads((tmp_path / 'task' / 'task.json').read_text())['metric'] == 'mean_average_precision'


def test_folders_of_classes_with_and_without_splits(tmp_path):
  for number in range(12):
    trees.write_clip(tmp_path / 'flat' / 'ab'[number % 2] / f'{number}.wav', number)
    split = ('train', 'val', 'test')[number // 2 % 3]
    trees.write_clip(tmp_path / 'splits' / split / 'ab'[number % 2] / f'{number}.wav', number)
  trees.litter(tmp_path / 'flat' / 'a')
  with pytest.raises(UserError, match='says no split and no fold of its clips: give --folds N'):
    listing(str(tmp_path / 'flat'))
  _, flat = listing(str(tmp_path / 'flat'), folds=3)
  assert collections.Counter((row.part, *row.labels) for row in flat.rows) == {(f, x): 2 for f in '123' for x in 'ab'}
  _, splits = listing(str(tmp_path / 'splits'))
  assert collections.Counter(row.part for row in splits.rows) == {'train': 4, 'valid': 4, 'test': 4}
  assert {row.labels for row in splits.rows} == {('a',), ('b',)}
  assert not splits.folds
  prepare('csv', tmp_path / 'flat', tmp_path / 'task', folds=3)
  folder = load_folder(Task('task', str(tmp_path / 'task')))
  assert np.array_equal(np.sort(np.concatenate([split.test for split in folder.splits])), np.arange(12))


@pytest.mark.parametrize(
  ('columns', 'rows', 'folds', 'message'),
  [
    (('file_name', 'label'), [('a.wav', 'x')], None, 'says no split and no fold'),
    (('file_name', 'label', 'fold'), [('a.wav', 'x', 1)], 3, 'has its own splits or folds, and --folds is 3'),
    (('file_name', 'tag'), [('a.wav', 'x')], 3, 'no column "label"'),
    (('file_name', 'label', 'split'), [('a.wav', 'x', 'train')] * 2, None, 'lists 1 files more than once.*a.wav'),
    (('file_name', 'label', 'split'), [('a.wav', 'x', 'train'), ('b.wav', 'y', '')], None, 'without a "split"'),
  ],
)
def test_a_table_that_cannot_be_used_is_one_line(tmp_path, columns, rows, folds, message):
  trees.write_rows(tmp_path / 'metadata.csv', columns, rows)
  with pytest.raises(UserError, match=message) as error:
    listing(str(tmp_path), folds)
  assert '\n' not in str(error.value)


def test_a_folder_without_audio_is_one_line(tmp_path):
  (tmp_path / 'notes.txt').touch()
  with pytest.raises(UserError, match='has neither a metadata.csv nor CLASS'):
    listing(str(tmp_path))
