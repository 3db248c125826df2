import json
import os
import signal
import sys

import jax

import tiny
from xclip_jax.parallel import processes
from xclip_jax.storage import metrics_log
from xclip_jax.training import run as run_lib

events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name.split('/')[-1]))
root, workdir, stop, *process = sys.argv[1:]
if process:
  processes.join('off', process[0], int(process[1]), int(process[2]))
write = metrics_log.MetricsWriter.write

def write_and_stop(self, step, *arguments):
  write(self, step, *arguments)
  if step == int(stop):
    os.kill(os.getpid(), signal.SIGTERM)

metrics_log.MetricsWriter.write = write_and_stop
run_lib.run(tiny.config(
  root, train__steps=4, eval__every_steps=1, report=False, data__zero_shot=''), workdir)
print(json.dumps([events.count('cache_hits'), events.count('cache_misses')]), flush=True)
