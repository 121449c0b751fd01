"""Pre-trains an encoder: `python -m selfie_jax.train --config configs/X.py --workdir DIR [--config.key=value ...]`.

Starts a run in an empty folder and resumes the one it finds there. The whole story, top to bottom: read the config,
lay out the devices, check the data, make or restore the state, compile, and then step, report and save until the end.

"Step" counts finished updates: checkpoint k is the state after k updates, and update k is made from batch k - 1, which
is a function of (seed, k - 1) alone. So a run that was stopped, or killed, goes on with exactly the batches that are
left, and its random numbers, which are a function of (seed, step), are those of a run that was never stopped.
"""
# ruff: noqa: E402

from selfie_jax.training.processes import preemption

if __name__ == '__main__':
  preemption.heed()  # The imports take seconds, in which a cluster may want its machine back, too.

from collections.abc import Sequence

import jax
from clu import parameter_overview
from flax import nnx

from selfie_jax.command_line import parse_training
from selfie_jax.data.pipeline import batches
from selfie_jax.data.source import open_data
from selfie_jax.errors import EXIT_PREEMPTED, run_command
from selfie_jax.terminal import console
from selfie_jax.training import mesh as mesh_lib
from selfie_jax.training.checkpointing import checkpoints
from selfie_jax.training.checkpointing.ownership import Owner
from selfie_jax.training.health import make_health_step
from selfie_jax.training.monitoring.monitor import Monitor
from selfie_jax.training.optimizer import make_optimizer
from selfie_jax.training.processes import cluster
from selfie_jax.training.processes.watchdog import Watchdog
from selfie_jax.training.programs import compilation, host_memory
from selfie_jax.training.state import abstract_state, init_state
from selfie_jax.training.step import make_train_step


def main(arguments: Sequence[str]) -> int:
  """Runs the training command; returns its exit code."""
  stop = preemption.heed()
  asked = parse_training(arguments)
  config, workdir = asked.config, asked.workdir
  host_memory.keep_freed_memory()
  with cluster.joined(config.cluster), Watchdog(config.watchdog_minutes) as watchdog:
    cluster.check_alike(asked)
    # ----------------------------------------------------------- devices, data: all else that a user can get wrong
    console.quiet = jax.process_index() > 0
    mesh = mesh_lib.make_mesh(config.mesh.fsdp)
    mesh_lib.check_batch(config, mesh.size)
    source = open_data(config.data, config.log_mel)
    data = checkpoints.initial_data_state(config, source, mesh.size)
    optimizer = make_optimizer(config)
    checkpoints.claim_workdir(workdir, config)
    owner = Owner(workdir)
    compilation.use_cache(workdir)

    template = abstract_state(config, optimizer, mesh)
    restored = checkpoints.restore(workdir, template, data)  # First: it moves what is damaged out of the manager's way.

    # Leaving this block, in whatever way, waits for the save that is running.
    with checkpoints.open_manager(workdir, config) as manager:
      # --------------------------------------------------------- state: restored where there is one, else initialised
      if restored is None:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, template)
        state = jax.jit(lambda: init_state(config, optimizer), out_shardings=shardings)()
        if config.warm_start:
          state = checkpoints.warm_start(state, config)
        console.print(parameter_overview.get_parameter_overview(nnx.to_pure_dict(state.params), include_stats=False))
      else:
        state, data = restored
        console.print(f'resuming after step {int(state.step)} from {manager.directory}')
      first_step = int(state.step)

      # --------------------------------------------------------- program
      clips = batches(
        source,
        batch_size=config.batch_size,
        crop_samples=config.crop_samples,
        seed=config.seed,
        start_step=first_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
      )
      train_step = compilation.compile_step(make_train_step(config, optimizer, mesh, data), template, config, mesh)
      health_step = make_health_step(config, mesh, data)

      # --------------------------------------------------------- loop
      stopped = False
      due = checkpoints.Schedule(config)
      with (
        stop.stepping(first_step),
        Monitor(workdir, config, first_step, train_step, asked.profile) as monitor,
        jax.transfer_guard('disallow'),
      ):
        for step in range(first_step + 1, config.steps + 1):
          with monitor.waiting_for_data():
            batch = next(clips)
          # Dispatch does not wait for the device, so the next batch is read and sent while this step is computed.
          audio = mesh_lib.to_devices(batch['audio'], mesh_lib.batch_sharding(mesh))
          state, metrics = train_step(state, audio)
          if monitor.report_due(step - 1):
            owner.check()
            monitor.flush()
          monitor.add(step, metrics, batch['damaged'])
          if monitor.health_due(step):
            monitor.add_health(step, health_step(state, audio))
          watchdog.beat()

          stopped = stop.stop_after(step) and step < config.steps
          if stopped or due.after(step):
            owner.check()
            monitor.flush(before_save=True)  # Parameters that are not finite are never saved.
            with monitor.saving():
              checkpoints.save(manager, step, state, data, config)
          if stopped:
            break

  if stopped:
    console.print(f'stopped after step {step} as told: saved, start me again to go on')
    return EXIT_PREEMPTED
  console.print(f'finished {config.steps} steps: {manager.directory / str(config.steps)}')
  return 0


if __name__ == '__main__':
  run_command(main)
