"""The linear probe against scikit-learn on real embeddings: what it takes, and how accurate it is.

  python -m tests.benchmarks.probes [--tasks_dir DIR --workdir RUN] [--only NAME ...] [--features 256] [--rounds 2]

The ways are those of parts/probes.py, in one process, so with one number of threads for all: OMP_NUM_THREADS=1 is what
scikit-learn takes the fewest CPU-seconds with. They take turns for some rounds; a ratio is that of two ways in the same
round, and the report has the median of the rounds' and the smallest and the largest. Our programs are compiled first,
which is reported alone. Without --tasks_dir and --workdir the embeddings are synthetic.
"""

import argparse
import time
from collections.abc import Iterator

import jax
import numpy as np

from selfie_jax.command_line import open_workdir
from selfie_jax.config import Evaluation, Task
from selfie_jax.embedding.clips import decode_clips
from selfie_jax.embedding.embeddings import embed_clips
from selfie_jax.evaluation.readouts.metrics import score
from selfie_jax.evaluation.tasks.folder import find_tasks, load_folder
from selfie_jax.training.checkpointing.checkpoints import load_encoder
from tests.benchmarks.machine import load, machine, versions
from tests.benchmarks.parts.probes import folds, logistic, mlp, ours, synthetic
from tests.benchmarks.rounds import spread

WAYS = {
  'ours': ours,
  'LogisticRegression': logistic,
  'MLPClassifier, same search': mlp,
  'ours, one rate': lambda *task: ours(*task, one_rate=True),
  'MLPClassifier, one rate': lambda *task: mlp(*task, one_rate=True),
}


def embedded(tasks_dir: str, workdir: str, only: tuple[str, ...]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
  """Embeddings and labels of the labelled folders in a folder, by a run's newest checkpoint."""
  run = load_encoder(open_workdir(workdir))
  for task in find_tasks(Evaluation(tasks_dir=tasks_dir, only=only)):
    folder = load_folder(Task(task.name, task.path, task.unit_seconds), tasks_dir)
    if folder.multi_label:
      continue
    samples = max(round(folder.unit_seconds * run.config.log_mel.sample_rate), run.config.crop_samples)
    clips = decode_clips(folder.files, run.config.log_mel.sample_rate, samples)
    crop = run.config.crop_samples
    x = embed_clips(run.encoder, clips, run.config.log_mel, run.mean, run.std, min_samples=crop, max_samples=samples)
    yield task.name, x, folder.labels


def compare(name: str, x: np.ndarray, labels: np.ndarray, rounds: int) -> None:
  """Prints seconds, ratios and accuracies of a task."""
  splits = folds(labels)
  print(f'{name}: {x.shape[0]:,} x {x.shape[1]:,}, {labels.max() + 1} classes')
  jax.clear_caches()
  cpu_begin = time.process_time()
  ours(x, labels, splits)
  print(f'  ours, the first time, compiling: {time.process_time() - cpu_begin:.1f} s of CPU')
  ours(x, labels, splits, one_rate=True)
  seconds, cpu_seconds = ({way: [] for way in WAYS} for _ in range(2))
  for number in range(rounds):
    for way in list(WAYS)[:: -1 if number % 2 else 1]:
      begin, cpu_begin = time.perf_counter(), time.process_time()
      found = WAYS[way](x, labels, splits)
      seconds[way].append(time.perf_counter() - begin)
      cpu_seconds[way].append(time.process_time() - cpu_begin)
      if not number:
        result = score(found, labels, splits)
        low, high = result.interval
        print(f'  {way}: accuracy {100 * result.score:.1f} % ({100 * low:.1f} to {100 * high:.1f})', flush=True)
  for way in WAYS:
    mine = 'ours, one rate' if way.endswith('one rate') else 'ours'
    for unit, values in (('s', seconds), ('s of CPU', cpu_seconds)):
      ratios = [theirs / own for theirs, own in zip(values[way], values[mine], strict=True)]
      print(f'  {way}: {spread(values[way]).text(2)} {unit}, {spread(ratios).text(2)} times {mine}', flush=True)


def main() -> None:
  """Prints the report."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--tasks_dir', help='the folder of the labelled folders')
  parser.add_argument('--workdir', help='the run whose encoder embeds them')
  parser.add_argument('--only', nargs='*', default=[], metavar='NAME', help='of the tasks, these')
  parser.add_argument('--features', type=int, default=256, help='of the synthetic embeddings')
  parser.add_argument('--rounds', type=int, default=2)
  options = parser.parse_args()
  if bool(options.tasks_dir) != bool(options.workdir):
    parser.error('--tasks_dir and --workdir go together')
  print(machine(), versions(), f'load {load()}', sep='\n')
  if options.tasks_dir is None:
    compare('synthetic', *synthetic(options.features), options.rounds)
    return
  for name, x, labels in embedded(options.tasks_dir, options.workdir, tuple(options.only)):
    compare(name, x, labels, options.rounds)


if __name__ == '__main__':
  main()
