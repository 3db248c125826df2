"""Every field of a run, typed, with its default, unit, meaning and allowed values.

Other configs are `get_config()` plus differences; any field can be set on the command line:

  python train.py --config configs/demo.py --workdir runs/demo [--config.FIELD=VALUE ...]
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, get_type_hints

from ml_collections import config_dict

from xclip_jax.config.rules import Between, Keys, OneOf, Pairs, Size, Triple

DATA_SETS = ('files', 'folder', 'kinetics', 'hmdb51', 'ucf101', 'ssv2', 'synthetic', 'tfds')
TASKS = ('single-label', 'multi-label', 'captions')
LOSSES = ('softmax', 'sigmoid')
OPTIMIZERS = ('adamw', 'lion', 'adafactor')
DTYPES = ('float32', 'bfloat16')
SHARDING_RULES = ('replicate', 'fsdp', 'column', 'row')

Count = Annotated[int, Between(0)]
Positive = Annotated[int, Between(1)]
Share = Annotated[float, Between(0, 1)]
ShareBelowOne = Annotated[float, Between(0, below=1)]
NotNegative = Annotated[float, Between(0)]
AxisSize = Annotated[int, Size()]


@dataclasses.dataclass(frozen=True)
class Model:
  """The network."""

  variant: str = 'B/32'           # a name in xclip_jax.VARIANTS
  num_frames: Positive = 8        # T, frames a clip is sampled at
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  """Fields of XCLIPConfig that differ from the variant."""
  dtype: Annotated[str, OneOf(DTYPES)] = 'float32'           # operands of matrix products
  residual_dtype: Annotated[str, OneOf(DTYPES)] = 'float32'  # activations between layers
  attention: Annotated[str, OneOf(('xla', 'chunked', 'cudnn'))] = 'xla'
  """Implementation of attention: xla, chunked (TPU) or cudnn (NVIDIA GPU, bfloat16)."""
  remat: Annotated[str | None, OneOf((None, 'dots', 'nothing'))] = None
  """Activations saved for the backward pass: all (None), those of products (dots), or nothing."""
  patch_dropout: ShareBelowOne = 0.0  # share of a clip's patches left out in training; 0: none


@dataclasses.dataclass(frozen=True)
class Data:
  """The videos and their labels; see docs/datasets.md.

  Annotation files and class lists are relative to `root`. `train` and `val` are two folders for
  name='folder', two splits or parts of splits (train[:90%]) for 'tfds', and not read for 'hmdb51'
  and 'ucf101'. `classes` is a CSV for 'files' and labels.json for 'ssv2'; other data sets know
  their classes.
  """

  name: Annotated[str, OneOf(DATA_SETS)] = 'files'   # synthetic: rendered on first use
  root: str = ''                  # folder of the files below; synthetic: '' is a cache
  synthetic: Annotated[Mapping[str, int], Keys(
    ('seed', 'train', 'val', 'zero_shot', 'size', 'frames', 'processes'))] = (
      dataclasses.field(default_factory=dict))
  """Fields of data.datasets.synthetic.Recipe, and the number of drawing processes."""
  train: str = 'train.csv'        # training list
  val: str = 'val.csv'            # validation list
  classes: str = 'classes.csv'    # class list
  videos: str = ''                # kinetics, hmdb51, ucf101, ssv2: folder of the videos
  split: Positive = 1             # hmdb51, ucf101: number of the official split, 1 to 3
  split_files: str = ''           # hmdb51, ucf101: folder of the official text files
  zero_shot: str = ''             # annotation list of classes never trained on; '': none
  zero_shot_classes: str = ''     # class list of `zero_shot`
  zero_shot_root: str = ''        # folder of both lists and of their videos; '': `root`
  template: str = '{}'            # prompt around a class name; the reference uses the bare name
  templates: tuple[str, ...] = () # several prompts, features averaged; replaces `template`
  descriptions: str = ''          # CSV name,description: texts in place of class names
  truncate_captions: bool = False # cut captions that are too long, instead of an error
  workers: Count = 0              # decoding processes on this host; 0: threads only
  threads: Positive = 4           # decoding threads (in each worker)
  sampling: Annotated[str, OneOf(('sparse', 'dense'))] = 'sparse'
  """Frames from the whole video (sparse, the reference) or `stride` apart (dense)."""
  stride: Positive = 4            # frames from one frame of a dense clip to the next
  clip_seconds: NotNegative = 60.0    # a video not read by then counts as unreadable; 0: no limit
  square_pixels: bool = False     # scale frames of files whose pixels are not square, as players do
  max_bad_share: Share = 0.05     # stop once more than this share of files is unreadable
  mean: Annotated[tuple[float, ...], Triple()] = (123.675, 116.28, 103.53)
  """ImageNet RGB mean, 0..255; X-CLIP does not use CLIP's."""
  std: Annotated[tuple[float, ...], Triple(positive=True)] = (58.395, 57.12, 57.375)
  """ImageNet RGB standard deviation, 0..255."""
  eval_resize: Annotated[float, Between(1)] = 256 / 224
  """Short side before evaluation crops, over image_size."""


