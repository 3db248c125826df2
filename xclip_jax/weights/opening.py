"""Opens weights from anywhere: a run, a file, a folder or a name."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xclip_jax import files
from xclip_jax.errors import UserError
from xclip_jax.models.config import XCLIPConfig, config_of_run, with_available_attention
from xclip_jax.models.xclip import XCLIP
from xclip_jax.weights import hub, native, rules


def open_weights(
  source: str | os.PathLike, dtype: str | None = None, merge_tokens: int | None = None,
  **options: Any,
) -> native.Weights:
  """Reads what `load` takes, without a device: parameters are numpy arrays, as they were saved."""
  weights = _open(source, **options)
  fields = {} if dtype is None else {'dtype': 'bfloat16' if dtype == 'int8' else dtype,
                                     'int8_kernels': dtype == 'int8'}
  fields |= {} if merge_tokens is None else {'merge_tokens': merge_tokens}
  config = with_available_attention(dataclasses.replace(weights.config, **fields))
  return dataclasses.replace(weights, config=config)


def _open(source: str | os.PathLike, **options: Any) -> native.Weights:
  folder = files.as_path(source, 'weights')
  if not files.exists(folder / 'checkpoints'):
    if files.exists(folder / 'metrics.jsonl'):
      raise UserError(f'{folder} is a run without a checkpoint yet; train until one is saved')
    return hub.read(source, **options)
  weights = _read_run(folder)
  return hub.resample(weights, options.get('num_frames'), options.get('image_size'))


def open_start_weights(
  source: str | os.PathLike, config: XCLIPConfig, seed: int = 0
) -> native.Weights:
  """Reads what a model of `config` was trained from, as its run did.

  A CLIP is completed by the parts that `config` has, drawn from the run's seed.
  """
  weights = open_weights(source)
  if weights.dialect in rules.CLIP_DIALECTS and weights.config != config:
    weights = open_weights(
      source, seed=seed, new_modules=config, num_frames=config.num_frames)
  if config.logit_bias and not weights.config.logit_bias:     # its run began with some bias
    weights = dataclasses.replace(
      weights, config=dataclasses.replace(weights.config, logit_bias=True),
      params=weights.params | {'logit_bias': np.zeros((), np.float32)})
  return weights


def _read_run(workdir: Path) -> native.Weights:
  file = workdir / 'config.json'
  if not files.exists(file):
    raise UserError(f'{file} is missing, so {workdir} is not the --workdir of a run of train.py')
  from xclip_jax.storage import checkpoints as checkpoints_lib  # Orbax takes seconds to import
  from xclip_jax.storage import state
  try:
    content = native.read_json(file)
    model, data = content['model'], content['data']
    config = config_of_run(model)
    preprocess = native.Preprocess(
      tuple(data['mean']), tuple(data['std']), data['eval_resize'], 'opencv'
    )
    template = tuple(data.get('templates', ())) or data['template']
  except (ValueError, TypeError, KeyError) as error:
    raise UserError(f'{file} is not the configuration of a run: {error!r}') from error
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
