"""HMDB51 and UCF101 from K = 2, 4, 8 or 16 videos a class: the published few-shot recipe.

  xclip data lists hmdb51 /data/hmdb51 -o /data/hmdb51 --split-files splits --videos videos
  xclip data few-shot /data/hmdb51/train.csv --shots 16 -o /data/hmdb51/train_16.csv
  xclip train --config hmdb51_b16_32f:16 --workdir runs/hmdb51_16 --config.data.root=/data/hmdb51

B/16 at 32 frames, official split 1, one view. An update has 64 clips, in 2 micro-batches of 32, as
in the original on 8 GPUs; other hardware changes `train.accumulation`. Published results are top-1
accuracy in percent; the authors' own lists of K videos are not public. Not run here.
"""

from xclip_jax import config
from xclip_jax.errors import ConfigError

# Name -> published top-1 for K = 2 / 4 / 8 / 16 videos a class. Both are trained in the same way.
RUNS = {
  'hmdb51_b16_32f': '53.0 / 57.3 / 62.8 / 64.0',
  'ucf101_b16_32f': '76.4 / 83.4 / 88.3 / 91.4',
}


def get_config(name_and_shots='hmdb51_b16_32f:16'):
  """Returns the config of NAME:K, or of NAME for K = 16."""
  name, _, shots = name_and_shots.partition(':')
  if not (shots or '16').isdecimal():
    raise ConfigError(f'{name_and_shots}: K must be a number of videos a class, as in {name}:16')
  c = config.get_config()
  c.data.train = f'train_{int(shots or 16)}.csv'
  c.model.variant, c.model.num_frames, c.model.dtype = 'B/16', 32, 'bfloat16'
  c.augment.blend_rows = 4                 # clips on each GPU of the original
  c.train.init_from, c.train.batch_size, c.train.accumulation = 'ViT-B/16', 64, 2
  c.train.epochs, c.optim.lr = 50.0, 2e-6
  return c
