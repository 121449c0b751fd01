"""The health of a run's representations, in its log: when it is told."""

import json

import numpy as np

from selfie_jax import health
from selfie_jax.config import Config, Log
from selfie_jax.files import as_path
from selfie_jax.training.monitoring.monitor import Monitor
from selfie_jax.training.programs.compilation import CompiledStep


def test_it_is_told_at_the_first_line_after_each_interval(tmp_path):
  views = np.random.default_rng(0).normal(size=(2, 20, 7)).astype(np.float32)
  config = Config(steps=20, batch_size=16, log=Log(every_steps=3, health_every_steps=8, tensorboard=False))
  with Monitor(as_path(tmp_path), config, 0, CompiledStep(None, 1.0, None), profile=False) as monitor:
    for step in range(1, 21):
      names = ('loss', 'invariance', 'diversity', 'decorrelation', 'embedding_std', 'effective_rank', 'gradient_norm')
      monitor.add(step, dict.fromkeys((*names, 'parameter_norm'), np.float32(3)), damaged=0)
      if monitor.health_due(step):
        monitor.add_health(step, views)
      monitor.flush()
  lines = map(json.loads, (tmp_path / 'metrics.jsonl').read_text().splitlines())
  told = {line['step']: {name: line[name] for name in health.summarize(*views)} for line in lines if 'rankme' in line}
  assert told == dict.fromkeys((9, 18), health.summarize(*views))
