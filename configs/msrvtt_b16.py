"""MSR-VTT, videos and captions: B/16 at 12 frames, contrastive over the global batch, R@1.

  xclip train --config msrvtt_b16 --workdir runs/msrvtt --config.data.root=/data/msrvtt

Lists hold `path,caption`: the 9,000 training videos with 20 captions each, and the 1,000 pairs of
split 1k-A to evaluate on. Both towers are trained; 128 pairs an update, on 8 devices. X-CLIP
publishes no result for it; CLIP4Clip's, B/32: 43 to 44.5 % R@1 text to video. Not run here.
"""

from xclip_jax import config


def get_config():
  c = config.get_config()
  c.train.task, c.data.truncate_captions = 'captions', True
  c.model.variant, c.model.num_frames, c.model.dtype = 'B/16', 12, 'bfloat16'
  c.train.init_from, c.train.freeze_text = 'ViT-B/16', False
  c.train.batch_size, c.train.epochs, c.optim.lr = 128, 5.0, 4e-6
  c.optim.warmup_epochs = 0.5
  c.augment.update(mixup=0.0, cutmix=0.0, label_smoothing=0.0)
  return c
