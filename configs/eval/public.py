"""The public tasks: voices, Mandarin initials, instruments, drums, sound events, and pitch.

Labelled folders in TASKS; --config.tasks="()" asks for all that are in there. The choice of test clips alone is worth
1.3 points of the mean of the first five, and 1.3 to 3.7 of a task. Logistic regression, because these tasks have few
clips: the linear probe by Adam, whose rate and epoch a hundred validation clips choose, was 6 points worse on the drums
of one encoder and 14 on its sound events.

Command:  TASKS=DIR_OF_FOLDERS python -m selfie_jax.evaluate --config configs/eval/public.py --workdir DIR
"""

import os

import ml_collections

TASKS = ('voice', 'mandarin_initial', 'instrument', 'drum', 'sound_event', 'pitch')


def get_config() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    {
      'tasks_dir': os.environ.get('TASKS', 'public/data'),
      'tasks': [{'name': name} for name in TASKS],
      'readouts': ('logistic_regression',),
    }
  )
