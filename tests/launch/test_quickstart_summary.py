import json

import pytest
import quickstart_summary

from selfie_jax.errors import UserError


def _run(folder, untrained, trained):
  scores = {'majority': 0.1, 'log_mel_statistics': 0.2, 'untrained': untrained, 'trained': trained}
  representations = {name: {'score': score} for name, score in scores.items()}
  (folder / 'eval').mkdir(parents=True)
  task = {'readouts': {'linear': {'representations': representations}}, 'caveat': 'It is known why.'}
  tasks = {'drum': task, 'pitch': task}
  (folder / 'eval/results.json').write_text(json.dumps({'evaluation': {'readouts': ['linear']}, 'tasks': tasks}))
  return str(folder)


def test_the_summary_has_the_mean_and_the_spread_over_seeds(tmp_path, capsys):
  quickstart_summary.main([_run(tmp_path / 'a', 0.50, 0.54), _run(tmp_path / 'b', 0.50, 0.58)])
  mean = next(line for line in capsys.readouterr().out.splitlines() if 'mean' in line and '±' in line)
  assert '50.0 ± 0.0' in mean
  assert '56.0 ± 2.8' in mean
  assert '6.0 ± 2.8' in mean


@pytest.mark.parametrize(('trained', 'lines'), [(0.41, 2), (0.46, 0)])
def test_tasks_that_training_has_not_helped_on_average_are_pointed_out(tmp_path, capsys, trained, lines):
  quickstart_summary.main([_run(tmp_path / 'a', 0.50, trained), _run(tmp_path / 'b', 0.50, 0.55)])
  out = capsys.readouterr().out
  assert out.count('the trained encoder is below the untrained one. It is known why.') == lines


def test_a_run_that_was_not_evaluated_is_named(tmp_path):
  with pytest.raises(UserError, match='evaluate the run first'):
    quickstart_summary.main([str(tmp_path)])
