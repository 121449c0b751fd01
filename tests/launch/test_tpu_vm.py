import os
import re
import shlex
import subprocess

import pytest

from tests.processes import ROOT

PLACE = ('--name', 'run1', '--zone', 'us-west4-a')
TYPE = ('--type', 'v5litepod-256')
TRAINING = ('--', '--config', 'configs/X.py', '--workdir', 'gs://bucket/run1')

# Stands for gcloud: says what `list` and the workers are to say, writes down what it was asked, and fails when asked
# for what a line of `failures` names, once for each such line. The last state and the last answer stay.
GCLOUD = """#!/usr/bin/env bash
shift 3
echo "$*" >>"$NOTES/calls"
next() { head -n 1 "$1"; if (($(wc -l <"$1") > 1)); then sed -i 1d "$1"; fi; }
if grep -qx "$1" "$NOTES/failures"; then
  sed -i "0,/^$1$/{/^$1$/d}" "$NOTES/failures"
  exit 1
fi
case $1 in
  list) state=$(next "$NOTES/states"); if [[ $state == UNKNOWN ]]; then exit 1; fi; echo "${state#ABSENT}" ;;
  ssh) if [[ $* == *train_code* ]]; then next "$NOTES/answers" | tr ' ' '\n'; fi ;;
esac
"""


def tpu_vm(*arguments, **variables):
  command = ['bash', ROOT / 'launch/tpu_vm.sh', *arguments]
  return subprocess.run(list(map(str, command)), env=os.environ | variables, capture_output=True, text=True, timeout=60)


def dry_run(*arguments):
  result = tpu_vm(*arguments[:1], '--dry_run', *arguments[1:], PATH='/usr/bin:/bin')
  assert (result.returncode, result.stderr) == (0, '')
  return result.stdout.splitlines()


@pytest.fixture
def cloud(tmp_path):
  """Runs the script against a cloud that goes through `states` (ABSENT, UNKNOWN: no connection, or its own), with
  workers that answer `answers`, one after the other."""

  def run(command, *arguments, states, answers=('',), failures=()):
    for name, lines in (('states', states), ('answers', answers), ('failures', failures)):
      (tmp_path / name).write_text(''.join(f'{line}\n' for line in lines))
    program = tmp_path / 'bin/gcloud'
    program.parent.mkdir()
    program.write_text(GCLOUD)
    program.chmod(0o755)
    variables = {'PATH': f'{program.parent}:{os.environ["PATH"]}', 'NOTES': str(tmp_path), 'TMPDIR': str(tmp_path)}
    result = tpu_vm(command, *PLACE, '--poll_seconds', '0', *arguments, **variables)
    return result, [call.split()[0] for call in (tmp_path / 'calls').read_text().splitlines()]

  return run


GOLDEN = {
  'create': (
    'gcloud compute tpus queued-resources create run1 --accelerator-type=v5litepod-256 '
    '--runtime-version=v2-alpha-tpuv5-lite --node-id=run1 --async --zone=us-west4-a'
  ),
  'wait': (
    """gcloud compute tpus queued-resources list '--filter=name~"(^|/)run1$"' '--format=value(state.state)' """
    '--zone=us-west4-a'
  ),
  'logs': (
    'gcloud compute tpus queued-resources ssh run1 --worker=0 --node=0 '
    "'--command=tail -n 100 -F selfie_jax/train.log' --zone=us-west4-a"
  ),
  'status': (
    'gcloud compute tpus queued-resources ssh run1 --worker=all --node=all --batch-size=all '
    "'--command=echo train_code=$(cat selfie_jax/train.code 2>/dev/null || echo running)' --zone=us-west4-a"
  ),
  'stop': (
    'gcloud compute tpus queued-resources ssh run1 --worker=all --node=all --batch-size=all '
    "'--command=cd selfie_jax && pkill -TERM --parent $(cat train.pid) --full launch/local.sh' --zone=us-west4-a"
  ),
  'delete': 'gcloud compute tpus queued-resources delete run1 --force --quiet --zone=us-west4-a',
}


@pytest.mark.parametrize('command', GOLDEN)
def test_a_dry_run_prints_the_command(command):
  assert dry_run(command, *PLACE, *TYPE) == [GOLDEN[command]]


def test_slices_and_spot_and_project_are_asked_for():
  [line] = dry_run('create', *PLACE, *TYPE, '--spot', '--node_count', '4', '--project', 'p')
  assert line.endswith('--node-count=4 --node-prefix=run1 --spot --async --zone=us-west4-a --project=p')


def test_up_says_what_it_does_now_and_after_a_preemption():
  up = dry_run('up', *PLACE, *TYPE, *TRAINING)
  resume = dry_run('resume', *PLACE, *TYPE, *TRAINING)
  start = ['create', 'list', 'git', 'scp', 'ssh', 'ssh']
  assert [shlex.split(line)[4] if line.startswith('gcloud') else line.split()[0] for line in up] == [
    *('list', *start, 'list', 'ssh', '#', 'delete', *start)
  ]
  assert resume == [GOLDEN['delete'], *up[1:7]] == up[10:]


