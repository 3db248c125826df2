"""Kinetics-400 for zero-shot recognition on other sets, after Open-VCLIP: B/16, 8 frames, mean.

  xclip train --config k400_b16_open --workdir runs/k400_b16_open --config.data.root=/data/k400

CLIP's two towers are trained with interpolated weight regularisation (up to 0.6, weight 0.5), and
the parameters averaged from the second of 22 epochs on, without mixup, CutMix and label smoothing;
512 clips an update, on 8 GPUs of 32 GB as 16 micro-batches of 32. Open-VCLIP also lets patches
attend to the frames beside theirs, trains with 28 templates (`data.templates`; give your own), and
mixes the trained weights with CLIP's: `xclip weights interpolate ViT-B/16 runs/k400_b16_open
--alpha 0.5 -o mixed`. Published, zero-shot: UCF101 83.4, HMDB51 53.9, K600 73.0 %. Not run here.
"""

from xclip_jax import config


def get_config():
  c = config.get_config()
  c.model.variant, c.model.num_frames, c.model.dtype = 'B/16', 8, 'bfloat16'
  c.model.fields.update(messages=False, mit=False, prompt=False)
  c.augment.mixup = c.augment.cutmix = c.augment.label_smoothing = 0.0
  c.train.init_from, c.train.freeze_text = 'ViT-B/16', False
  c.train.batch_size, c.train.accumulation, c.train.epochs = 512, 16, 22.0
  c.train.interpolate_up_to, c.train.interpolate_weight = 0.6, 0.5
  c.train.average_from = 1 / 22
  c.optim.lr, c.optim.warmup_epochs, c.optim.groups = 3.33e-6, 2.0, c.optim.groups[1:]
  c.eval.clips = 3
  return c
