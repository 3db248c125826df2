"""train.py on a disk that is full after its step 3: full_disk_run.py TRAIN.PY ARGUMENTS."""

import resource
import runpy
import signal
import sys

import xclip_jax.storage.checkpoints as checkpoints

SIZE = 20_000          # bytes: config.json fits, a checkpoint does not
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.argv = sys.argv[1:]
save = checkpoints.Checkpoints.save


def save_on_full_disk(self, step, *args, **kwargs):
  if step > 3:
    self.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, SIZE))
  return save(self, step, *args, **kwargs)


checkpoints.Checkpoints.save = save_on_full_disk
runpy.run_path(sys.argv[0], run_name='__main__')