def test_training_outlives_the_connection_runs_once_and_leaves_its_exit_code(tmp_path):
  arguments = (*TRAINING, "--config.name='a b'", '--config.other=$HOME')
  [line] = dry_run('run', *PLACE, *arguments)
  [command] = [word.removeprefix('--command=') for word in shlex.split(line) if word.startswith('--command=')]
  script = tmp_path / 'selfie_jax/launch/local.sh'
  script.parent.mkdir(parents=True)
  script.write_text('printf "%s|" "$@"; sleep 0.5; exit 75')
  first = subprocess.run(['sh', '-c', command], cwd=tmp_path, capture_output=True, text=True, timeout=20)
  assert first.stdout == ''
  code = script.parents[1] / 'train.code'
  for _ in range(100):
    if (script.parents[1] / 'train.pid').exists():
      break
    subprocess.run(['sleep', '0.05'], check=True)
  second = subprocess.run(['sh', '-c', command], cwd=tmp_path, capture_output=True, text=True, timeout=20)
  assert second.stdout == 'it runs already\n'
  for _ in range(100):
    if code.exists() and code.read_text():
      break
    subprocess.run(['sleep', '0.05'], check=True)
  assert code.read_text() == '75\n'
  assert (script.parents[1] / 'train.log').read_text() == '1|' + ''.join(f'{word}|' for word in arguments[1:])


@pytest.mark.parametrize(
  ('answer', 'code', 'word'),
  [
    ('train_code=0 train_code=0', 0, 'ended with 0'),
    ('train_code=0 train_code=running', 0, 'running'),
    ('train_code=75 train_code=1 train_code=70', 1, 'ended with 1'),
    ('ssh: connection lost', 3, ''),
  ],
)
def test_the_workers_exit_codes_are_found_out(cloud, answer, code, word):
  result, _ = cloud('status', states=['ACTIVE'], answers=[answer])
  assert (result.returncode, result.stdout.strip()) == (code, word)


def test_waiting_ends_when_the_slices_are_there_or_gone(cloud):
  result, calls = cloud('wait', states=['WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE'])
  assert (result.returncode, calls) == (0, ['list'] * 3)


START = ['scp', 'ssh', 'ssh']


def test_up_brings_a_preempted_run_to_its_end(cloud):
  states = ['ABSENT', 'PROVISIONING', 'ACTIVE', 'ACTIVE', 'SUSPENDED', 'ABSENT', 'ACTIVE', 'ACTIVE']
  answers = ['train_code=running', 'train_code=0']
  result, calls = cloud('up', *TYPE, *TRAINING, states=states, answers=answers)
  assert result.returncode == 0, result.stderr
  first = ['list', 'create', 'list', 'list', *START, 'list', 'ssh']
  assert calls == [*first, 'list', 'delete', 'list', 'create', 'list', *START, 'list', 'ssh']
  assert 'training ended with 0' in result.stderr


def test_up_asks_for_slices_until_there_are_some_again(cloud):
  # Preempted, and then out of stock twice; in between, nobody answers.
  states = ['ACTIVE', 'SUSPENDED', 'ABSENT', 'UNKNOWN', 'ABSENT', 'ABSENT', 'ACTIVE', 'ACTIVE']
  result, calls = cloud('up', *TYPE, *TRAINING, states=states, answers=['train_code=0'], failures=['create', 'create'])
  assert result.returncode == 0, result.stderr
  again = ['list', 'create', 'list', 'list', 'create', 'list', 'create', 'list', *START]
  assert calls == ['list', *START, 'list', 'delete', *again, 'list', 'ssh']


@pytest.mark.parametrize(('states', 'failures'), [(['ABSENT'], ['create']), (['UNKNOWN'], [])])
def test_what_fails_at_the_very_first_is_a_mistake(cloud, states, failures):
  result, calls = cloud('up', *TYPE, *TRAINING, states=states, failures=failures)
  assert (result.returncode, calls) == (1, ['list', *failures])


def test_nothing_is_run_on_workers_that_were_not_reached(cloud):
  result, calls = cloud('up', *TYPE, *TRAINING, states=['ACTIVE'], answers=['train_code=0'], failures=['scp', 'ssh'])
  assert result.returncode == 0, result.stderr
  assert calls == ['list', 'scp', 'list', 'scp', 'ssh', 'list', *START, 'list', 'ssh']


def test_a_preemption_that_training_heard_of_first_is_not_a_stop(cloud):
  states = ['ACTIVE', 'ACTIVE', 'SUSPENDING', 'ABSENT', 'ACTIVE', 'ACTIVE', 'ACTIVE']
  result, calls = cloud('up', *TYPE, *TRAINING, states=states, answers=['train_code=75'])
  assert result.returncode == 75, result.stderr
  first = ['list', *START, 'list', 'ssh']
  assert calls == [*first, 'list', 'delete', 'list', 'create', *first, 'list', 'ssh']


@pytest.mark.parametrize(
  ('arguments', 'complaint'),
  [
    ((), 'which command?'),
    (('fly',), 'which command? .* not "fly"'),
    (('create', '--zone', 'z', *TYPE), '--name must be small letters, digits and "-", got ""'),
    (('create', '--name', 'Run_1', '--zone', 'z', *TYPE), 'got "Run_1"'),
    (('create', '--name', 'run1', *TYPE), 'which zone?'),
    (('create', *PLACE), 'which TPU?'),
    (('create', *PLACE, '--type', 'v9-8'), 'which runtime version has --type v9-8?'),
    (('create', *PLACE, *TYPE, '--node_count', '0'), '--node_count must be at least 1, got "0"'),
    (('create', *PLACE, '--type'), '--type wants a value'),
    (('create', *PLACE, '--tpye', 'x'), "unknown option --tpye: training's arguments come after --"),
    (('run', *PLACE, '--', '--config', 'c', '--workdir', 'runs/1'), 'training needs --workdir gs://'),
    (('delete', *PLACE, *TRAINING), 'delete takes no training arguments'),
  ],
)
def test_a_mistake_is_one_line(arguments, complaint):
  result = tpu_vm(*arguments, DRY_RUN='1')
  assert (result.returncode, result.stdout) == (1, '')
  assert re.fullmatch(f'error: .*{complaint.replace("?", "[?]")}.*\n', result.stderr)
