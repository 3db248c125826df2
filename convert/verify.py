"""Comparison of a model with its PyTorch peer, transformers.XCLIPModel, layer by layer."""

import dataclasses
import functools
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from xclip_jax.errors import UserError
from xclip_jax.models.config import XCLIPConfig
from xclip_jax.models.xclip import XCLIP
from xclip_jax.parallel import tree_names
from xclip_jax.text import tokenizer
from xclip_jax.weights import apply, hub, native
from xclip_jax.weights.export import formats

GRADIENT_TOLERANCE = 1e-3       # share of the largest value in the gradient of a parameter
_SMALL, _SMALL_FOR_GRADS = 10_000_000, 30_000_000       # parameters
_TEXTS = (
  'dog', 'a person playing the guitar on a stage', 'riding a bike', 'a video of somebody who is '
  'cutting vegetables into very small pieces in a kitchen', 'swimming backstroke',
)
# Full optimization even where the environment asks for less, as the tests do.
_jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 3})
# Gradients that are zero in exact arithmetic, so that both models have rounding errors only:
# softmax ignores a shift of its row (key biases), and in block 0 all messages are equal.
_ZERO_GRADIENTS = r'.*/key/bias|vision/blocks_0/message_attn/(query|key)/.*'


@dataclasses.dataclass(frozen=True)
class Row:
  """The largest difference between two tensors, and the largest magnitude of the peer's."""

  name: str
  difference: float
  magnitude: float


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Holds the result of `compare`."""

  peer: str                        # libraries and their versions
  parameters: int
  round_trip: Row                  # our parameters -> Hugging Face's files -> our parameters
  layers: tuple[Row, ...]          # in the order of computation, the logits last
  gradients: tuple[Row, ...]       # worst first; empty if they were not compared

  def tolerance(self, asked: float | None = None) -> float:
    """Returns the largest difference of a logit that passes."""
    return asked if asked is not None else 1e-5 if self.parameters < _SMALL else 1e-4

  def failures(self, tolerance: float | None = None) -> list[str]:
    """Returns a line for each tensor that differs by too much."""
    lines, tolerance = [], self.tolerance(tolerance)
    if self.round_trip.difference != 0:
      lines.append(f'{self.round_trip.name} came back changed by {self.round_trip.difference:.1e}')
    logits = self.layers[-1]
    if not logits.difference <= tolerance:        # a NaN fails too
      lines.append(f'logits by {logits.difference:.1e}, more than {tolerance:g}')
    return lines + [
      f'gradient of {row.name} by {row.difference:.1e}, its largest number is {row.magnitude:.1e}'
      for row in self.gradients if not row.difference <= GRADIENT_TOLERANCE * row.magnitude
    ]


def require_peer() -> str:
  """Returns the peer's libraries and versions; raises UserError if they are not installed."""
  try:
    import torch
    import transformers
    from transformers import XCLIPModel  # noqa: F401, needs torch
  except ImportError as error:
    raise UserError(
      f"verify compares with PyTorch, which is not installed: pip install 'xclip-jax[parity]' "
      f'({error})'
    ) from error
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  return f'transformers {transformers.__version__}, torch {torch.__version__}'


