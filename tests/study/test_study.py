import copy
import csv
import os

import jax.numpy as jnp
import numpy as np
import pytest

from selfie_jax.config import Config
from selfie_jax.errors import UserError
from tests.study import readout, records, report
from tests.study.cells import CELLS, SEEDS
from tests.study.commands import CommandFailedError, Commands, StoppedError
from tests.study.run import Job, Places, choose, stale, to_do
from tests.study.tuning import GROUPS, write_tuning_tasks

TEST = {'voice': 60.0, 'mandarin_initial': 50.0, 'instrument': 55.0, 'drum': 65.0, 'sound_event': 70.0, 'pitch': 80.0}
RECORD = {
  'cell': 'default',
  'values': {'learning rate': '1e-3', 'samples seen': '102,400, the recipe'},
  'seed': 0,
  'settings': {},
  'samples': 102_400,
  'cpu_seconds': 3_600.0,
  'mean_of_five': {'tuning': 62.0, 'test': 60.0},
  'scores': {'tuning': TEST, 'test': TEST},
  'health': [{'step': 100, 'effective_rank': 40.0, 'embedding_std': 0.8, 'mean_correlation': 0.1}],
  'baselines': {'untrained': {'tuning': TEST, 'test': TEST}},
}


def _factor_table(found, factor):
  return report.factor_table(factor, records.comparisons_of(found)[factor])


def _second_run():
  record = copy.deepcopy(RECORD) | {'seed': 1, 'mean_of_five': {'tuning': 64.0, 'test': 61.0}}
  record['scores']['test']['pitch'] = 84.0
  return record


def test_a_report_is_drawn_again_from_the_records_alone_to_the_byte(tmp_path):
  fast = RECORD | {'cell': 'fast', 'values': {'learning rate': '3e-3'}}
  again = _second_run() | {'cell': 'fast', 'values': {'learning rate': '3e-3'}}
  found = {'default.0': RECORD, 'default.1': _second_run(), 'fast.0': fast, 'fast.1': again}
  for name, record in found.items():
    records.write(record, tmp_path / f'results/{name}.json')
  drawn = []
  for _ in range(2):
    report.main(['--results', str(tmp_path / 'results')])
    drawn.append({path.name: path.read_bytes() for path in tmp_path.rglob('*') if path.suffix in ('.md', '.svg')})
  assert drawn[0] == drawn[1]
  pictures = {f'{name}.svg' for name in ('score_and_samples', 'score_and_cpu_time', 'health_of_the_default', 'factors')}
  assert set(drawn[0]) == {'STUDY.md', *pictures}
  page = drawn[0]['STUDY.md'].decode()
  assert '| 1e-3 | 63.0 ± 1.0 | reference | 60.5 ± 0.5 | reference | 82.0 ± 2.0 | 2 | 1.00 |' in page
  assert '| the same encoder, untrained | 60.0 ± 0.0 |' in page
  assert '| default recipe, 102,400 clips, 1.00 CPU-hours | 60.0 ± 0.0 |' in page


def test_settings_are_compared_by_the_seeds_that_all_of_them_have():
  cells = (('a', '1e-3'), ('b', '3e-3'))
  slow, fast = (RECORD | {'cell': cell, 'values': {'learning rate': value}} for cell, value in cells)
  del fast['baselines']
  second = _second_run() | {'cell': 'a', 'values': slow['values']}
  table = _factor_table([slow, second, fast], 'learning rate')
  assert '| 1e-3 | 62.0 | 60.0 | 80.0 | 1 | 1.00 |' in table  # Not 63.0, to which the second seed adds.
  assert '| 3e-3 | 62.0 | 60.0 | 80.0 | 1 | 1.00 |' in table
  assert report.seeds_table([slow, second, fast]).split('\n')[2:] == [
    '| `a` | 0 | 60.0 | 60.0 | 60.0 | 60.0 | 80.0 | 80.0 |',
    '| `a` | 1 | 60.0 | 60.0 | 60.0 | 60.0 | 84.0 | 84.0 |',
  ]


def test_a_setting_is_compared_with_the_reference_seed_by_seed():
  fast = {'cell': 'fast', 'values': {'learning rate': '3e-3'}}
  better = [RECORD | fast | {'mean_of_five': {'tuning': 61.0, 'test': 62.0}}]
  better.append(_second_run() | fast | {'mean_of_five': {'tuning': 63.0, 'test': 65.0}})
  once = RECORD | {'cell': 'slow', 'values': {'learning rate': '1e-4'}, 'mean_of_five': {'tuning': 60.5, 'test': 61.5}}
  rows = _factor_table([RECORD, _second_run(), *better, once], 'learning rate').split('\n')
  assert rows[0].startswith('| learning rate | mean of five, tuning | difference | test | difference | pitch, test |')
  assert rows[2].startswith('| 1e-4 | 60.5 | -1.5 | 61.5 | +1.5 |')  # Beside the reference's first seed alone.
  assert rows[3].startswith('| 1e-3 | 63.0 ± 1.0 | reference | 60.5 ± 0.5 | reference |')
  assert rows[4].startswith('| 3e-3 | 62.0 ± 1.0 | -1.0 ± 0.0 | 63.5 ± 1.5 | +3.0 ± 1.0 |')