@dataclasses.dataclass(frozen=True)
class Augment:
  """Random changes of training clips and of their targets."""

  crop: Annotated[str, OneOf(('multiscale', 'center'))] = 'multiscale'
  flip: Share = 0.5               # probability of a mirrored clip; 0 if left and right matter
  color_jitter: Share = 0.8       # probability; strengths: the reference's
  grayscale: Share = 0.2          # probability
  color_on: Annotated[str, OneOf(('auto', 'host', 'device'))] = 'auto'
  """Where colours are changed: host, device, or auto: the device unless that is a CPU."""
  rand_augment: Count = 0         # operations of RandAugment on each clip; 0: off
  rand_magnitude: Annotated[float, Between(0, 10)] = 9.0    # strength of these operations, 0..10
  erase: Share = 0.0              # probability of random erasing; 0: off
  repeats: Positive = 1           # batch rows of each video that is drawn
  reverse: bool = False           # add each clip backwards, as the class that `reverse` names
  mixup: NotNegative = 0.8        # Beta parameter of mixup; 0: off
  cutmix: NotNegative = 1.0       # Beta parameter of CutMix; 0: off
  cutmix_share: Share = 0.5       # probability of CutMix where both are on
  blend_rows: int = 8             # batch rows that share one draw of these and are mixed among
                                  # each other; 0: all rows of a micro-batch
  label_smoothing: Share = 0.1    # share of each target that is spread over all classes


@dataclasses.dataclass(frozen=True)
class Train:
  """The task, the length of the run, and the weights it starts from; see docs/train.md."""

  task: Annotated[str, OneOf(TASKS)] = 'single-label'     # what lists give for a video
  loss: Annotated[str, OneOf(('auto', *LOSSES))] = 'auto'
  """softmax, sigmoid, or auto: sigmoid for multi-label, else softmax."""
  batch_size: int = 256           # videos an update, over all devices and micro-batches
  accumulation: Positive = 1      # micro-batches an update
  epochs: NotNegative = 30.0      # passes over the training videos; `steps` overrides it
  steps: Count = 0                # updates; 0: from epochs
  extend_schedule: bool = False   # let an existing run become longer: from there on its learning
                                  # rates are those of the new length
  freeze_text: bool = True        # fix text tower and logit scale, as published
  init_from: str = ''             # initial weights: a run's workdir, or any file, folder or name
                                  # that xclip_jax.load takes; '': random
  init_resample: bool = False     # interpolate their positions to num_frames and image_size
  init_scale: Annotated[tuple, Pairs()] = ((r'.*', 1.0),)
  """(regex over parameters, multiple of their random initial values); the first match counts."""
  interpolate_up_to: ShareBelowOne = 0.0
  """Adds the loss of weights up to this share of the way back to the initial weights (Open-VCLIP:
  0.6); 0: off."""
  interpolate_weight: NotNegative = 0.5   # of that loss
  distill: NotNegative = 0.0      # weight of the distance to the features of the CLIP that the run
                                  # started from (FROSTER: 2); 0: off
  ema: ShareBelowOne = 0.0        # decay of a moving average of the parameters; 0: off
  average_from: Share = 1.0       # mean of the parameters from this share of the run on (SWA); 1:
                                  # off. Either average is what is evaluated and used