def compare(weights: native.Weights, seed: int = 0, grads: bool | None = None) -> Comparison:
  """Runs both models on the same random videos and texts, in float32, and compares all layers.

  The peer reads the Hugging Face folder that `formats.save` writes.

  Args:
    weights: weights of any origin.
    seed: seed of the inputs.
    grads: compare the gradient of every parameter too; by default for small models.

  Raises:
    UserError: the peer is not installed, or cannot express this architecture.
  """
  peer = require_peer()
  config = dataclasses.replace(
    weights.config, dtype='float32', residual_dtype='float32', attention='xla', remat=None
  )
  flat = tree_names.flatten(weights.params)
  count = sum(x.size for x in flat.values())
  grads = count < _SMALL_FOR_GRADS if grads is None else grads
  video, token_ids, target = make_inputs(weights, seed)
  with tempfile.TemporaryDirectory() as folder:
    folder = formats.save(weights, 'hf', Path(folder) / 'hf')
    again = tree_names.flatten(hub.read(folder).params)
    theirs, their_grads = _run_peer(folder, video, token_ids, target if grads else None)
  name = max(flat, key=lambda k: _difference(again[k], flat[k]))
  round_trip = Row(name, _difference(again[name], flat[name]), _largest(flat[name]))
  ours = _run(config, weights.params, video, token_ids)
  layers = tuple(
    Row(name, _difference(ours[name].reshape(x.shape), x), _largest(x))
    for name, x in theirs.items()
  )
  gradients = ()
  if grads:
    got = _gradients(config, weights.params, video, token_ids, target)
    gradients = _compare_gradients(got, tree_names.flatten(
      apply.to_params(their_grads, 'huggingface', config)))
  return Comparison(peer, count, round_trip, layers, gradients)