def test_the_peer_is_compared_with_runs_that_differ_in_nothing_but_the_objective():
  peer = {'cell': 'byol_a', 'settings': {'objective.preset': 'byol_a'}, 'cpu_seconds': 7_200.0}
  worse = RECORD | peer | {'mean_of_five': {'tuning': 63.0, 'test': 58.0}}
  fast = RECORD | {'cell': 'fast', 'settings': {'rate': 3e-3}, 'mean_of_five': {'tuning': 64.0, 'test': 61.0}}
  fast_peer = worse | {'cell': 'fast_byol_a', 'settings': worse['settings'] | {'rate': 3e-3}}
  without_a_pair = [_second_run(), RECORD | {'cell': 'other', 'settings': {'rate': 1e-2}}]
  rows = report.peer_table([RECORD, worse, fast, fast_peer, *without_a_pair]).split('\n')[2:]
  assert rows == [
    '| `default` and `byol_a` | 102,400 | 1 | -1.0 | +2.0 | +0.0 | 0.50 |',
    '| `fast` and `fast_byol_a` | 102,400 | 1 | +1.0 | +3.0 | +0.0 | 0.50 |',
    '| all; ahead in 1 on tuning, 2 on test |  | 2 | +0.0 ± 1.0 | +2.5 ± 0.5 | +0.0 ± 0.0 | 0.50 |',
  ]
  assert report.peer_table([RECORD, fast]) == ''


def test_what_ten_times_the_clips_are_worth_is_a_line_through_the_common_seeds():
  found = [
    RECORD
    | {
      'values': {'samples seen': f'{n:,}, wide'},
      'samples': n,
      'mean_of_five': {'tuning': score, 'test': 40.0 + score / 3},
    }
    for n, score in ((1_000, 51.0), (10_000, 54.0), (100_000, 57.0))
  ]
  found.append(found[0] | {'seed': 1, 'mean_of_five': {'tuning': 70.0, 'test': 70.0}})
  row = '| wide | 1,000 to 100,000, 3 lengths | 1 | 3.0 ± 0.0 | 60.0 | 1.0 ± 0.0 | 60.0 |'
  assert report.growth_table(found).split('\n')[2:] == [row]
  assert row in report.page_of(found)
  no_common_seed = [found[0] | {'seed': 2}, *found[1:3]]
  assert report.growth_table(no_common_seed) == report.growth_table(found[:2]) == ''


def test_a_run_that_failed_is_told_of_and_counts_in_no_mean():
  failed = {'cell': 'default', 'values': {'learning rate': '1e-3'}, 'seed': 2, 'failed': 'step 7 is not finite'}
  fast = RECORD | {'cell': 'fast', 'values': {'learning rate': '3e-3'}}
  assert 'difference' not in _factor_table([failed, fast], 'learning rate')  # To a reference without a run.
  table = _factor_table([RECORD, failed, fast], 'learning rate')
  assert '| 1e-3 | 62.0 | reference | 60.0 | reference | 80.0 | 1, 1 failed | 1.00 |' in table
  assert '- default, seed 2: step 7 is not finite' in report.page_of([RECORD, failed])


def test_values_of_a_factor_are_in_the_order_of_their_numbers():
  found = [RECORD | {'values': {'batch size': value}} for value in ('1,024, slow', 'none', '64', '128')]
  rows = _factor_table(found, 'batch size').split('\n')[2:]
  assert [row.split(' | ')[0] for row in rows] == ['| 64', '| 128', '| 1,024, slow', '| none']


def test_the_readme_keeps_all_but_what_is_between_its_marks():
  assert report.replaced('a\n<!-- study -->\nold\n<!-- /study -->\nb', 'new') == (
    'a\n<!-- study -->\nnew\n<!-- /study -->\nb'
  )
  with pytest.raises(UserError, match='put the lines'):
    report.replaced('a', 'new')


def test_every_cell_has_a_config_and_a_name_of_its_own():
  assert len({cell.name for cell in CELLS}) == len(CELLS)
  assert all(isinstance(Job(cell, 0).config(), Config) for cell in CELLS)
  with pytest.raises(UserError, match='there is no cell "other"'):
    choose(CELLS, ['other'])


