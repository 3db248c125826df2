"""Kinetics-400 with the mean of CLIP's frame features: B/16, 32 frames, both towers trained.

  xclip train --config k400_b16_frame_mean --workdir runs/k400_b16_frame_mean \\
      --config.data.root=/data/k400

The baseline of ViFi-CLIP (Rasheed et al., CVPR 2023) and its settings for zero-shot recognition:
10 epochs of 256 clips an update, in 8 micro-batches of 32, learning rate 8e-6. Augmentation,
schedule and decay are X-CLIP's, on whose code theirs is built. Published, one view, classes never
trained on: HMDB51 51.3, UCF101 76.8, Kinetics-600's new classes 71.2 % top-1
(on other lists of videos than X-CLIP's). Not run here.
"""

from xclip_jax import config


def get_config():
  c = config.get_config()
  c.data.name, c.data.template = 'kinetics', 'a photo of a {}.'
  c.model.variant, c.model.num_frames, c.model.dtype = 'B/16', 32, 'bfloat16'
  c.augment.blend_rows = 4                 # clips on each GPU of the original
  c.model.fields = dict(messages=False, mit=False, prompt=False)
  c.optim.groups = (('.*', 1.0),)          # no new modules, which would learn faster
  c.train.init_from, c.train.accumulation, c.train.epochs = 'ViT-B/16', 8, 10.0
  c.train.freeze_text = False
  return c
