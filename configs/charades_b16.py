"""Charades, 157 actions, several in a video: B/16 at 16 frames, a sigmoid for each class, mAP.

  xclip train --config charades_b16 --workdir runs/charades --config.data.root=/data/charades

Lists `train.csv` and `val.csv` hold `path,label`, labels as `3;17;20`. Meant for 8 devices, 64
clips an update; the final evaluation takes the mean of the logits of ten clips a video. X-CLIP
publishes no result. Not run here.
"""

from xclip_jax import config


def get_config():
  c = config.get_config()
  c.train.task = 'multi-label'
  c.model.variant, c.model.num_frames, c.model.dtype = 'B/16', 16, 'bfloat16'
  c.train.init_from, c.train.batch_size, c.optim.lr = 'ViT-B/16', 64, 2e-6
  c.augment.label_smoothing, c.eval.clips = 0.0, 10
  return c
