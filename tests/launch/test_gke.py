import re
import shlex
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

from tests.processes import ROOT, environment, run_python

KUBERNETES = '1.31.0'

TPU = ('--tpu=tpu-v5-lite-podslice', '--topology=16x16')


GIVEN = ('--name=run1', '--image=registry/selfie:1', '--workdir=gs://bucket/run1')
ARGUMENTS = ('--', '--config', 'configs/X.py', '--config.seed=3')


def render(command, *options, arguments=ARGUMENTS, check=True):
  return run_python('launch/gke/jobset.py', command, *GIVEN, *options, *arguments, check=check)


def manifest(command, *options):
  return yaml.safe_load(render(command, *options).stdout)


def job_of(jobset):
  return jobset['spec']['replicatedJobs'][0]['template']['spec']


@pytest.mark.parametrize(
  ('command', 'options'),
  [
    ('train', (*TPU, '--slices=2', '--spot', '--service_account=selfie')),
    ('train', ('--hosts=2', '--gpus=8')),
    ('train', ('--hosts=2', '--cpus=7')),
    ('evaluate', ('--spot',)),
  ],
)
def test_manifests_are_what_kubernetes_and_jobset_take(command, options):
  jobset = manifest(command, *options)
  # The models drop what they do not know: what comes back is what was given, and no more.
  assert JobsetV1alpha2JobSet.from_dict(jobset).to_dict() == jobset
  job = {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': 'worker'}, 'spec': job_of(jobset)}
  kubernetes_validate.validate(job, KUBERNETES, strict=True)


def test_a_job_is_a_slice_and_a_pod_is_a_host():
  jobset = manifest('train', *TPU, '--slices=2', '--spot')
  job = job_of(jobset)
  pod = job['template']['spec']
  assert jobset['spec']['replicatedJobs'][0]['replicas'] == 2
  assert (job['completions'], job['parallelism']) == (64, 64)
  assert pod['containers'][0]['resources'] == {'limits': {'google.com/tpu': 4}}
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v5-lite-podslice',
    'cloud.google.com/gke-tpu-topology': '16x16',
    'cloud.google.com/gke-spot': 'true',
  }
  command = 'bash launch/local.sh 1 --workdir gs://bucket/run1 --config configs/X.py --config.seed=3'
  assert pod['containers'][0]['command'] == shlex.split(command)
  assert not pod['containers'][0]['env']  # GKE says who is who.


@pytest.mark.parametrize(
  ('tpu', 'topology', 'hosts', 'chips'),
  [('tpu-v5-lite-podslice', '2x4', 1, 8), ('tpu-v6e-slice', '4x4', 4, 4), ('tpu-v5p-slice', '8x16x16', 512, 4)],
)
def test_slices_have_the_hosts_of_their_topology(tpu, topology, hosts, chips):
  job = job_of(manifest('train', f'--tpu={tpu}', f'--topology={topology}'))
  resources = job['template']['spec']['containers'][0]['resources']
  assert (job['completions'], resources) == (hosts, {'limits': {'google.com/tpu': chips}})


def test_without_tpus_the_pods_are_told_who_is_who():
  job = job_of(manifest('train', '--hosts=2', '--gpus=8'))
  variables = {variable['name']: variable for variable in job['template']['spec']['containers'][0]['env']}
  # JobSet's names of pods: JOBSET-JOB-INDEX-INDEX, in the JobSet's domain.
  assert variables['JAX_COORDINATOR_ADDRESS']['value'] == 'run1-worker-0-0.run1:8476'
  assert variables['JAX_NUM_PROCESSES']['value'] == '2'
  assert 'job-completion-index' in variables['JAX_PROCESS_ID']['valueFrom']['fieldRef']['fieldPath']


