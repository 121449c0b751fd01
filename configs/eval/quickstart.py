"""The quick start's evaluation: three labelled folders that launch/quickstart_data.py writes.

Command:  python -m selfie_jax.evaluate --config configs/eval/quickstart.py --workdir quickstart/seed_0
"""

import os

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  data = os.path.join(os.environ.get('QUICKSTART_DIR', 'quickstart'), 'data')
  names = ('instrument_family', 'drum', 'pitch')
  tasks = {name: {'name': name, 'path': os.path.join(data, name), 'unit_seconds': 2.0} for name in names}
  tasks['instrument_family']['caveat'] = (
    'A family is tested on two instruments: untrained encoders differ by 2 points from seed to seed.'
  )
  tasks['pitch']['caveat'] = (
    'Random resize crop over frequency moves the pitch of a view, so training asks the encoder to ignore it.'
  )
  return ml_collections.ConfigDict({'tasks': list(tasks.values())})