@dataclasses.dataclass(frozen=True)
class Optim:
  """The update rule and its learning rates; see docs/options.md."""

  name: Annotated[str, OneOf(OPTIMIZERS)] = 'adamw'
  lr: NotNegative = 8e-6          # peak learning rate of pretrained parts; `groups` multiplies it
  groups: Annotated[tuple, Pairs(least=0)] = (
    (r'.*/message_.*|mit/.*|prompt/.*|distill/.*', 10.0),
    (r'.*', 1.0),
  )
  """(regex over parameters, multiple of lr); the first match counts, 0 freezes."""
  floor: NotNegative = 0.01       # lowest learning rate over lr, the same for all groups
  warmup_epochs: NotNegative = 5.0    # at most half of the run; `warmup_steps` overrides it
  warmup_steps: Count = 0         # updates; 0: from warmup_epochs
  lag_steps: int = 1              # micro-steps that the rate lags behind (reference: 1)
  b1: ShareBelowOne = 0.9         # decay of the first moment
  b2: ShareBelowOne = 0.98        # decay of the second moment; adafactor: its largest decay
  eps: NotNegative = 1e-8         # adamw only
  weight_decay: NotNegative = 0.001   # decoupled, times the learning rate
  decay: Annotated[tuple, Pairs(least=0)] = (
    (r'.*/(bias|scale)|.*pos_embed|.*class_embed|.*alpha|logit_bias', 0.0),
    (r'.*', 1.0),
  )
  """(regex over parameters, multiple of weight_decay); the first match counts."""
  clip_norm: NotNegative = 0.0    # largest global gradient norm; 0: off


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Devices along each axis; -1 for one axis: all devices that are left."""

  data: AxisSize = -1             # devices that hold the same parameters
  fsdp: AxisSize = 1              # devices that share large parameters, and split the batch too
  tensor: AxisSize = 1            # devices that share heads and MLPs, and not the batch
  dcn: AxisSize = 1               # slices of a TPU, or hosts, with a slow network between them


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """The states of a run that are kept in workdir/checkpoints."""

  every_steps: Positive = 500     # updates from one checkpoint to the next
  keep_latest: Positive = 2       # checkpoints
  keep_best: Count = 1            # checkpoints, by validation metric


@dataclasses.dataclass(frozen=True)
class Eval:
  """The evaluations of a run, and of train.py --mode eval."""

  every_steps: Count = 0          # updates from one evaluation to the next; 0: every epoch
  batch_size: Positive = 64       # clips predicted at once, over all devices; a clip is one view
                                  # of one video
  clips: Positive = 1             # clips a video in final evaluations, probabilities averaged; in
                                  # the course of a run there is one view
  views: Annotated[str, OneOf(('centred', 'reference'))] = 'centred'
  """Position of several clips: spread evenly, or drawn as in training."""
  crops: Annotated[int, OneOf((1, 3))] = 1    # crops of each clip: the centre, or three
  checkpoint: Annotated[str, OneOf(('latest', 'best'))] = 'latest'    # read by --mode eval


@dataclasses.dataclass(frozen=True)
class Profile:
  """A recording by jax.profiler, in workdir/profile."""

  first: Count = 0                # first update to record
  steps: Count = 0                # updates to record; 0: none


@dataclasses.dataclass(frozen=True)
class Run:
  """All fields of a run, in the order a run uses them."""

  seed: int = 0                   # everything random in a run derives from this number
  model: Model = Model()
  data: Data = Data()
  augment: Augment = Augment()
  train: Train = Train()
  optim: Optim = Optim()
  mesh: Mesh = Mesh()
  sharding: Annotated[tuple, Pairs(choices=SHARDING_RULES)] = (
    (r'.*/(query|key|value|c_fc)/(kernel|bias)', 'column'),
    (r'.*/(out|c_proj)/kernel', 'row'),
    (r'.*/(kernel|embedding)', 'fsdp'),
    (r'.*', 'replicate'),
  )
  """(regex over state names, placement); the first match counts; see parallel.mesh.spec_of."""
  checkpoint: Checkpoint = Checkpoint()
  log_steps: Positive = 20        # updates between log rows, where the host waits for the device
  eval: Eval = Eval()
  profile: Profile = Profile()
  report: bool = True             # write workdir/report at the end


def get_config() -> Any:
  """Returns the default config of a run, a ConfigDict with the fields of `Run`."""
  return _to_config_dict(Run())


def type_hints(section: Any) -> Mapping[str, Any]:
  """Returns the annotated type of each field of a section, or of its class."""
  section = section if isinstance(section, type) else type(section)
  return get_type_hints(section, include_extras=True)


def _to_config_dict(section: Any) -> config_dict.ConfigDict:
  """Copies a dataclass and those inside it into a ConfigDict, in the order of fields."""
  c = config_dict.ConfigDict()
  for field in dataclasses.fields(section):
    value = getattr(section, field.name)
    if dataclasses.is_dataclass(value):
      value = _to_config_dict(value)
    elif isinstance(value, Mapping):
      value = config_dict.ConfigDict(dict(value))
    elif value is None:
      value = config_dict.placeholder(str)         # of the fields only model.remat may be None
    c[field.name] = value
  return c
