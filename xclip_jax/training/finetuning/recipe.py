"""The recipe of a fine-tuning: a config that fits the clips and the weights.

The recipe is the few-shot one of X-CLIP (Ni et al., ECCV 2022, Sec. 4.1 and its published configs):
AdamW, learning rate 8e-6 x batch / 256, ten times that for the new parts, text tower fixed, 50
epochs. Models smaller than the published ones get a larger rate, see `optimizer.fit_learning_rate`.
"""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xclip_jax import config as config_lib
from xclip_jax.data.datasets.own_clips import Clips
from xclip_jax.errors import UserError
from xclip_jax.models.config import COMPUTE_FIELDS, FRAME_MEAN, VARIANTS
from xclip_jax.training import optimizer
from xclip_jax.weights import native

FEW_CLIPS = 16                 # clips of a class up to which the few-shot recipe is taken
FEW_SHOT_EPOCHS, EPOCHS = 50.0, 30.0
LEAST_UPDATES = 100
_SIDES = re.compile(r'\b(left|right|(counter-?|anti-?)?clockwise)\b', re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of a fine-tuning; None: chosen from the clips and the weights.

  Fields:
    epochs: passes over the training clips.
    batch_size: clips an update.
    lr: peak learning rate of the pretrained parts.
    tune_text: train the text tower, too.
    frame_mean: with weights of CLIP, add no new parts and average the frames.
    flip: probability of a mirrored clip; None: 0.5, or 0 if a label tells left from right.
    val_share: share of the clips of each class that is held out, if no split is given.
    threads: decoding threads.
    seed: seed of the split, of training and of new parts.
    extend: continue an earlier fine-tuning with more epochs.
  """

  epochs: float | None = None
  batch_size: int | None = None
  lr: float | None = None
  tune_text: bool = False
  frame_mean: bool = False
  flip: float | None = None
  val_share: float = 0.2
  threads: int = 4
  seed: int = 0
  extend: bool = False


def recipe(clips: Clips, weights: native.Weights, given: str, out: Path, options: Options) -> Any:
  """Returns the config of a fine-tuning, locked.

  Args:
    clips: from `own_clips.split`.
    weights: the initial weights.
    given: the name that the user gave them.
    out: the folder of the fine-tuning.
    options: what the user chose.

  Raises:
    ValueError: An option does not fit the devices, or the earlier fine-tuning in `out`.
  """
  training = clips.of('train')
  devices = jax.device_count()
  batch = _choose_batch_size(len(training), devices, options.batch_size)
  is_few_shot = float(np.median(list(clips.count('train').values()))) <= FEW_CLIPS
  epochs = options.epochs or (FEW_SHOT_EPOCHS if is_few_shot else EPOCHS)
  steps = max(round(epochs * len(training) / batch), 1)
  if options.epochs is None:
    steps = max(steps, LEAST_UPDATES)
  c = config_lib.get_config()
  c.seed = options.seed
  _set_model(c.model, weights, options)
  c.data.root = str(clips.root)
  for name in ('train', 'val', 'classes'):
    setattr(c.data, name, str(out / f'{name}.csv'))
  template = weights.template
  c.data.template, c.data.templates = (
    (template, ()) if isinstance(template, str) else ('{}', tuple(template)))
  c.data.mean, c.data.std = tuple(weights.preprocess.mean), tuple(weights.preprocess.std)
  # A run resizes the short side; other kinds of resizing are not for clips of any shape.
  by_short_side = weights.preprocess.resize == 'short_side'
  c.data.eval_resize = max(weights.preprocess.resize_ratio, 1.0) if by_short_side else 1.0
  c.data.threads = options.threads
  c.augment.flip = (
    (0.0 if labels_tell_sides(clips) else 0.5) if options.flip is None else options.flip)
  c.train.task = 'multi-label' if clips.is_multi_label else 'single-label'
  c.train.init_from, c.train.freeze_text = given, not options.tune_text
  c.train.batch_size, c.train.steps = batch, steps
  c.optim.lr = options.lr or optimizer.fit_learning_rate(weights.config, batch)
  c.optim.warmup_steps = max(steps // 10, 1)
  if not (c.model.fields.get('messages', True) or c.model.fields.get('mit', True)):
    c.optim.groups = c.optim.groups[1:]                 # the rule of new parts would match nothing
  c.eval.every_steps = steps                            # no checkpoint is chosen on the way
  c.checkpoint.every_steps = min(100, steps)
  c.log_steps = max(min(20, steps // 10), 1)
  c.eval.batch_size = -(-16 // devices) * devices
  _continue_earlier(c, out, options.extend)
  config_lib.validate(c)
  return c.lock()


def labels_tell_sides(clips: Clips) -> bool:
  """Tells whether a label names a side or a sense of rotation, which mirroring would change."""
  return any(map(_SIDES.search, clips.classes))


def choices(config: Any, clips: Clips) -> list[tuple[str, str]]:
  """Returns rows (name, value) of all that the recipe chose, in words."""
  c, count = config, len(clips.of('train'))
  size = c.model.fields.get('vision_width', VARIANTS[c.model.variant].vision_width)
  model = f'{c.model.num_frames} frames, ' + (
    f'a size of its own (width {size})' if 'vision_width' in c.model.fields else c.model.variant)
  flip = f'{c.augment.flip:g}'
  if not c.augment.flip and labels_tell_sides(clips):
    flip = '0, as labels tell sides apart'
  return [
    ('start', c.train.init_from), ('model', model),
    ('clips', f'{count} to train on, {len(clips.of("val"))} held out, '
              f'{len(clips.classes)} classes'),
    ('training', f'{c.train.steps} updates of {c.train.batch_size} clips '
                 f'({c.train.steps * c.train.batch_size / max(count, 1):.0f} epochs)'),
    ('learning rate', f'{c.optim.lr:.2g}, ten times that for the new parts'
     if len(c.optim.groups) > 1 else f'{c.optim.lr:.2g}'),
    ('text tower', 'fixed' if c.train.freeze_text else 'trained'),
    ('mirrored clips', flip), ('seed', str(c.seed)),
  ]


def _choose_batch_size(clips: int, devices: int, given: int | None) -> int:
  """Returns a power of two up to 64, rounded up to whole devices, or the given size."""
  if given is None:
    return -(-(1 << int(math.log2(min(64, clips)))) // devices) * devices
  if given % devices:
    raise UserError(f'--batch-size {given} must be a multiple of the {devices} devices')
  return given


def _set_model(model: Any, weights: native.Weights, options: Options) -> None:
  """Describes the architecture of the weights as the nearest variant and what differs from it."""
  tuned = vars(weights.config) | (FRAME_MEAN if options.frame_mean else {})
  differ = lambda variant: {
    k: v for k, v in tuned.items()
    if v != getattr(VARIANTS[variant], k) and k not in (*COMPUTE_FIELDS, 'num_frames')}
  model.variant = min(VARIANTS, key=lambda variant: len(differ(variant)))
  model.num_frames = tuned['num_frames']
  model.fields = differ(model.variant)
  if jax.default_backend() != 'cpu':
    model.dtype = model.residual_dtype = 'bfloat16'


def _continue_earlier(config: Any, out: Path, extend: bool) -> None:
  """Fits a config to the earlier fine-tuning in the same folder, if its length is another.

  Raises:
    ValueError: The earlier one is longer, or it is shorter and is not to be extended.
  """
  path = out / 'run' / 'config.json'
  if not path.is_file():
    return
  earlier = json.loads(path.read_bytes())
  before, now = earlier['train']['steps'], config.train.steps
  if before == now or earlier['train']['batch_size'] != config.train.batch_size:
    return                             # the run itself compares all fields
  other = 'choose another folder with -o to begin anew'
  if before > now:
    raise UserError(
      f'the fine-tuning in {out} has {before} updates, and {now} are asked for: it can only become '
      f'longer; raise --epochs, or {other}')
  if not extend:
    raise UserError(
      f'the fine-tuning in {out} has {before} updates, and {now} are asked for; add --extend to '
      f'continue it (learning rates from there on are those of the new length), or {other}')
  config.train.extend_schedule = True
  config.optim.warmup_steps = earlier['optim']['warmup_steps']
