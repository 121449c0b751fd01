"""Prints Kubernetes manifests (JobSet) of a training run and of the evaluation that watches it.

  python launch/gke/jobset.py train --name run1 --image IMAGE --workdir gs://BUCKET/run1 \
    --tpu tpu-v5-lite-podslice --topology 16x16 --slices 2 --spot --service_account selfie \
    -- --config configs/audioset_vit.py --config.data.path=gs://BUCKET/audioset | kubectl apply -f -
  python launch/gke/jobset.py evaluate --name run1 --image IMAGE --workdir gs://BUCKET/run1 \
    -- --config configs/eval/nine_tasks.py | kubectl apply -f -

It needs a cluster with JobSet (0.6 or newer) and node pools of the right kind; `xpk cluster create` makes both, and
these manifests run there. (`xpk workload create` writes a JobSet of its own, which knows nothing of our exit codes.)
IMAGE has the repository as its working directory and `.venv` in it (or its VENV says where that is).

How processes find each other: on TPUs, GKE's webhooks set TPU_WORKER_ID, TPU_WORKER_HOSTNAMES and, for several slices,
MEGASCALE_*; selfie_jax reads these. Elsewhere (--hosts without --tpu) this file sets JAX_COORDINATOR_ADDRESS,
JAX_NUM_PROCESSES and JAX_PROCESS_ID from the pods' stable names.

What starts again: within a pod, launch/local.sh restarts training after a crash, as long as it gets on. A pod that was
told to leave (SIGTERM: preemption, maintenance, `kubectl drain`) saves and exits with 75; then, as after the loss of a
node, the JobSet restarts all pods, as often as it takes. Exit codes 1 (a mistake) and 70 (crashes without progress)
fail the JobSet at once. Evaluation is one pod, which is replaced alone: after a crash up to EVALUATION_CRASHES times,
otherwise as often as it takes; 1 is the end here, too. Spot nodes leave a pod 25 seconds at most, whatever its grace
period: a save that takes longer does not count, and the one before does.
"""

import argparse
import math
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import yaml

from selfie_jax.errors import (
  EXIT_CRASHED,
  EXIT_PREEMPTED,
  EXIT_USER_ERROR,
  ArgumentParser,
  UserError,
  run_command,
)

COORDINATOR_PORT = 8476
GRACE_SECONDS = 120
EVALUATION_CRASHES = 20
CPUS = 4  # Of a pod that has no accelerator.
CONTAINER = 'main'
JOB = 'worker'

# Kinds of TPU: how many dimensions a topology has, and the slices that are one host (others have hosts of 4 chips).
# Source: https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
TPUS = {
  'tpu-v4-podslice': (3, {}),
  'tpu-v5p-slice': (3, {}),
  'tpu7x': (3, {}),
  'tpu-v5-lite-podslice': (2, {'1x1': 1, '2x2': 4, '2x4': 8}),
  'tpu-v6e-slice': (2, {'1x1': 1, '2x2': 4, '2x4': 8}),
}
CHIPS_PER_HOST = 4


def hosts_and_chips(tpu: str, topology: str) -> tuple[int, int]:
  """Returns a slice's hosts and the chips of each.

  Raises:
    UserError: no such kind of TPU, or a topology that it cannot have.
  """
  if tpu not in TPUS:
    raise UserError(f'--tpu is {tpu}; it can be {", ".join(TPUS)}')
  dimensions, one_host = TPUS[tpu]
  if topology in one_host:
    return 1, one_host[topology]
  if not re.fullmatch(r'[1-9]\d*' + r'x[1-9]\d*' * (dimensions - 1), topology):
    example = '4x4x4' if dimensions == 3 else '16x16'
    raise UserError(f'--topology of {tpu} is {dimensions} numbers, such as {example}, got {topology!r}')
  chips = math.prod(map(int, topology.split('x')))
  if chips % CHIPS_PER_HOST:
    raise UserError(
      f'--topology {topology} has {chips} chips, and hosts of {CHIPS_PER_HOST} chips ({tpu}) cannot make it up'
    )
  return chips // CHIPS_PER_HOST, CHIPS_PER_HOST


