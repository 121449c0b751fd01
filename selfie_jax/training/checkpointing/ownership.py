"""One start of a run at a time: a later one takes the workdir over, and the earlier one notices, and ends.

The other way round, a lock that refuses the later one, would have to be broken whenever the earlier one's machine is
lost, and who could tell? Nor has an object store any.
"""

import json
import os
import secrets
import socket
import time

import jax
from etils import epath

from selfie_jax.errors import UserError
from selfie_jax.files import write_atomically

_FILE = 'owner.json'


class Owner:
  """This start of a run, as the one that writes into its workdir."""

  def __init__(self, workdir: epath.Path) -> None:
    """Takes the workdir over. Process 0 does, and asks, for all."""
    self._path = workdir / _FILE
    self._mine = {
      'token': secrets.token_hex(8),
      'host': socket.gethostname(),
      'pid': os.getpid(),
      'since': time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime()),
    }
    if jax.process_index() == 0:
      with write_atomically(self._path) as file:
        file.write(json.dumps(self._mine).encode() + b'\n')

  def check(self) -> None:
    """Asked before anything is written that a later start would have to share with this one.

    Raises:
      UserError: another start has taken the workdir over: which one.
    """
    if jax.process_index() > 0:
      return
    try:
      owner = json.loads(self._path.read_text())
    except Exception:  # Each store has its own. What cannot be read says nothing; a store that is away may come back.
      return
    if owner != self._mine:
      raise UserError(
        f'another start of this run, {owner.get("host")} (pid {owner.get("pid")}) since {owner.get("since")}, has '
        f'taken over {self._path.parent}: this one ends, and that one goes on from the last checkpoint. Two runs need '
        'two workdirs'
      )
