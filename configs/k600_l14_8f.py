"""Kinetics-600, L/14, 8 frames: the published recipe.

  python train.py --config configs/k600_l14_8f.py --workdir runs/k600_l14_8f \\
      --config.data.root=/data/k600

The folder holds Kinetics' own train.csv and val.csv, and the videos. An update has 256 clips, in
8 micro-batches of 32, as in the original on 8 GPUs; other hardware changes `train.accumulation`.
Published, top-1 / top-5 with 4 clips x 3 crops, trained on 32 V100: 88.3 / 97.7 %.
Not run here.
"""

from configs import base


def get_config():
  c = base.get_config()
  c.data.name = 'kinetics'
  c.model.variant, c.model.num_frames, c.model.dtype = 'L/14', 8, 'bfloat16'
  c.augment.blend_rows = 4               # clips on each GPU of the original
  c.train.init_from, c.train.accumulation = 'ViT-L/14', 8
  c.eval.clips, c.eval.crops = 4, 3
  return c
