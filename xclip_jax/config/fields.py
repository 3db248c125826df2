"""Every field of a run, in the order a run uses them. Other configs are this one plus differences.

  python train.py --config configs/demo.py --workdir runs/demo [--config.FIELD=VALUE ...]
"""

from typing import Any

from ml_collections import config_dict


def get_config() -> Any:
  c = config_dict.ConfigDict()
  c.seed = 0                              # everything random in a run derives from this number

  # --- what is learnt -----------------------------------------------------------------------------
  c.model = config_dict.ConfigDict()
  c.model.variant = 'B/32'                # a name in xclip_jax.VARIANTS
  c.model.num_frames = 8                  # T, frames a clip is sampled at
  c.model.fields = config_dict.ConfigDict()  # XCLIPConfig fields that differ from the variant
  c.model.dtype = 'float32'               # operands of matrix products: float32 | bfloat16
  c.model.residual_dtype = 'float32'      # what flows between layers: float32 | bfloat16
  c.model.attention = 'xla'               # xla | chunked (TPU) | cudnn (NVIDIA GPU, bfloat16)
  c.model.remat = config_dict.placeholder(str)   # None | 'dots' | 'nothing' (is saved)
  c.model.patch_dropout = 0.0             # share of a clip's patches left out in training; 0: none

  # --- what it learns from ------------------------------------------------------------------------
  c.data = config_dict.ConfigDict()
  c.data.name = 'files'                   # files | folder | kinetics | hmdb51 | ucf101 | ssv2 |
                                          # tfds | synthetic (rendered on first use);
                                          # docs/datasets.md
  c.data.root = ''                        # folder of the files below; synthetic: '' is a cache
  c.data.synthetic = config_dict.ConfigDict()    # arguments of data.synthetic.prepare
  c.data.train = 'train.csv'              # annotation files and class list; relative to root.
  c.data.val = 'val.csv'                  # folder: two folders; tfds: two splits (or parts,
                                          # train[:90%]); hmdb51, ucf101: not read
  c.data.classes = 'classes.csv'          # files; ssv2: labels.json; others know their classes
  c.data.videos = ''                      # kinetics, hmdb51, ucf101, ssv2: folder of the videos
  c.data.split = 1                        # hmdb51, ucf101: official split, 1 | 2 | 3 ...
  c.data.split_files = ''                 # ... and the folder of its text files
  c.data.zero_shot = ''                   # annotation file of classes never trained on ('': none)
  c.data.zero_shot_classes = ''
  c.data.zero_shot_root = ''              # folder of these two and of its videos; '': data.root
  c.data.template = '{}'                  # prompt around a class name; the reference uses it bare
  c.data.templates = ()                   # several instead: features are averaged (docs/options.md)
  c.data.descriptions = ''                # CSV name,description: texts in place of class names
  c.data.truncate_captions = False        # cut captions that are too long, instead of an error
  c.data.workers = 0                      # decoding processes on this host; 0: threads only
  c.data.threads = 4                      # decoding threads (in each worker)
  c.data.sampling = 'sparse'              # sparse (all over the video: the reference) | dense
  c.data.stride = 4                       # frames between those of a dense clip
  c.data.clip_seconds = 60.0              # a video not read by then is unreadable; 0: no limit
  c.data.max_bad_share = 0.05             # stop once more than this share of files is unreadable
  c.data.mean = (123.675, 116.28, 103.53)  # ImageNet RGB, 0..255; X-CLIP does not use CLIP's
  c.data.std = (58.395, 57.12, 57.375)
  c.data.eval_resize = 256 / 224          # short side before the crops, over image_size

  c.augment = config_dict.ConfigDict()
  c.augment.crop = 'multiscale'           # multiscale (the reference) | center
  c.augment.flip = 0.5                    # probability of a mirrored clip; 0 if left/right matter
  c.augment.color_jitter = 0.8            # probability; strengths: the reference's
  c.augment.grayscale = 0.2               # probability
  c.augment.color_on = 'auto'             # where these two happen: host | device | auto, which is
                                          # the device unless that is a CPU
  c.augment.rand_augment = 0              # operations of RandAugment on each clip; 0: off
  c.augment.rand_magnitude = 9.0          # their strength, 0..10
  c.augment.erase = 0.0                   # probability of random erasing; 0: off
  c.augment.repeats = 1                   # rows of a batch that each video drawn gets
  c.augment.reverse = False               # each clip also backwards, as the class `reverse` names
  c.augment.mixup = 0.8                   # Beta parameter of mixup; 0: off
  c.augment.cutmix = 1.0                  # Beta parameter of cutmix; 0: off
  c.augment.cutmix_share = 0.5            # probability of cutmix when both are on
  c.augment.blend_rows = 8                # batch rows that share one draw of these and are mixed
                                          # among each other; 0: all rows of a micro-batch
  c.augment.label_smoothing = 0.1

  # --- how ----------------------------------------------------------------------------------------
  c.train = config_dict.ConfigDict()
  c.train.task = 'single-label'           # what lists say of a video: single-label | multi-label
                                          # | captions; docs/train.md
  c.train.loss = 'auto'                   # softmax | sigmoid (docs/options.md) | auto, which is
                                          # sigmoid for multi-label, else softmax
  c.train.batch_size = 256                # videos an update, over all devices and micro-batches
  c.train.accumulation = 1                # micro-batches an update
  c.train.epochs = 30.0                   # passes over the training videos; `steps` overrides it
  c.train.steps = 0                       # updates; 0: from epochs
  c.train.extend_schedule = False         # a run that is there may become longer: its learning
                                          # rates are from there on those of the new length
  c.train.freeze_text = True              # text tower and logit scale fixed, as published
  c.train.init_from = ''                  # weights to start from: a run's workdir, or any file,
                                          # folder or name that xclip_jax.load takes ('': random)
  c.train.init_resample = False           # interpolate their positions to num_frames, image_size
  c.train.init_scale = (                  # (regex over parameters, multiple of the random values
    (r'.*', 1.0),                         # that they start from), first match
  )
  c.train.interpolate_up_to = 0.0         # the loss also of weights up to this share of the way
                                          # back to where the run started (Open-VCLIP: 0.6); 0: off
  c.train.interpolate_weight = 0.5        # of that loss
  c.train.distill = 0.0                   # weight of the distance to the features of the CLIP that
                                          # the run started from (FROSTER: 2); 0: off
  c.train.ema = 0.0                       # decay of a moving average of the parameters; 0: off
  c.train.average_from = 1.0              # mean of the parameters from this share of the run on
                                          # (SWA); 1: off. Either is then what is evaluated and used

  c.optim = config_dict.ConfigDict()
  c.optim.name = 'adamw'                  # adamw | lion | adafactor; see docs/options.md
  c.optim.lr = 8e-6                       # of the pretrained parts; `groups` multiplies it
  c.optim.groups = (                      # (regex over parameters, multiple of lr), first match
    (r'.*/message_.*|mit/.*|prompt/.*|distill/.*', 10.0),
    (r'.*', 1.0),
  )
  c.optim.floor = 0.01                    # lowest learning rate, over lr, the same for all groups
  c.optim.warmup_epochs = 5.0             # at most half of the run; `warmup_steps` overrides it
  c.optim.warmup_steps = 0
  c.optim.lag_steps = 1                   # micro-steps the rate lags behind (reference: 1)
  c.optim.b1 = 0.9
  c.optim.b2 = 0.98                       # adafactor: the most that its second moment keeps
  c.optim.eps = 1e-8                      # adamw only
  c.optim.weight_decay = 0.001
  c.optim.decay = (                       # (regex, multiple of weight_decay), first match
    (r'.*/(bias|scale)|.*pos_embed|.*class_embed|.*alpha|logit_bias', 0.0),
    (r'.*', 1.0),
  )
  c.optim.clip_norm = 0.0                 # global gradient norm; 0: off

  # --- where --------------------------------------------------------------------------------------
  c.mesh = config_dict.ConfigDict()
  c.mesh.data = -1                        # devices along each axis; -1: all that are left
  c.mesh.fsdp = 1                         # split large parameters too
  c.mesh.tensor = 1                       # split heads and MLPs, and not the batch
  c.mesh.dcn = 1                          # slices of a TPU, or hosts, far from each other
  c.sharding = (                          # (regex over state names, replicate | fsdp | column |
                                          # row), first match; see sharding.spec_of
    (r'.*/(query|key|value|c_fc)/(kernel|bias)', 'column'),
    (r'.*/(out|c_proj)/kernel', 'row'),
    (r'.*/(kernel|embedding)', 'fsdp'),
    (r'.*', 'replicate'),
  )

  # --- what is kept and shown ---------------------------------------------------------------------
  c.checkpoint = config_dict.ConfigDict()
  c.checkpoint.every_steps = 500
  c.checkpoint.keep_latest = 2
  c.checkpoint.keep_best = 1              # by validation top-1
  c.log_steps = 20                        # the only points where the host waits for the device
  c.eval = config_dict.ConfigDict()
  c.eval.every_steps = 0                  # 0: every epoch
  c.eval.batch_size = 64                  # clips predicted at once, over all devices; a clip is one
                                          # view of one video, see eval.clips and eval.crops
  c.eval.clips = 1                        # clips a video, probabilities averaged; at the end of a
                                          # run and with --mode eval, in between there is one view
  c.eval.views = 'centred'                # of several: centred | reference (drawn as in training)
  c.eval.crops = 1                        # of each clip: 1 (centre) | 3
  c.eval.checkpoint = 'latest'            # what --mode eval reads: latest | best
  c.profile = config_dict.ConfigDict()    # record updates with jax.profiler, in workdir/profile
  c.profile.first = 0                     # the first one to record
  c.profile.steps = 0                     # how many; 0: none
  c.report = True                         # draw workdir/report at the end
  return c
