"""Weights from anywhere: a run, a fine-tuning, a file, a folder or a name."""

import dataclasses
import os
from typing import Any

import jax
import numpy as np

from xclip_jax import files
from xclip_jax.errors import UserError
from xclip_jax.models.config import XCLIPConfig, config_of_run, with_available_attention
from xclip_jax.models.xclip import XCLIP
from xclip_jax.weights import hub, native, rules
from xclip_jax.weights.state_dicts import search


@dataclasses.dataclass(frozen=True)
class OpenOptions(hub.ReadOptions):
  """Options of opening weights; None: as the weights say.

  Fields:
    dtype: operands of matrix products: 'float32', 'bfloat16', or 'int8', which is bfloat16 with
      kernels of 8 bits.
    merge_tokens: pairs of patches merged in each vision block (docs/speed.md).
    square_pixels: whether frames whose pixels are not square are scaled, as players do.
    others: see `weights.hub.ReadOptions`.
  """

  dtype: str | None = None
  merge_tokens: int | None = None
  square_pixels: bool | None = None


def open_weights(source: str | os.PathLike, **options: Any) -> native.Weights:
  """Reads weights from a run, a folder, a file or a name; parameters are numpy arrays.

  Args:
    source: see `xclip_jax.load`.
    **options: fields of `OpenOptions`.

  Raises:
    UserError: no weights have that name, or they cannot be read; the message says what to do.
    CheckpointError: the run has a checkpoint that cannot be read.
  """
  chosen = OpenOptions(**options)
  weights = _open(source, chosen)
  config = weights.config
  if chosen.dtype is not None:
    int8 = chosen.dtype == 'int8'
    config = dataclasses.replace(
      config, dtype='bfloat16' if int8 else chosen.dtype, int8_kernels=int8)
  if chosen.merge_tokens is not None:
    config = dataclasses.replace(config, merge_tokens=chosen.merge_tokens)
  preprocess = weights.preprocess
  if chosen.square_pixels is not None:
    preprocess = dataclasses.replace(preprocess, square_pixels=chosen.square_pixels)
  return dataclasses.replace(
    weights, config=with_available_attention(config), preprocess=preprocess)


def _open(source: str | os.PathLike, options: OpenOptions) -> native.Weights:
  folder = files.as_path(source, 'weights')
  if files.exists(folder / 'checkpoints'):
    search.check_no_subtree(source, options.subtree)
    return hub.resample(_read_run(folder), options.num_frames, options.image_size)
  if files.exists(folder / 'metrics.jsonl'):
    raise UserError(f'{folder} is a run without a checkpoint yet; train until one is saved')
  if _is_finetuning(folder):
    source = folder / 'weights'
    if not files.exists(source):
      raise UserError(
        f'{folder} is a fine-tuning that has not finished: it has no folder weights; let the same '
        f'`xclip finetune` command go on, or take its training run {folder / "run"}')
  read_options = {field.name: getattr(options, field.name)
                  for field in dataclasses.fields(hub.ReadOptions)}
  return hub.read(source, **read_options)


def _is_finetuning(folder: files.AnyPath) -> bool:
  """Tells whether `xclip finetune` has written a folder: it holds the class list and a run."""
  return files.exists(folder / 'classes.csv') and any(
    files.exists(folder / name / 'config.json') for name in ('weights', 'run'))


def open_start_weights(
  source: str | os.PathLike, config: XCLIPConfig, seed: int = 0
) -> native.Weights:
  """Reads the weights that a model of `config` started its training from.

  CLIP weights are completed by the modules that `config` has, drawn from the run's seed.
  """
  weights = open_weights(source)
  if weights.dialect in rules.CLIP_DIALECTS and weights.config != config:
    weights = open_weights(
      source, seed=seed, new_modules=config, num_frames=config.num_frames)
  if config.logit_bias and not weights.config.logit_bias:     # drawn at the start of its run
    weights = dataclasses.replace(
      weights, config=dataclasses.replace(weights.config, logit_bias=True),
      params=weights.params | {'logit_bias': np.zeros((), np.float32)})
  return weights


def _read_run(workdir: files.AnyPath) -> native.Weights:
  file = workdir / 'config.json'
  if not files.exists(file):
    raise UserError(f'{file} is missing, so {workdir} is not the --workdir of a run of train.py')
  from xclip_jax.storage import checkpoints as checkpoints_lib  # Orbax takes seconds to import
  from xclip_jax.storage import state
  config, preprocess, template = _read_run_config(file)
  abstract = jax.eval_shape(lambda: state.init_params(XCLIP(config), jax.random.key(0)))
  with checkpoints_lib.Checkpoints(workdir) as checkpoints:
    step = checkpoints.best_step()
    if step is None:
      raise UserError(
        f'{workdir / "checkpoints"} holds no checkpoint yet; train until one is saved'
      )
    params = jax.device_get(checkpoints.restore_weights(step, abstract))
  return native.Weights(
    config, params, preprocess, template, source=str(workdir), dialect='run',
    licence='yours: trained by you, from what config.json names',
  )


def _read_run_config(
  file: files.AnyPath
) -> tuple[XCLIPConfig, native.Preprocess, str | tuple[str, ...]]:
  """Returns architecture, preprocessing and template of a run's config.json.

  Raises:
    UserError: names the file and the field.
  """
  refuse = lambda reason: UserError(
    f'{file} is not the configuration of a run: {reason}; name the --workdir of a run')
  try:
    content = native.read_json(file)
  except UserError as error:
    raise refuse(error) from error
  model, data = content.get('model'), content.get('data')
  if not isinstance(model, dict) or not isinstance(model.get('fields'), dict):
    raise refuse('it has no section model with fields')
  if not isinstance(data, dict):
    raise refuse('it has no section data')
  missing = {'mean', 'std', 'eval_resize', *([] if data.get('templates') else ['template'])} - (
    data.keys())
  if missing:
    raise refuse(f'its section data has no {sorted(missing)[0]}')
  for key in ('mean', 'std'):
    if not native.is_numbers(data[key], 3):
      raise refuse(f'data.{key} must be three numbers, found {data[key]!r}')
  try:
    preprocess = native.Preprocess(
      tuple(data['mean']), tuple(data['std']), data['eval_resize'], 'opencv',
      square_pixels=data.get('square_pixels', False))
    template = native.parse_template(data.get('templates') or data['template'])
    return config_of_run(model), preprocess, template
  except (TypeError, UserError) as error:          # TypeError: a text where a number is compared
    raise refuse(error) from error
