"""Moving shapes, told apart by a small model from random weights on a laptop; `make demo` runs it.

  xclip train --config demo --workdir runs/demo
"""

from xclip_jax import config


def get_config():
  c = config.get_config()
  c.data.name = 'synthetic'
  c.data.zero_shot, c.data.zero_shot_classes = 'zero_shot.csv', 'classes_zero_shot.csv'
  c.model.num_frames = 4
  c.model.fields = dict(
    image_size=64, patch_size=16, embed_dim=96, vision_width=96, vision_layers=3, vision_heads=3,
    vision_mlp=192, text_width=64, text_layers=2, text_heads=2, text_mlp=256, context_length=16,
    mit_heads=3, mit_mlp=192, prompt_layers=1, prompt_heads=3,
  )
  c.augment.update(                        # left is not right, and a red shape stays red
    crop='center', flip=0.0, color_jitter=0.0, grayscale=0.0, mixup=0.0, cutmix=0.0,
    label_smoothing=0.0,
  )
  c.train.batch_size, c.train.steps, c.train.freeze_text = 32, 1200, False
  c.train.init_scale = (                   # larger, so that the order is learnt: docs/demo.md
    ('mit/pos_embed', 50.0), ('vision/pos_embed', 5.0), ('text/token_embed/.*', 10.0), ('.*', 1.0),
  )
  c.optim.lr, c.optim.warmup_steps, c.optim.lag_steps = 5e-4, 100, -1
  c.optim.groups = ((r'.*/message_.*|mit/.*|prompt/.*', 2.0), ('text/.*', 0.5), ('.*', 1.5))
  c.optim.weight_decay, c.optim.clip_norm = 0.05, 1.0
  c.checkpoint.every_steps, c.eval.every_steps, c.eval.batch_size = 300, 300, 48
  return c
