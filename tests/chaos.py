"""Kills a training run again and again, at random moments and in random ways, and compares its end with that of a run
that nobody disturbed: parameters, optimizer, batch statistics and metrics, bitwise.

  python -m tests.chaos --kills 50 --processes 1 2

A blow is SIGTERM, SIGKILL, or SIGSTOP and some time later SIGCONT, to one process or to all of them, while they start
or after some steps. Between two lives of the run, now and then, a file of its newest checkpoint gets a flipped byte or
is cut off. Held against the run, besides its end:

- told to stop (SIGTERM), every process exits with 75 and no step is lost;
- killed, it loses no more than a save's interval and what was done while a save was being written;
- if one process dies, the others end by themselves within a minute.
"""

import argparse
import collections
import dataclasses
import json
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from tests.processes import ROOT, environment, run_python
from tests.training.conftest import write_sounds

SAVE_EVERY = 10
STEPS_A_LIFE = 25  # At most: a blow after steps comes within so many of the life's first.
END_SECONDS = 60.0  # In which all processes have to end once one has.
DEVICES = 2  # In all, so that one process and two take the same steps.

CONFIG = """
import ml_collections


def get_config():
  return ml_collections.ConfigDict(
    {{
      'steps': {steps},
      'batch_size': 16,
      'augment': {{'mixup_group': 4}},
      'encoder': {{'conv_channels': 8, 'width': 32, 'concat_conv': True}},
      'projector': {{'hidden_width': 32, 'output_width': 24}},
      'optimizer': {{'name': 'adamw', 'learning_rate': 1e-3, 'weight_decay': 0.01, 'warmup_steps': 2}},
      'checkpoint': {{'every_steps': {save_every}}},
      'cluster': {{'heartbeat_seconds': 20, 'join_minutes': 0.5, 'barrier_minutes': 1.0}},
      'log': {{'every_steps': 1, 'health_every_steps': 7, 'tensorboard': False}},
    }}
  )
"""


class Violation(Exception):
  """Something that must not happen has happened."""


@dataclasses.dataclass(frozen=True)
class Blow:
  """What is done to a life of the run, and when."""

  kind: str  # SIGTERM, SIGKILL, or SIGSTOP and later SIGCONT.
  to_all: bool  # Or to one of the processes.
  seconds: float  # After the start, or after the last blow.
  steps: int  # Or, if it is above 0, once so many have been taken.
  pause: float  # Between SIGSTOP and SIGCONT.
  damage: str  # Done to the newest checkpoint before the next life: 'flip', 'cut' or ''.


def draw_schedule(kills: int, seed: int) -> list[Blow]:
  """Returns as many blows, with all kinds of signals, and of damage, among them."""
  rng = random.Random(seed)
  kinds = [('SIGTERM', 'SIGKILL', 'SIGTERM', 'SIGKILL', 'SIGSTOP')[i % 5] for i in range(kills)]
  # After a SIGSTOP the same life goes on.
  damages = iter(('', 'flip', '', 'cut')[i % 4] for i in range(kills))
  rng.shuffle(kinds)
  return [
    Blow(
      kind,
      to_all=rng.random() < 0.5,
      seconds=rng.uniform(0.0, 8.0),
      steps=rng.randint(1, STEPS_A_LIFE) if rng.random() < 0.6 else 0,
      pause=rng.uniform(0.2, 3.0),
      damage='' if kind == 'SIGSTOP' else next(damages),
    )
    for kind in kinds
  ]


@dataclasses.dataclass
class Tally:
  """What was done to a run, and what it cost."""

  blows: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  damages: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  lives: int = 0
  lost_after_term: int = 0  # Most steps that were taken again.
  lost_after_kill: int = 0
  seconds_to_end: float = 0.0  # Longest that the last process took once one was hit.
  seconds: float = 0.0


class Life:
  """The processes of one start of the run."""

  def __init__(self, config: Path, records: Path, workdir: Path, num_processes: int, log: Path) -> None:
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      address = f'127.0.0.1:{free.getsockname()[1]}'
    self.log = log
    self.processes = []
    command = ['-m', 'selfie_jax.train', '--config', config, '--workdir', workdir, f'--config.data.path={records}']
    for i in range(num_processes):
      several = {'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': str(num_processes), 'JAX_PROCESS_ID': str(i)}
      with log.with_suffix(f'.{i}').open('wb') as output:
        self.processes.append(
          subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env=environment(DEVICES // num_processes, **(several if num_processes > 1 else {})),
            stdout=output,
            stderr=subprocess.STDOUT,
          )
        )

  def ended(self) -> bool:
    return any(process.poll() is not None for process in self.processes)

  def send(self, number: signal.Signals, whom: list[int]) -> None:
    for i in whom:
      if self.processes[i].poll() is None:
        self.processes[i].send_signal(number)

  def wait(self) -> tuple[list[int], float]:
    """Returns the exit codes, and how long it took from now until the last process had ended."""
    start = time.monotonic()
    try:
      for process in self.processes:
        process.wait(max(0.0, start + END_SECONDS - time.monotonic()))
    except subprocess.TimeoutExpired:
      codes = [process.poll() for process in self.processes]
      for process in self.processes:
        process.kill()
        process.wait()
      raise Violation(f'not all processes ended within {END_SECONDS:g} s: exit codes {codes}\n{self.text()}') from None
    return [process.returncode for process in self.processes], time.monotonic() - start

  def text(self) -> str:
    return '\n'.join(self.log.with_suffix(f'.{i}').read_text()[-3000:] for i in range(len(self.processes)))

  def resumed_after(self) -> int | None:
    """Returns the step that this life went on from; None if it did not come so far as to say so."""
    found = re.search(r'resuming after step (\d+)', self.log.with_suffix('.0').read_text())
    return int(found[1]) if found else None