def training(asked: argparse.Namespace) -> dict[str, Any]:
  """Returns the JobSet of a training run: a Job a slice, a pod a host."""
  command = ['bash', 'launch/local.sh', '1', '--workdir', asked.workdir, *asked.arguments]
  variables: list[dict[str, Any]] = []
  if asked.tpu:
    _refuse('with --tpu, --topology says how many hosts there are', hosts=asked.hosts, gpus=asked.gpus, cpus=asked.cpus)
    hosts, chips = hosts_and_chips(asked.tpu, asked.topology)
    selector = {'cloud.google.com/gke-tpu-accelerator': asked.tpu, 'cloud.google.com/gke-tpu-topology': asked.topology}
    resources = {'google.com/tpu': chips}
    slices = 1 if asked.slices is None else asked.slices
  else:
    _refuse('without --tpu, --hosts says how many pods there are', topology=asked.topology, slices=asked.slices)
    hosts, selector, slices = 1 if asked.hosts is None else asked.hosts, {}, 1
    if asked.gpus:
      _refuse('with --gpus, no CPUs are asked for', cpus=asked.cpus)
      resources = {'nvidia.com/gpu': asked.gpus}
    else:
      resources = {'cpu': asked.cpus or CPUS}
    variables = _jax_variables(asked.name, hosts)
  pod = _pod(asked, command, selector, resources, variables)
  # One pod alone is not replaced: the others have to start again with it.
  rules = [_after_disruption('Count'), _after_exit('FailJob', EXIT_USER_ERROR, EXIT_CRASHED)]
  again = [
    {'name': 'mistake', 'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']},
    {'name': 'disruption', 'action': 'RestartJobSetAndIgnoreMaxRestarts'},
  ]
  job = _job(pod, pods=hosts, backoff_limit=0, rules=rules)
  return _jobset(asked.name, job, slices=slices, exclusive=bool(asked.tpu), rules=again)


def _refuse(reason: str, **options: object) -> None:
  """Raises `UserError` if one of these options was given, which would be without effect."""
  for name, value in options.items():
    if value not in (None, ''):
      raise UserError(f'{reason}: leave out --{name} {value}')


def evaluation(asked: argparse.Namespace) -> dict[str, Any]:
  """Returns the JobSet of the evaluation that watches a run: one pod on a small node."""
  python = '"${VENV:-.venv}/bin/python"'
  command = ['bash', '-c', f'exec {python} -m selfie_jax.evaluate --watch "$@"', 'evaluate']
  pod = _pod(asked, [*command, '--workdir', asked.workdir, *asked.arguments], {}, {'cpu': asked.cpus or CPUS}, [])
  rules = [
    _after_disruption('Ignore'),
    _after_exit('Ignore', EXIT_PREEMPTED),
    _after_exit('FailJob', EXIT_USER_ERROR),
  ]
  job = _job(pod, pods=1, backoff_limit=EVALUATION_CRASHES, rules=rules)
  return _jobset(f'{asked.name}-evaluate', job, slices=1, exclusive=False, rules=[])


