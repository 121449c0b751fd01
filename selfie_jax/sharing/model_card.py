"""The model card: what an encoder is, how to use it, and what is known of it; nothing that its files do not say."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jinja2
from flax import nnx

from selfie_jax.models.vit import ViT
from selfie_jax.sharing.card_facts import Evaluated, TrainingData
from selfie_jax.sharing.checks import Check
from selfie_jax.sharing.weights import Model

_TEMPLATE = Path(__file__).with_name('model_card.md.jinja')


def model_card(
  model: Model,
  *,
  name: str,
  files: Sequence[str],
  data: Sequence[TrainingData] = (),
  evaluated: Evaluated | None = None,
  checks: Mapping[str, Check | None] | None = None,
  seconds: float | None = None,
) -> str:
  """Returns the model card in Markdown, with the front matter that model hubs read.

  Args:
    model: what it tells of.
    name: its title.
    files: the files beside the card.
    data: what it was trained on, as far as it is known.
    evaluated: its scores, if there are any.
    checks: of each program among `files`; None of one that could not be run here.
    seconds: of every clip that the programs take; None: any.
  """
  run = model.run
  environment = jinja2.Environment(
    undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False
  )
  return environment.from_string(_TEMPLATE.read_text()).render(
    name=name,
    model=model,
    run=run,
    config=run.config,
    is_vit=isinstance(run.encoder, ViT),
    parameters=sum(leaf.size for leaf in jax.tree.leaves(nnx.state(run.encoder, nnx.Param))),
    files=files,
    data=data,
    evaluated=evaluated,
    checks=checks or {},
    seconds=seconds,
    versions={package: importlib.metadata.version(package) for package in ('selfie_jax', 'jax')},
  )
