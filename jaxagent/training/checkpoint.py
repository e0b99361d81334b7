"""Checkpoints: written in the background, complete or absent."""

import pathlib

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxagent.training import state as state_lib


class Checkpointer:
  """Keeps the newest checkpoints of a run under `directory`.

  A checkpoint becomes visible only when it is whole, so that a process killed
  at any moment leaves a state to resume from.

  Args:
    directory: made if absent.
    every: steps between checkpoints; `save` ignores the others.
    keep: how many of the newest to keep.
  """

  def __init__(self, directory, *, every: int = 10, keep: int = 2):
    self._manager = ocp.CheckpointManager(
      pathlib.Path(directory).resolve(),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, save_interval_steps=every
      ),
    )

  def save(self, state: state_lib.TrainState, host: dict, *, force=False):
    """Saves in the background; `host` is JSON: what lives outside the device.

    The state is copied first: training donates its buffers to the next step.
    """
    step = int(state.step)
    if self._manager.latest_step() == step:
      return
    if not (force or self._manager.should_save(step)):
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(jax.tree.map(jnp.copy, state)),
        host=ocp.args.JsonSave(host),
      ),
      force=force,
    )

  def restore(
    self, template: state_lib.TrainState
  ) -> tuple[state_lib.TrainState, dict] | None:
    """The newest whole checkpoint placed like `template`; None if none.

    Raises:
      ValueError: it does not have the template's structure.
    """
    step = self._manager.latest_step()
    if step is None:
      return None
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    try:
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(abstract),
          host=ocp.args.JsonRestore(),
        ),
      )
    except (KeyError, ValueError, TypeError) as error:
      raise ValueError(
        f'The checkpoint of step {step} in {self._manager.directory} does not'
        ' fit this config (another model, optimiser or reward transform?). Use'
        ' the config it was made with, or another --workdir.'
      ) from error
    return restored['state'], restored['host']

  def close(self):
    """Waits for what is being written."""
    self._manager.wait_until_finished()
    self._manager.close()
