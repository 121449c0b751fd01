"""The optimizer, from optax."""

from typing import Any

import jax
import optax

from selfie_jax.config import Config
from selfie_jax.errors import UserError


def peak_learning_rate(config: Config) -> float:
  """Returns the peak rate, scaled linearly with the batch if `base_batch_size` is set (Goyal et al., 2017)."""
  base = config.optimizer.base_batch_size
  return config.optimizer.learning_rate * (config.batch_size / base if base else 1.0)


def learning_rate_schedule(config: Config) -> optax.Schedule:
  """Returns step -> rate: linear warm-up from 0 to the peak, then a cosine down to 0 at the last step, or the peak."""
  peak, warmup = peak_learning_rate(config), config.optimizer.warmup_steps
  if warmup >= config.steps:
    raise UserError(f'optimizer.warmup_steps {warmup} leaves nothing of steps {config.steps}: lower it')
  if config.optimizer.schedule == 'cosine':
    after = optax.cosine_decay_schedule(peak, config.steps - warmup)
  else:
    after = optax.constant_schedule(peak)
  if not warmup:
    return after
  return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def decay_mask(params: Any) -> Any:
  """True for kernels; False for biases, normalisation and positions, which no penalty should pull to zero."""
  return jax.tree.map_with_path(lambda path, _: 'kernel' in jax.tree_util.keystr(path), params)


def make_optimizer(config: Config) -> optax.GradientTransformation:
  """Returns clipping (if any) followed by Adam, AdamW or LARS with the schedule.

  Raises:
    UserError: settings that contradict each other.
  """
  settings, schedule = config.optimizer, learning_rate_schedule(config)
  if settings.name == 'adam':
    if settings.weight_decay:
      raise UserError(f'optimizer "adam" takes no weight_decay, got {settings.weight_decay}: use "adamw"')
    update = optax.adam(schedule)
  elif settings.name == 'adamw':
    update = optax.adamw(schedule, weight_decay=settings.weight_decay, mask=decay_mask)
  else:
    update = optax.lars(schedule, settings.weight_decay, decay_mask, trust_ratio_mask=decay_mask)
  return optax.chain(optax.clip_by_global_norm(settings.clip_norm), update) if settings.clip_norm else update
