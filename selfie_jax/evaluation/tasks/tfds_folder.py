"""The nine tasks from folders that TensorFlow Datasets has prepared, as far as it has them."""

import functools
import json
import os
from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds

from selfie_jax.data import tfds_source, tfrecord
from selfie_jax.data.clip import TfdsRecord
from selfie_jax.errors import UserError
from selfie_jax.evaluation.tasks import gtzan
from selfie_jax.evaluation.tasks.lists import SPLIT_NAMES
from selfie_jax.evaluation.tasks.nine import Definition
from selfie_jax.evaluation.tasks.tree import Listing, Row, Tree
from selfie_jax.files import as_path

_INFO = 'dataset_info.json'
_LABEL = ('label',)
_LABELS = {'nsynth': ('instrument', 'family')}
_FILE_NAME = ('audio/filename',)  # GTZAN's: one key, with a slash in it.


def listing(definition: Definition, folder: str, lists: Sequence[str]) -> tuple[Tree, Listing]:
  """Lists the examples of a prepared dataset. Their labels are not read yet: see `read_label`.

  Args:
    definition: of the task.
    folder: of a version of the dataset, such as nsynth/full/2.3.3: it has a dataset_info.json.
    lists: for GTZAN, of which TFDS knows no splits.

  Raises:
    UserError: TFDS's dataset is not that of the task, or cannot be read.
  """
  info = json.loads((as_path(folder) / _INFO).read_bytes())
  if info['name'] != definition.tfds:
    remark = definition.tfds_remark if info['name'] == 'speech_commands' else ''
    raise UserError(
      f'{folder} is the dataset "{info["name"]}" of TensorFlow Datasets; task "{definition.name}" '
      + (f'takes its "{definition.tfds}"' if definition.tfds else f'takes none: {remark or "give the download"}')
    )
  levels = [info['name'], *filter(None, [info.get('configName')]), info['version']]
  if folder.rstrip('/').split('/')[-len(levels) :] != levels:
    raise UserError(f'{folder} should end in {"/".join(levels)}, as TFDS writes it')
  name = f'{"/".join(levels[:-1])}:{levels[-1]}'
  data_dir = '/'.join(folder.rstrip('/').split('/')[: -len(levels)])
  found = tfds_source.list_clips(name, data_dir)
  tree = Tree(folder, {clip.name: clip.sound for clip in found.clips}, dict.fromkeys(_names(found), found.fingerprint))
  if definition.name == 'gtzan':
    return tree, _of_gtzan(tree, lists)
  if lists:
    raise UserError(f'--lists is for the download of "{definition.name}"; a dataset of TFDS has its own splits')
  rows = tuple(Row(clip.name, None, SPLIT_NAMES.get(clip.split, clip.split)) for clip in found.clips)
  notices = (definition.tfds_remark,) if definition.tfds_remark else ()
  return tree, Listing(rows, folds=False, notices=notices)


def _names(found: Any) -> list[str]:
  return [clip.name for clip in found.clips]


def _of_gtzan(tree: Tree, lists: Sequence[str]) -> Listing:
  splits = gtzan.read_lists(lists)
  places = {}
  for name, record in tree.files.items():
    parsed = gtzan.parse(_read(record, _FILE_NAME).decode())
    if parsed:
      places[parsed[0]] = name
  rows = tuple(Row(places.get(stem, f'{stem}.wav'), (stem.split('.')[0],), split) for stem, split in splits.items())
  left_out = len(places.keys() - splits.keys())
  return Listing(rows, folds=False, notices=(f'{left_out} tracks are in no list, and left out (the filter)',))


def read_label(record: TfdsRecord, task: str) -> str:
  """Returns the class of an example, by the name that the task's download has for it.

  Raises:
    UserError: the record is damaged.
  """
  path = _LABELS.get(task, _LABEL)
  number = int(_read(record, path))
  if task == 'vc1':
    return f'id1{number:04d}'  # TFDS numbers speakers by these digits, and has no names.
  feature = _reader(record.folder, path)
  for key in path:
    feature = feature[key]
  return feature.int2str(number)


def _read(record: TfdsRecord, path: tuple[str, ...]) -> Any:
  """Returns one feature of an example."""
  file = f'{record.folder}/{record.file}'
  if record.length:
    data = bytes(tfrecord.read_record(file, record.number, record.offset, record.length))
  else:
    (data,) = _array_record(file).read([record.number])
  value = _reader(record.folder, path).deserialize_example_np(data)
  for key in path:
    value = value[key]
  return value


@functools.lru_cache(maxsize=2)
def _reader(folder: str, path: tuple[str, ...]) -> tfds.features.FeaturesDict:
  wanted: Any = True
  for key in reversed(path):
    wanted = {key: wanted}
  return tfds.decode.PartialDecoding(wanted).extract_features(tfds.features.FeaturesDict.from_config(folder))


@functools.lru_cache(maxsize=4)
def _array_record(path: str) -> Any:
  from array_record.python.array_record_module import ArrayRecordReader

  return ArrayRecordReader(os.fspath(path))