def test_a_mistake_fails_the_run_and_all_else_starts_it_again():
  jobset = manifest('train', *TPU)
  job = job_of(jobset)
  assert job['backoffLimit'] == 0
  disruption, mistake = job['podFailurePolicy']['rules']
  assert disruption == {'action': 'Count', 'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}]}
  assert (mistake['action'], mistake['onExitCodes']['values']) == ('FailJob', [1, 70])
  assert [(rule['action'], rule.get('onJobFailureReasons')) for rule in jobset['spec']['failurePolicy']['rules']] == [
    ('FailJobSet', ['PodFailurePolicy']),
    ('RestartJobSetAndIgnoreMaxRestarts', None),
  ]


def test_a_crashed_evaluation_is_tried_again_and_only_a_mistake_ends_it_at_once():
  jobset = manifest('evaluate')
  job = job_of(jobset)
  assert job['backoffLimit'] == 20
  disruption, preempted, mistake = job['podFailurePolicy']['rules']
  assert disruption == {'action': 'Ignore', 'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}]}
  assert (preempted['action'], preempted['onExitCodes']['values']) == ('Ignore', [75])
  assert (mistake['action'], mistake['onExitCodes']['values']) == ('FailJob', [1])
  # The Job does all of it: when it has failed, so has the JobSet.
  assert jobset['spec']['failurePolicy'] == {'maxRestarts': 0}


def test_the_evaluation_watches_on_one_small_node():
  job = job_of(manifest('evaluate'))
  container = job['template']['spec']['containers'][0]
  assert (job['completions'], container['resources']) == (1, {'requests': {'cpu': 4}})
  assert '-m selfie_jax.evaluate --watch' in container['command'][2]
  assert container['command'][4:] == ['--workdir', 'gs://bucket/run1', '--config', 'configs/X.py', '--config.seed=3']


@pytest.mark.parametrize(
  ('options', 'complaint'),
  [
    (('--tpu=tpu-v5-lite-podslice', '--topology=16'), r"--topology of \S+ is 2 numbers, such as 16x16, got '16'"),
    (('--tpu=tpu-v5p-slice', '--topology=16x16'), "is 3 numbers, such as 4x4x4, got '16x16'"),
    (('--tpu=tpu-v6e-slice', '--topology=3x3'), 'has 9 chips, and hosts of 4 chips'),
    (('--tpu=v5e', '--topology=4x4'), '--tpu is v5e; it can be tpu-v4-podslice'),
    ((*TPU, '--slices=0'), '--slices: must be at least 1, got 0'),
    (('--hosts=0',), '--hosts: must be at least 1, got 0'),
    (('--cpus=0',), '--cpus: must be at least 1, got 0'),
    ((*TPU, '--gpus=3'), 'with --tpu, --topology says how many hosts there are: leave out --gpus 3'),
    ((*TPU, '--hosts=2'), 'with --tpu, --topology .*: leave out --hosts 2'),
    ((*TPU, '--cpus=2'), 'with --tpu, --topology .*: leave out --cpus 2'),
    (('--gpus=8', '--cpus=2'), 'with --gpus, .*: leave out --cpus 2'),
    (('--slices=2',), 'without --tpu, --hosts says how many pods there are: leave out --slices 2'),
    (('--topology=4x4',), 'without --tpu, .*: leave out --topology 4x4'),
    ((*TPU, '--name=Run_1'), "--name must be small letters, .* got 'Run_1'"),
    ((*TPU, '--workdir=runs/1'), '--workdir must be gs://BUCKET/.*, got runs/1'),
  ],
)
def test_a_mistake_is_one_line(options, complaint):
  result = render('train', *options, check=False)
  assert (result.returncode, result.stdout) == (1, '')
  assert re.fullmatch(f'error: .*{complaint}.*\n', result.stderr)


@pytest.mark.parametrize(('command', 'arguments'), [('train', ()), ('evaluate', ('--', '--config.seed=3'))])
def test_a_run_without_a_configuration_is_one_line(command, arguments):
  result = render(command, arguments=arguments, check=False)
  assert (result.returncode, result.stdout, result.stderr.count('\n')) == (1, '', 1)
  assert f'error: {command} needs -- --config ... at its end' in result.stderr


def test_a_pipe_that_is_closed_early_is_no_error():
  command = shlex.join([sys.executable, 'launch/gke/jobset.py', 'train', *GIVEN, *TPU, *ARGUMENTS])
  result = subprocess.run(
    ['bash', '-c', f'{command} | true; echo "${{PIPESTATUS[0]}}"'],
    cwd=ROOT,
    env=environment(),
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert (result.stdout, result.stderr) == ('0\n', '')
