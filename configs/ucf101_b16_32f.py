"""UCF101 from K = 2, 4, 8 or 16 videos a class, B/16, 32 frames: the published few-shot recipe.

  xclip data lists ucf101 /data/ucf101 -o /data/ucf101 --split-files splits --videos videos
  xclip data few-shot /data/ucf101/train.csv --shots 16 -o /data/ucf101/train_16.csv
  python train.py --config configs/ucf101_b16_32f.py:16 --workdir runs/ucf101_16 \\
      --config.data.root=/data/ucf101

Official split 1, one view. An update has 64 clips, in 2 micro-batches of 32, as in the original on
8 GPUs; other hardware changes `train.accumulation`. Published top-1 for K = 2 / 4 / 8 / 16:
76.4 / 83.4 / 88.3 / 91.4 %; the authors' own lists of K videos are not public. Not run here.
"""

from configs import base


def get_config(shots='16'):
  c = base.get_config()
  c.data.train = f'train_{int(shots)}.csv'
  c.model.variant, c.model.num_frames, c.model.dtype = 'B/16', 32, 'bfloat16'
  c.augment.blend_rows = 4               # clips on each GPU of the original
  c.train.init_from, c.train.batch_size, c.train.accumulation = 'ViT-B/16', 64, 2
  c.train.epochs, c.optim.lr = 50.0, 2e-6
  return c
