"""A real Slurm cluster of two nodes on this machine, all of it in one temporary folder.

The nodes are called by loopback addresses of their own, so that nothing must be added to /etc/hosts: a node's name is
what training connects to. The cluster has its own munge daemon, too, so that several clusters can be there at once.
"""

import contextlib
import dataclasses
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.processes import ROOT

NODES = ('127.0.0.2', '127.0.0.3')
PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch')

# Jobs are killed 60 seconds after they were asked to end, and a requeued one may start after 6 seconds
# (cred_expire, usually 120). The other figures are those of a cluster that has nothing else to do.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=6
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd_%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd_%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
ReturnToService=2
FirstJobId={first_job}
KillWait=60
MinJobAge=600
OverTimeLimit=0
InactiveLimit=0
{nodes}
PartitionName=all Nodes={names} Default=YES MaxTime=INFINITE OverSubscribe=YES:9 State=UP
"""


def is_installed() -> bool:
  """True where Slurm and munge are installed."""
  return os.geteuid() == 0 and all(shutil.which(program) for program in PROGRAMS)


@dataclasses.dataclass(frozen=True)
class Cluster:
  """A cluster that runs."""

  folder: Path

  def command(self, *words: object, **extra: str) -> str:
    """Runs one of Slurm's commands and returns what it prints."""
    result = subprocess.run(
      list(map(str, words)), cwd=ROOT, env=self.environment(**extra), capture_output=True, text=True, timeout=60
    )
    if result.returncode:
      raise AssertionError(f'{words} ended with {result.returncode}: {result.stdout}{result.stderr}')
    return result.stdout

  def submit(self, *words: object, **variables: str) -> int:
    """Submits a job from the repository's root, with these variables in its environment; returns its number."""
    return int(self.command('sbatch', '--parsable', *words, **variables))

  def environment(self, **extra: str) -> dict[str, str]:
    """The environment in which Slurm's commands speak to this cluster."""
    return os.environ | {'SLURM_CONF': str(self.folder / 'slurm.conf')} | extra

  def job(self, job: int) -> dict[str, str]:
    """What the cluster knows of a job: JobState, Restarts, ExitCode, ..."""
    return dict(re.findall(r'(\S+?)=(\S*)', self.command('scontrol', 'show', 'job', job)))

  def wait(self, job: int, **wanted: str) -> None:
    """Waits until what the cluster knows of the job has these values."""
    self.wait_until(lambda: wanted.items() <= self.job(job).items(), lambda: f'job: {self.job(job)}')

  def wait_for(self, *files: Path) -> None:
    """Waits until these files are there."""
    self.wait_until(lambda: all(file.exists() for file in files))

  def wait_until(self, condition: Callable[[], bool], describe: Callable[[], object] = lambda: '') -> None:
    """Waits until the condition is true, two minutes at most: time limits alone take half a minute."""
    end = time.monotonic() + 120
    while not condition():
      if time.monotonic() > end:
        raise AssertionError(f'waited in vain for two minutes. {describe()}')
      time.sleep(0.2)


@contextlib.contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
  """Starts a cluster whose files are all in `folder`, and stops it."""
  for name in ('state', *(f'spool_{node}' for node in NODES)):
    (folder / name).mkdir()
  ports = _free_ports(1 + len(NODES))
  host = socket.gethostname().partition('.')[0]
  nodes = [
    f'NodeName={node} NodeHostname={host} NodeAddr={node} Port={port} CPUs=2'
    for node, port in zip(NODES, ports[1:], strict=True)
  ]
  text = CONFIGURATION.format(
    folder=folder,
    host=host,
    controller_port=ports[0],
    first_job=1 + secrets.randbelow(1_000_000),  # The port that a job's processes meet at follows from its number.
    nodes='\n'.join(nodes),
    names=','.join(NODES),
  )
  (folder / 'slurm.conf').write_text(text)
  key = folder / 'munge.key'
  key.write_bytes(secrets.token_bytes(128))
  key.chmod(0o400)

  cluster = Cluster(folder)
  try:
    munge = [f'--{name}={folder}/munge.{name.partition("-")[0]}' for name in ('socket', 'pid-file', 'log-file')]
    # It would refuse a socket in a folder that others may not read, or that others may write to: the tests' is safe.
    cluster.command('munged', '--force', f'--key-file={key}', f'--seed-file={folder}/munge.seed', *munge)
    cluster.command('slurmctld')
    for node in NODES:
      cluster.command('slurmd', '-N', node)
    _wait_for_nodes(cluster)
    yield cluster
  finally:
    _end_jobs(cluster)
    _stop([folder / f'{name}.pid' for name in (*(f'slurmd_{node}' for node in NODES), 'slurmctld', 'munge')])


def _wait_for_nodes(cluster: Cluster) -> None:
  end = time.monotonic() + 30
  while cluster.command('sinfo', '--noheader', '--format=%T %D').split() != ['idle', str(len(NODES))]:
    if time.monotonic() > end:
      logs = [path.read_text()[-2_000:] for path in cluster.folder.glob('*.log')]
      raise AssertionError('the nodes are not up after 30 s:\n' + '\n'.join(logs))
    time.sleep(0.1)


def _end_jobs(cluster: Cluster) -> None:
  """Ends what a failed test has left, after KillWait at the latest: the daemons' end would not be the jobs' end."""
  with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
    cluster.command('scancel', '--user=root')
    cluster.wait_until(lambda: not cluster.command('squeue', '--noheader'))


def _stop(pid_files: list[Path]) -> None:
  with contextlib.ExitStack() as last:
    for pid_file in pid_files:
      with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
        last.callback(_wait_for_end, pid)


def _wait_for_end(pid: int) -> None:
  with contextlib.suppress(ProcessLookupError):
    for _ in range(100):
      os.kill(pid, 0)
      time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)


def _free_ports(count: int) -> list[int]:
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
    for one in sockets:
      one.bind(('127.0.0.1', 0))
    return [one.getsockname()[1] for one in sockets]