def test_runs_with_a_record_are_done_and_the_first_seeds_come_first(tmp_path):
  places = Places(tmp_path, tmp_path, tmp_path, tmp_path)
  short, default = choose(CELLS, ['default', 'short_byol_a'])
  job = Job(default, 0)
  record = {'settings': records.settings_of(job.config()), 'values': {'learning rate': 'as it was'}}
  records.write(record, places.record(job))
  to_run = ['short_byol_a.0', 'short_byol_a.1', 'default.1', 'short_byol_a.2', 'default.2']
  assert [job.name for job in to_do([short, default], SEEDS, places)] == to_run
  assert records.read_all(tmp_path)[0]['values'] == dict(default.values)  # Its place in the tables follows the cell.


def test_a_record_of_other_settings_says_what_would_bring_them_back():
  job = Job(CELLS[0], 0)
  settings = records.settings_of(job.config())
  assert stale(job, {'settings': settings}) == ''
  assert 'steps: 7;' in stale(job, {'settings': settings | {'steps': 7}})


def test_tuning_sees_no_test_clip_and_keeps_groups_in_one_fold(tmp_path):
  for task, column in GROUPS.items():
    (tmp_path / 'data' / task).mkdir(parents=True)
    rows = [f'{split}{i}.wav,{"ab"[i % 2]},{split},{i // 4}' for split in ('train', 'valid', 'test') for i in range(40)]
    text = f'file_name,label,split,{column}\n' + '\n'.join(rows) + '\n'
    (tmp_path / 'data' / task / 'metadata.csv').write_text(text)
  write_tuning_tasks(tmp_path / 'data', tmp_path / 'tuning')
  with (tmp_path / 'tuning/tuning_drum/metadata.csv').open(newline='') as file:
    rows = list(csv.DictReader(file))
  names = [os.path.basename(row['file_name']) for row in rows]
  assert sorted(names) == sorted(f'{split}{i}.wav' for split in ('train', 'valid') for i in range(40))
  folds = {(int(''.join(filter(str.isdigit, name))) // 4, row['fold']) for name, row in zip(names, rows, strict=True)}
  assert len(folds) == 10  # Ten kits, each in one fold.
  assert {row['fold'] for row in rows} == set('01234')
  assert os.path.normpath(tmp_path / 'tuning/tuning_drum' / rows[0]['file_name']).startswith(
    str(tmp_path / 'data/drum')
  )


def test_a_readout_pools_a_clips_own_frames_alone():
  frames = np.stack([np.array([[1.0, 2.0], [3.0, 2.0], [50.0, -50.0]])] * 2)
  found = readout.statistics(jnp.asarray(frames), jnp.asarray([2, 3]))
  np.testing.assert_allclose(found[0], [2, 2, 3, 2, 1, 0])  # Mean, maximum and standard deviation of two frames.
  np.testing.assert_allclose(found[1], np.concatenate([f(frames[1], axis=0) for f in (np.mean, np.max, np.std)]), 1e-5)
  layers = {('conv1', name): np.full((1, 2), value) for name, value in (('mean', 1.0), ('max', 2.0), ('std', 4.0))}
  np.testing.assert_array_equal(readout.read_out(layers, ['conv1'], readout.MAX_PLUS_MEAN), [[3, 3]])
  np.testing.assert_array_equal(readout.read_out(layers, ['conv1'], 'mean, std'), [[1, 1, 4, 4]])


def test_a_command_that_fails_says_why_and_one_that_ended_well_is_not_run_again(tmp_path):
  (tmp_path / 'fails.py').write_text('raise SystemExit("no such thing\\n")')
  commands, environment = Commands(), {'PYTHONPATH': str(tmp_path)}
  with pytest.raises(CommandFailedError, match='fails ended with 1: no such thing'):
    commands.run(['fails'], tmp_path / 'fails.log', environment)
  (tmp_path / 'again.py').write_text(f'open({str(tmp_path / "runs")!r}, "a").write("x")')
  seconds = [commands.run(['again'], tmp_path / 'again.log', environment) for _ in range(2)]
  assert seconds[0] == seconds[1] > 0
  assert (tmp_path / 'runs').read_text() == 'x'
  commands.stop()
  with pytest.raises(StoppedError):
    commands.run(['fails'], tmp_path / 'fails.log', environment)


def test_health_over_time_ends_with_the_last_step():
  lines = [{'step': step, 'loss': 1 / 3, 'rankme': 2.0} for step in range(1, 101)] + [{'step': 200, 'loss': 1.0}]
  health = records.health_of(lines, most=5)
  assert [line['step'] for line in health] == [1, 26, 51, 75, 100]
  assert health[0] == {'step': 1, 'loss': 0.3333, 'rankme': 2.0}