def last_step(workdir: Path) -> int:
  """Returns the last step of which metrics.jsonl has a whole line."""
  try:
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  except FileNotFoundError:
    return 0
  for line in reversed(lines):
    try:
      return json.loads(line)['step']
    except ValueError:
      continue
  return 0


def saved_steps(workdir: Path) -> list[int]:
  folder = workdir / 'checkpoints'
  return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []


def damage_newest(workdir: Path, damage: str, rng: random.Random) -> str:
  """Flips a bit of a file of the newest checkpoint, or cuts the file off; returns what was done."""
  folder = workdir / 'checkpoints' / str(saved_steps(workdir)[-1])
  path = rng.choice(sorted(path for path in folder.rglob('*') if path.is_file() and path.stat().st_size))
  data = bytearray(path.read_bytes())
  position = rng.randrange(len(data))
  if damage == 'flip':
    data[position] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return f'byte {position} of {path.relative_to(workdir)} flipped'
  path.write_bytes(data[:position])
  return f'{path.relative_to(workdir)} cut off at byte {position}'


def disturb(
  config: Path, records: Path, workdir: Path, num_processes: int, schedule: list[Blow], rng: random.Random
) -> Tally:
  """Runs the training to its end, with a schedule of blows on the way."""
  tally, begin = Tally(), time.monotonic()
  logs = Path(tempfile.mkdtemp(prefix=f'chaos_{num_processes}_', dir=workdir.parent))
  blows = list(reversed(schedule))
  damages: list[str] = []  # Still to be done: they need a checkpoint to fall back to.
  reached = may_lose = 0
  story = 'nothing'
  while True:
    life = Life(config, records, workdir, num_processes, logs / f'life_{tally.lives}')
    tally.lives += 1
    logged = last_step(workdir)
    last, whom = None, []
    while blows and not last:
      _wait_for(blows[-1], life, workdir)
      if life.ended():
        break
      blow = blows.pop()
      tally.blows[blow.kind] += 1
      whom = list(range(num_processes)) if blow.to_all else [rng.randrange(num_processes)]
      life.send(signal.Signals[blow.kind], whom)
      if blow.kind == 'SIGSTOP':
        time.sleep(blow.pause)
        life.send(signal.SIGCONT, whom)
      else:
        last = blow
    if not last:
      for process in life.processes:
        process.wait(1800)
    codes, seconds = life.wait()
    resumed = life.resumed_after()
    _check_resumed(resumed, reached, may_lose, tally, story)
    # A life that went on from somewhere, and was struck before it took a step, has left the lines that were there.
    reached = resumed if resumed is not None and last_step(workdir) == logged else last_step(workdir)
    if all(code == 0 for code in codes):
      if blows:
        raise Violation(f'the run ended with {len(blows)} blows still to come: give it more steps')
      tally.seconds = time.monotonic() - begin
      return tally
    if not last:
      raise Violation(f'the run ended by itself with {codes}\n{life.text()}')
    tally.seconds_to_end = max(tally.seconds_to_end, seconds)
    story = f'{last.kind} to {whom} of {num_processes}, exit codes {codes}'
    _check_codes(last.kind, whom, codes, life)
    if resumed is not None or tally.lives == 1:
      may_lose = 0  # What the blows before have cost has been counted.
    if last.kind == 'SIGKILL':
      # One save runs at a time, and the next waits for it: the newest finished one is at most two intervals old.
      may_lose = max(may_lose, 2 * SAVE_EVERY)
    damages += [last.damage] if last.damage else []
    if damages and len(saved_steps(workdir)) > 1:
      tally.damages[damages[0]] += 1
      story += '; ' + damage_newest(workdir, damages.pop(0), rng)
      may_lose = 3 * SAVE_EVERY
    print(f'  life {tally.lives}, step {last_step(workdir)}: {story}', flush=True)


def _wait_for(blow: Blow, life: Life, workdir: Path) -> None:
  end = time.monotonic() + (600 if blow.steps else blow.seconds)
  target = last_step(workdir) + (blow.steps or STEPS_A_LIFE)
  while last_step(workdir) < target and time.monotonic() < end and not life.ended():
    time.sleep(0.01)


