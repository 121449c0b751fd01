"""What TensorFlow Datasets needs to read a dataset: `dataset_info.json`, `features.json` and the classes' names.

With them in a folder DIR/NAME/1.0.0, `tfds.load('NAME', data_dir='DIR')` reads it, and in any folder
`tfds.builder_from_directory(folder)` does. TFDS itself would write the same files, but takes seconds to import
TensorFlow for it; its own reader is the test of these. The files: https://www.tensorflow.org/datasets/external_tfrecord.
"""

import json
from collections.abc import Sequence
from typing import Any

from selfie_jax.data.dataset import Manifest
from selfie_jax.data.shard import Shard
from selfie_jax.files import PathLike, as_path, write_atomically

_INFO = 'dataset_info.json'
_FEATURES = 'features.json'
_CLASSES = 'labels.labels.txt'  # One a line.
FILES = (_INFO, _FEATURES, _CLASSES)

_PACKAGE = 'tensorflow_datasets.core.features'


def write(folder: PathLike, manifest: Manifest) -> None:
  """Writes the files that describe the dataset `folder`, here or in an object store, to TFDS.

  Its features are `audio`, `sample_rate`, `id` and `labels`, a list of class numbers; without classes, of integers.
  `audio` is (samples,) int16, or, where records hold FLAC, the bytes of a FLAC file: TFDS would decode them only with
  tensorflow-io, which is not made for today's TensorFlow.
  """
  folder = as_path(folder)
  files = {_INFO: _to_json(_info(manifest)), _FEATURES: _to_json(_features(manifest))}
  if manifest.classes:
    files[_CLASSES] = ''.join(f'{" ".join(name.split())}\n' for name in manifest.classes)
  for name, text in files.items():
    with write_atomically(folder / name) as file:
      file.write(text.encode())


def _info(manifest: Manifest) -> dict[str, Any]:
  return {
    'name': manifest.source.kind,  # Not the folder's: the same input gives the same bytes anywhere.
    'version': '1.0.0',
    'description': 'Audio clips in one channel, prepared by selfie_jax. audit.csv tells which were left out, and why.',
    'fileFormat': 'tfrecord',
    # Of a split without shards there is nothing to say.
    'splits': [_split(split.name, shards) for split in manifest.splits if (shards := _shards(manifest, split.name))],
  }


def _shards(manifest: Manifest, split: str) -> list[Shard]:
  return [shard for shard in manifest.shards if shard.split == split]


def _split(name: str, shards: Sequence[Shard]) -> dict[str, Any]:
  return {
    'name': name,
    'shardLengths': [shard.clips for shard in shards],
    'numBytes': sum(shard.bytes for shard in shards),
    'filepathTemplate': '{SPLIT}-{SHARD_X_OF_Y}.{FILEFORMAT}',
  }


def _features(manifest: Manifest) -> dict[str, Any]:
  if manifest.source.audio_format == 'flac':
    audio = _scalar('string')
  else:
    content = {'shape': {'dimensions': [-1]}, 'dtype': 'int16', 'encoding': 'BYTES', 'sampleRate': manifest.sample_rate}
    audio = _feature('audio_feature.Audio', 'audio', content)
  label = _feature('class_label_feature.ClassLabel', 'classLabel', {'numClasses': len(manifest.classes)})
  return _feature(
    'features_dict.FeaturesDict',
    'featuresDict',
    {
      'features': {
        'audio': audio,
        'sample_rate': _scalar('int64'),
        'id': _feature('text_feature.Text', 'text', {}),
        'labels': _feature(
          'sequence_feature.Sequence',
          'sequence',
          {'feature': label if manifest.classes else _scalar('int64'), 'length': -1},
        ),
      }
    },
  )


def _feature(connector: str, kind: str, content: dict[str, Any]) -> dict[str, Any]:
  return {'pythonClassName': f'{_PACKAGE}.{connector}', kind: content}


def _scalar(dtype: str) -> dict[str, Any]:
  return _feature('tensor_feature.Tensor', 'tensor', {'shape': {}, 'dtype': dtype, 'encoding': 'none'})


def _to_json(value: dict[str, Any]) -> str:
  return json.dumps(value, indent=2) + '\n'
