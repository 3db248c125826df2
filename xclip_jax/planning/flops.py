"""Operations of the model's matrix products, counted by hand, to compare times and programs with.

A multiply-add counts as 2 operations; everything but matrix products counts as 0. (Papers often
count 1 per multiply-add and call it FLOPs; X-CLIP's does.)
"""

from xclip_jax.models.config import XCLIPConfig


def encode_video(config: XCLIPConfig, train: bool = False) -> int:
  """Counts the operations that encode one video into the features that `classify` takes.

  Args:
    config: config of the model.
    train: True counts only the patches that patch dropout keeps, and no token merging.
  """
  c = config
  T, D, E = c.num_frames, c.vision_width, c.embed_dim
  M = (c.image_size // c.patch_size) ** 2
  m = max(round(M * (1 - c.patch_dropout)), 1) if train and c.patch_dropout else M
  L = 1 + m
  total = patch_embed(c) + _dense(T, D, E)
  for _ in range(c.vision_layers):
    total += _attention(T * L, T * (L + c.messages), L + c.messages, D)
    L -= 0 if train else min(c.merge_tokens, (L - 1) // 2)
    total += _mlp(T * L, D, c.vision_mlp)
    if c.messages:
      total += _dense(T, D, D) + _attention(T, T, T, D)
  if c.mit:
    total += c.mit_layers * (_attention(T, T, T, E) + _mlp(T, E, c.mit_mlp))
  if c.prompt:
    total += _dense(m, D, E)
  return total


def patch_embed(config: XCLIPConfig) -> int:
  """Counts the operations that turn the pixels of one video into tokens.

  This part of `encode_video` needs no gradient of its input.
  """
  c = config
  M = (c.image_size // c.patch_size) ** 2
  return _dense(c.num_frames * M, 3 * c.patch_size ** 2, c.vision_width)


def classify(config: XCLIPConfig, K: int, train: bool = False) -> int:
  """Counts the operations that compare one encoded video with K encoded texts."""
  c = config
  M = (c.image_size // c.patch_size) ** 2
  m = max(round(M * (1 - c.patch_dropout)), 1) if train and c.patch_dropout else M
  E = c.embed_dim
  prompt = c.prompt_layers * (_attention(K, m, m, E) + _mlp(K, E, 4 * E)) if c.prompt else 0
  return prompt + 2 * K * E


def encode_text(config: XCLIPConfig, K: int, S: int) -> int:
  """Counts the operations that encode K texts of S tokens."""
  c = config
  D = c.text_width
  block = _attention(K * S, K * S, S, D) + _mlp(K * S, D, c.text_mlp)
  return c.text_layers * block + _dense(K, D, c.embed_dim)


def train_step(config: XCLIPConfig, B: int, K: int, S: int | None = None) -> int:
  """Counts the operations of one update: forward, and twice that backward.

  Operations that `remat` repeats do not count.

  Args:
    config: config of the model.
    B: number of videos.
    K: number of texts.
    S: tokens per text if the text tower is trained; None if it is frozen.
  """
  video = encode_video(config, train=True) + classify(config, K, train=True)
  return (B * (3 * video - patch_embed(config))
          + (0 if S is None else 3 * encode_text(config, K, S)))


def _dense(rows: int, D: int, features: int) -> int:
  return 2 * rows * D * features


def _attention(queries: int, keys: int, keys_per_query: int, D: int) -> int:
  """Counts an attention layer: four projections of width D, and two products for every query."""
  products = 2 * (2 * queries * keys_per_query * D)
  return 2 * _dense(queries, D, D) + 2 * _dense(keys, D, D) + products


def _mlp(rows: int, D: int, width: int) -> int:
  return 2 * _dense(rows, D, width)