def make_inputs(
  weights: native.Weights, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Draws videos, texts and target distributions for both models.

  Returns:
    Videos float32 [B, T, H, W, 3], random pixels normalised as the weights' preprocessing says;
    token ids int32 [K, S] of texts of different lengths; target distributions float32 [B, K].
  """
  c, rng = weights.config, np.random.default_rng(seed)
  pixels = rng.integers(0, 256, (2, c.num_frames, c.image_size, c.image_size, 3))
  mean, std = (np.array(x, np.float32) for x in (weights.preprocess.mean, weights.preprocess.std))
  if c.vocab_size == tokenizer.Tokenizer.vocab_size:
    token_ids = tokenizer.Tokenizer(c.context_length)(_TEXTS, truncate=True)
  else:
    token_ids = rng.integers(1, c.vocab_size - 1, (5, c.context_length), np.int32)
    ends = np.linspace(1, c.context_length - 1, len(token_ids)).astype(int)
    for row, end in zip(token_ids, ends, strict=True):
      row[end:] = 0
      row[end] = c.vocab_size - 1
  target = rng.dirichlet(np.ones(len(token_ids)), 2).astype(np.float32)
  return ((pixels - mean) / std).astype(np.float32), token_ids, target


def _run(
  config: XCLIPConfig, params: Any, video: np.ndarray, token_ids: np.ndarray
) -> dict[str, np.ndarray]:
  """Returns our output of every layer by name."""
  out, captured = _jit(lambda p, v, t: XCLIP(config).apply(
    {'params': p}, v, t, capture_intermediates=True, mutable='intermediates'
  ))(params, video, token_ids)
  layers = {
    key.replace('/__call__/0', ''): np.asarray(x)
    for key, x in tree_names.flatten(captured['intermediates']).items()
  }
  unit = lambda x: np.asarray(x) / np.linalg.norm(x, axis=-1, keepdims=True)
  return layers | {
    'frame features': np.asarray(out.frame_features),
    'video features': np.asarray(out.video_features),
    'text features': np.asarray(out.text_features),
    'text features that saw the video': unit(out.conditioned_text_features),
    'logits': np.asarray(out.logits),
  }


def _run_peer(
  folder: Path, video: np.ndarray, token_ids: np.ndarray, target: np.ndarray | None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """Returns the peer's output of every layer under our names, and its gradients under its names."""
  import torch
  import transformers

  model = transformers.XCLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
  layers, modules = {}, {
    'vision/patch_embed': model.vision_model.embeddings.patch_embedding,
    'vision/ln_pre': model.vision_model.pre_layernorm,
    **_numbered('vision/blocks', model.vision_model.encoder.layers),
    'vision/ln_post': model.vision_model.post_layernorm,
    'frame features': model.visual_projection,
    **_numbered('mit/blocks', model.mit.encoder.layers),
    'video features': model.mit,
    'prompt/visual_ln': model.prompts_visual_layernorm,
    **_numbered('text/blocks', model.text_model.encoder.layers),
    'text/ln_final': model.text_model.final_layer_norm,
    'text features': model.text_projection,
    **_numbered('prompt/blocks', model.prompts_generator.decoder),
    'prompt': model.prompts_generator,
  }
  for name, module in modules.items():
    module.register_forward_hook(functools.partial(_record, layers, name))
  with torch.set_grad_enabled(target is not None):
    out = model(
      input_ids=torch.from_numpy(token_ids.astype(np.int64)),
      pixel_values=torch.from_numpy(np.ascontiguousarray(video.transpose(0, 1, 4, 2, 3))),
    )
    layers['text features that saw the video'] = out.text_embeds.detach().numpy()
    layers['logits'] = out.logits_per_video.detach().numpy()
    if target is None:
      return layers, {}
    torch.nn.functional.cross_entropy(out.logits_per_video, torch.from_numpy(target)).backward()
  return layers, {name: p.grad.numpy() for name, p in model.named_parameters()}


def _numbered(name: str, modules: Any) -> dict[str, Any]:
  return {f'{name}_{i}': module for i, module in enumerate(modules)}


def _record(layers: dict[str, np.ndarray], name: str, _: Any, inputs: Any, output: Any) -> None:
  if name == 'video features':
    output = output.pooler_output
  output = output[0] if isinstance(output, tuple) else output
  if name == 'vision/patch_embed':
    output = output.flatten(2).transpose(1, 2)      # [B*T, D, rows, columns] -> [B*T, M, D]
  layers[name] = output.detach().numpy()


def _gradients(
  config: XCLIPConfig, params: Any, video: np.ndarray, token_ids: np.ndarray, target: np.ndarray
) -> dict[str, np.ndarray]:
  """Returns the gradient of a cross entropy with respect to every parameter, by name."""
  def loss(params: Any) -> jax.Array:
    out: Any = XCLIP(config).apply({'params': params}, video, token_ids)
    return optax.softmax_cross_entropy(out.logits, target).mean()

  return {k: np.asarray(x) for k, x in tree_names.flatten(_jit(jax.grad(loss))(params)).items()}


def _compare_gradients(
  ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> tuple[Row, ...]:
  """Compares all gradients; those that are zero in theory count relative to the largest of all."""
  largest = max(map(_largest, theirs.values()))
  rows = [
    Row(name, _difference(ours[name], x),
        largest if tree_names.matches(_ZERO_GRADIENTS, name) else _largest(x))
    for name, x in theirs.items()
  ]
  return tuple(sorted(rows, key=_badness, reverse=True))


def _badness(row: Row) -> float:
  relative = row.difference / max(row.magnitude, 1e-30)
  return math.inf if math.isnan(relative) else relative


def _difference(a: np.ndarray, b: np.ndarray) -> float:
  return float(np.abs(a - b).max())


def _largest(x: np.ndarray) -> float:
  return float(np.abs(x).max())


def show(result: Comparison) -> str:
  """Returns a comparison as a table, with the worst gradient below it."""
  width = max(len(row.name) for row in result.layers)
  lines = [f'{result.peer}; {result.parameters:,} parameters, float32', '',
           f'{"output of":<{width}}  largest difference  largest value']
  lines += [f'{row.name:<{width}}  {row.difference:>18.1e}  {row.magnitude:>13.4g}'
            for row in result.layers]
  lines += ['', 'parameters written and read again: ' + (
    'equal bit for bit' if result.round_trip.difference == 0 else
    f'{result.round_trip.name} differs by {result.round_trip.difference:.1e}')]
  if result.gradients:
    row = result.gradients[0]
    lines.append(
      f'worst of {len(result.gradients)} gradients: {row.name}, {row.difference:.1e} of '
      f'{row.magnitude:.1e} ({row.difference / max(row.magnitude, 1e-30):.1e})'
    )
  return '\n'.join(lines)
