import multiprocessing
import pathlib
import sys
import time

from xclip_jax.data.clips import augment, pipeline, sampling
from xclip_jax.data.datasets import annotations

if __name__ == '__main__':
  paths = sorted(pathlib.Path(sys.argv[1]).glob('*.mp4'))
  classes = annotations.ClassList(('a',), (None,))
  listed = annotations.VideoList([annotations.Example(str(path), 0) for path in paths], classes)
  transform = augment.TrainTransform(112, 'multiscale', 0.5, 0.8, 0.2)
  batches = pipeline.train_batches(
    listed, transform, sampling.ClipSampler(8), pipeline.HostShare(8), pipeline.TrainStream(seed=0),
    pipeline.Reading(workers=1, threads=1))
  batch = next(batches)
  print(*(child.pid for child in multiprocessing.active_children()), flush=True)
  if sys.argv[2] == 'stay':
    time.sleep(300)
