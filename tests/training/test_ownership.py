import signal

from tests.training.test_train import metrics, start_training, wait_for_step


def test_of_two_starts_on_one_workdir_the_later_one_goes_on_alone(config_file, dataset, tmp_path):
  workdir = tmp_path / 'run'
  settings = ('--config.steps=100000', '--config.checkpoint.every_steps=1000000', '--config.optimizer.warmup_steps=2')
  earlier = start_training(config_file, dataset, workdir, *settings)
  wait_for_step(earlier, workdir, 2)
  later = start_training(config_file, dataset, workdir, *settings)
  errors = earlier.communicate(timeout=120)[1]
  assert earlier.returncode == 1
  assert f'(pid {later.pid})' in errors
  assert 'Two runs need two workdirs' in errors
  done = metrics(workdir)[-1]['step']
  wait_for_step(later, workdir, done + 10)
  later.send_signal(signal.SIGTERM)
  errors = later.communicate(timeout=120)[1]
  assert later.returncode == 75, errors
  steps = [line['step'] for line in metrics(workdir)]
  assert steps == list(range(2, steps[-1] + 1, 2))