def _jax_variables(name: str, hosts: int) -> list[dict[str, Any]]:
  # A pod's name is JOBSET-JOB-INDEX_OF_THE_JOB-INDEX_OF_THE_POD, in the domain of the JobSet.
  index = {'fieldRef': {'fieldPath': "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
  return [
    {'name': 'JAX_COORDINATOR_ADDRESS', 'value': f'{name}-{JOB}-0-0.{name}:{COORDINATOR_PORT}'},
    {'name': 'JAX_NUM_PROCESSES', 'value': str(hosts)},
    {'name': 'JAX_PROCESS_ID', 'valueFrom': index},
  ]


def _pod(
  asked: argparse.Namespace,
  command: Sequence[str],
  selector: dict[str, str],
  resources: dict[str, int],
  variables: list[dict[str, Any]],
) -> dict[str, Any]:
  container = {
    'name': CONTAINER,
    'image': asked.image,
    'command': list(command),
    'env': variables,
    'ports': [{'containerPort': COORDINATOR_PORT, 'protocol': 'TCP'}],
    # A limit is a request, too, and accelerators must have it; CPUs are better left without.
    'resources': {'requests' if 'cpu' in resources else 'limits': resources},
  }
  pod: dict[str, Any] = {
    'restartPolicy': 'Never',
    'terminationGracePeriodSeconds': GRACE_SECONDS,
    'containers': [container],
  }
  if asked.spot:
    selector = selector | {'cloud.google.com/gke-spot': 'true'}
    pod['tolerations'] = [
      {'key': 'cloud.google.com/gke-spot', 'operator': 'Equal', 'value': 'true', 'effect': 'NoSchedule'}
    ]
  if selector:
    pod['nodeSelector'] = selector
  if asked.service_account:
    pod['serviceAccountName'] = asked.service_account
  return pod


def _after_disruption(action: str) -> dict[str, Any]:
  return {'action': action, 'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}]}


def _after_exit(action: str, *codes: int) -> dict[str, Any]:
  return {'action': action, 'onExitCodes': {'containerName': CONTAINER, 'operator': 'In', 'values': list(codes)}}


def _job(pod: dict[str, Any], *, pods: int, backoff_limit: int, rules: list[dict[str, Any]]) -> dict[str, Any]:
  return {
    'completionMode': 'Indexed',
    'completions': pods,
    'parallelism': pods,
    'backoffLimit': backoff_limit,
    'podFailurePolicy': {'rules': rules},
    'template': {'spec': pod},
  }


def _jobset(
  name: str, job: dict[str, Any], *, slices: int, exclusive: bool, rules: list[dict[str, Any]]
) -> dict[str, Any]:
  # A Job's name has at most 63 characters, and so has a pod's host name.
  longest = f'{name}-{JOB}-{slices - 1}-{job["completions"] - 1}'
  if not re.fullmatch('[a-z]([-a-z0-9]*[a-z0-9])?', name) or len(longest) > 63:
    raise UserError(f'--name must be small letters, digits and "-", short enough for names of pods, got {name!r}')
  metadata: dict[str, Any] = {'name': name}
  if exclusive:  # Each slice's Job in a node pool of its own.
    metadata['annotations'] = {'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'}
  policy: dict[str, Any] = {'maxRestarts': 0}  # What the rules restart is not counted.
  if rules:
    policy['rules'] = rules
  return {
    'apiVersion': 'jobset.x-k8s.io/v1alpha2',
    'kind': 'JobSet',
    'metadata': metadata,
    'spec': {
      'network': {'enableDNSHostnames': True, 'publishNotReadyAddresses': True},
      'failurePolicy': policy,
      'replicatedJobs': [{'name': JOB, 'replicas': slices, 'template': {'spec': job}}],
    },
  }


def _count(text: str) -> int:
  if not re.fullmatch(r'[1-9]\d*', text):
    raise argparse.ArgumentTypeError(f'must be at least 1, got {text}')
  return int(text)


def main(arguments: Sequence[str]) -> None:
  """Prints the manifest that is asked for."""
  parser = ArgumentParser(prog='python launch/gke/jobset.py', description='Prints a JobSet, for kubectl apply -f -.')
  commands = parser.add_subparsers(dest='command', required=True)
  for name in ('train', 'evaluate'):
    command = commands.add_parser(name, description='What follows "--" is given to selfie_jax.')
    command.add_argument('--name', required=True, help='of the JobSet; evaluate appends "-evaluate"')
    command.add_argument('--image', required=True, help='container image with the repository and its .venv')
    command.add_argument('--workdir', required=True, help='gs://..., which all pods see')
    command.add_argument('--service_account', default='', help='Kubernetes service account that may use the bucket')
    command.add_argument('--spot', action='store_true', help='use spot nodes')
    command.add_argument('--cpus', type=_count, help=f'CPUs a pod asks for, where it has no TPU or GPU ({CPUS})')
    command.add_argument('arguments', nargs='*', help='-- --config ... [--config.key=value ...]')
  train = commands.choices['train']
  train.add_argument('--tpu', default='', help=f'kind of TPU: {", ".join(TPUS)}')
  train.add_argument('--topology', default='', help='of a slice, such as 16x16 or 4x4x8')
  train.add_argument('--slices', type=_count, help='with --tpu: how many (1)')
  train.add_argument('--hosts', type=_count, help='without --tpu: how many pods (1)')
  train.add_argument('--gpus', type=_count, help='without --tpu: GPUs a pod')
  asked = parser.parse_args(arguments)
  if not asked.workdir.startswith('gs://'):
    raise UserError(f'--workdir must be gs://BUCKET/..., which all pods see, got {asked.workdir}')
  if not any(argument.partition('=')[0] == '--config' for argument in asked.arguments):
    raise UserError(f'{asked.command} needs -- --config ... at its end, got {" ".join(asked.arguments) or "nothing"}')
  manifest = training(asked) if asked.command == 'train' else evaluation(asked)
  try:
    yaml.safe_dump(manifest, sys.stdout, sort_keys=False)
    sys.stdout.flush()
  except BrokenPipeError:  # Piped into `head`: whoever wants no more has no use for a complaint, nor at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == '__main__':
  run_command(main)
