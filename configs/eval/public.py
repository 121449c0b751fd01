"""The public tasks: voices, Mandarin initials, instruments, drums, sound events, and pitch.

Labelled folders in TASKS. Of the others in there, --config.only="('language','mandarin_tone')" asks for these; see
--config.tasks_dir=DIR with configs/eval/quick.py for all. The choice of test clips alone is worth 1.3 points of the
mean of the first five, and 1.3 to 3.7 of a task. Logistic regression, because these tasks have few clips: the linear
probe by Adam, whose rate and epoch a hundred validation clips choose, was 6 points worse on the drums of one encoder
and 14 on its sound events.

Command:  TASKS=DIR_OF_FOLDERS python -m selfie_jax.evaluate --config configs/eval/public.py --workdir DIR
"""

import os

import ml_collections

TASKS = ('voice', 'mandarin_initial', 'instrument', 'drum', 'sound_event', 'pitch')
FURTHER = ('language', 'mandarin_tone')


def get_config() -> ml_collections.ConfigDict:
  tasks_dir = os.environ.get('TASKS', 'public/data')
  there = [name for name in FURTHER if os.path.isdir(os.path.join(tasks_dir, name))]
  tasks = [{'name': name} for name in (*TASKS, *there)]
  return ml_collections.ConfigDict(
    {'tasks_dir': tasks_dir, 'tasks': tasks, 'only': TASKS, 'readouts': ('logistic_regression',)}
  )
