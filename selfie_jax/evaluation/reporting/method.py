"""What the report says of how its figures were measured."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from selfie_jax.evaluation.reporting.results import headline, readout_title

_EMBEDDINGS = {
  'corrected': 'A clip, cut at its task’s unit length, is encoded at once; one that is shorter than a training crop is '
  'zero-padded to it, and the padding is hidden from the encoder. The log-mel spectrogram is z-scored with the mean '
  'and standard deviation of the pre-training data. The frames are pooled as in pre-training.',
  'evar': 'As in EVAR, the evaluation package of the published tables: every clip is zero-padded or cut to its task’s '
  'unit length (test clips, and all clips of a task with folds, at their head; others at a random place) and encoded '
  'at once. The log-mel spectrogram is z-scored with the mean and standard deviation of at most 5,000 train clips of '
  'the task, those of fold 1 for all folds. The frames are pooled as in pre-training.',
}
_LINEAR = {
  'corrected': 'Features are standardised by the train clips, and one linear layer is trained by Adam on the mean '
  'cross-entropy (the binary one of each class, where a clip may have several labels). The epoch and the learning rate '
  'with the best validation score are kept.',
  'evar': 'Features are standardised, and one linear layer is trained by Adam. As in EVAR, the cross-entropy is '
  'divided by the number of classes, where there are folds the scaler has also seen the validation clips, and the '
  'learning rate is the one published for the task. The epoch with the best validation score is kept.',
}
_READOUTS = {
  'logistic_regression': 'Features are standardised by the train clips; scikit-learn fits a logistic regression, whose '
  'penalty is chosen by the log loss of the validation set.',
  'knn': 'The train clips of the greatest cosine similarity s vote for their labels, each with the weight '
  'exp(s / 0.07), as in Wu et al. (2018); how many is chosen on the validation set.',
  'fine_tuning': 'The whole encoder is trained with a linear layer on top; the learning rate and the epoch with the '
  'best validation score are kept. Of the untrained encoder this is the task learned from scratch.',
}


@dataclasses.dataclass(frozen=True)
class Part:
  """A heading and its paragraphs."""

  title: str
  texts: tuple[str, ...]


def describe(results: Mapping[str, Any], *, any_published: bool) -> list[Part]:
  """Returns the page's last section."""
  protocol, evaluation = results['protocol'], results['evaluation']
  parts = [Part(f'Protocol: {protocol}', (_EMBEDDINGS[protocol],))]
  for readout in results['mean']:
    parts.append(Part(readout_title(readout).capitalize(), (_readout_text(readout, results),)))
  scores = (
    'A score is the test accuracy, averaged over folds and then over probe seeds. Of a task whose clips may have '
    'several labels it is the mean average precision: the mean over classes of the area under precision and recall.',
    'Intervals are 95 % confidence intervals over the choice of test clips: Wilson’s of an accuracy, the bootstrap’s '
    'of a mean average precision. They say nothing of another training run: seeds of pre-training differ, too. Trained '
    'minus untrained is compared clip by clip, which is far sharper than two intervals beside each other. The mean has '
    'no interval, since tasks may share clips.',
    f'The headline readout is {readout_title(headline(results))}. Test clips are used for nothing but the scores.',
  )
  parts.append(Part('Scores and intervals', scores))
  if evaluation['baselines']:
    text = (
      'The majority class is the most frequent train label. Log-mel statistics are the mean and standard deviation of '
      'each mel band over time. The untrained encoder is the same one with its initial weights. All are read in the '
      'same way as the trained encoder.'
    )
    parts.append(Part('What it is compared with', (text,)))
  if results['health']:
    text = (
      'RankMe (Garrido et al., 2023) is exp(−Σ p log p) with p the singular values of the uncentred clips × dimensions '
      'matrix over their sum. Alignment is the mean of |x − y|² over pairs of views, uniformity is '
      'log mean exp(−2 |x − y|²) over pairs of clips, both of unit-norm embeddings (Wang and Isola, 2020, equations 1 '
      'and 2).'
    )
    parts.append(Part('Health', (text,)))
  if not any_published:
    text = (
      'None of these tasks has the name of one of the nine with published scores '
      '(esc50, us8k, spcv2, vc1, voxforge, cremad, gtzan, nsynth, surge), so that none are shown.'
    )
    parts.append(Part('Published numbers', (text,)))
  return parts


def _readout_text(readout: str, results: Mapping[str, Any]) -> str:
  if readout in _READOUTS:
    return _READOUTS[readout]
  evaluation = results['evaluation']
  seeds = ', '.join(map(str, evaluation['seeds']))
  settings = (
    f'Seeds {seeds}; batches of {evaluation["batch_size"]}; at most {evaluation["epochs"]} epochs, patience '
    f'{evaluation["patience"]}.'
  )
  if results['protocol'] == 'corrected':
    rates, decays = (', '.join(f'{x:g}' for x in evaluation[key]) for key in ('learning_rates', 'weight_decays'))
    settings += f' Learning rates to choose from: {rates}, each with a weight decay of {decays}.'
  if readout.endswith('_shots'):
    shots = readout.split('_')[1]
    drawn = f'{shots} train clips a class (all of them where a class has fewer), drawn afresh for each seed'
    return f'The linear readout from {drawn}. {settings}'
  return f'{_LINEAR[results["protocol"]]} {settings}'