def _check_codes(kind: str, whom: list[int], codes: list[int], life: Life) -> None:
  if 0 in codes and set(codes) <= {0, 75}:
    return  # It was through before it heard of it.
  for i, code in enumerate(codes):
    text = life.log.with_suffix(f'.{i}').read_text()
    hit = i in whom
    if kind == 'SIGTERM':
      # Before Python has come to the first line of ours, nothing hears a signal, and nobody else can know of it.
      deaf = any(codes[j] == -signal.SIGTERM for j in whom)
      fine = code == 75 or (hit and code == -signal.SIGTERM and not text) or (not hit and deaf and code == 70)
    else:
      fine = code == -signal.SIGKILL if hit else code not in (0, 1)
    if not fine:
      raise Violation(f'{kind} to {whom}: process {i} ended with {code}\n{life.text()}')


def _check_resumed(resumed: int | None, reached: int, may_lose: int, tally: Tally, blow: str) -> None:
  if resumed is None:
    return
  lost = reached - resumed
  if lost > may_lose:
    raise Violation(f'{lost} steps were lost ({reached} were logged, it went on after {resumed}) by {blow}')
  if may_lose:
    tally.lost_after_kill = max(tally.lost_after_kill, lost)
  else:
    tally.lost_after_term = max(tally.lost_after_term, lost)


def compare(workdir: Path, undisturbed: Path, steps: int) -> None:
  """Checks that both runs ended with the same bits, and wrote the same lines."""
  ours, theirs = (jax.tree.leaves_with_path(_state(run, steps)) for run in (workdir, undisturbed))
  if [path for path, _ in ours] != [path for path, _ in theirs]:
    raise Violation('the two train states have other arrays')
  for (path, a), (_, b) in zip(ours, theirs, strict=True):
    if np.asarray(a).tobytes() != np.asarray(b).tobytes():
      raise Violation(f'{jax.tree_util.keystr(path)} differs')
  ours, theirs = (
    [
      {k: v for k, v in json.loads(line).items() if k not in ('clips_per_second', 'data_wait_fraction')}
      for line in (run / 'metrics.jsonl').read_text().splitlines()
    ]
    for run in (workdir, undisturbed)
  )
  if [line['step'] for line in ours] != list(range(1, steps + 1)):
    raise Violation(f'metrics.jsonl has the steps {[line["step"] for line in ours]}')
  for a, b in zip(ours, theirs, strict=True):
    if a != b:
      raise Violation(f'metrics.jsonl has {a} in place of {b}')


def _state(run: Path, step: int) -> dict:
  """Reads a train state as NumPy arrays, whatever devices it was on."""
  path = run / 'checkpoints' / str(step) / 'state'
  with ocp.PyTreeCheckpointer() as checkpointer:
    shapes = checkpointer.metadata(path).item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
    return checkpointer.restore(path, restore_args=as_numpy)


def chaos(folder: Path, num_processes: int, kills: int, seed: int) -> Tally:
  """Makes data, an undisturbed run and a disturbed one in `folder`, and compares the two.

  Raises:
    Violation: a promise was broken.
  """
  steps = kills * STEPS_A_LIFE * 2 // 3 + STEPS_A_LIFE  # Some more than they let it take.
  config, records = folder / 'config.py', folder / 'records'
  config.write_text(CONFIG.format(steps=steps, save_every=SAVE_EVERY))
  if not records.exists():
    write_sounds(folder / 'sounds', 40)
    run_python('-m', 'selfie_jax.prepare', 'folder', '--input', folder / 'sounds', '--output', records)
  undisturbed, workdir = folder / f'undisturbed_{num_processes}' / 'run', folder / f'disturbed_{num_processes}' / 'run'
  for run in (undisturbed, workdir):
    run.parent.mkdir()
  disturb(config, records, undisturbed, num_processes, [], random.Random())
  tally = disturb(config, records, workdir, num_processes, draw_schedule(kills, seed), random.Random(seed))
  compare(workdir, undisturbed, steps)
  return tally


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n\n')[0])
  parser.add_argument('--kills', type=int, default=50)
  parser.add_argument('--processes', type=int, nargs='+', default=[1, 2], choices=[1, 2])
  parser.add_argument('--seed', type=int, default=0, help='of the schedule')
  parser.add_argument('--folder', type=Path, help='kept; a temporary one otherwise')
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory(prefix='chaos_') as temporary:
    folder = arguments.folder or Path(temporary)
    folder.mkdir(parents=True, exist_ok=True)
    for num_processes in arguments.processes:
      print(f'{num_processes} process(es), {arguments.kills} blows, seed {arguments.seed}')
      try:
        tally = chaos(folder, num_processes, arguments.kills, arguments.seed)
      except Violation as error:
        sys.exit(f'VIOLATION: {error}')
      print(
        f'{num_processes} process(es): bitwise equal after {tally.lives} starts, {dict(tally.blows)} and '
        f'{dict(tally.damages)} of checkpoints, in {tally.seconds:.0f} s; steps lost at most: {tally.lost_after_term} '
        f'after SIGTERM, {tally.lost_after_kill} after anything else (a save every {SAVE_EVERY}); all processes ended '
        f'within {tally.seconds_to_end:.1f} s'
      )


if __name__ == '__main__':
  main()
