"""The rows that benchmarks/gpu.sh and benchmarks/tpu.sh measure, the most valuable first.

A row is one check or one measurement. A group is a list of rows that share a process, since a
process takes seconds to start and rows of one model share their weights. Nothing here needs jax.
"""

from typing import Any, NamedTuple

FRAMES, CLASSES = 8, 400
VARIANTS = ('B/16', 'B/32', 'L/14')             # in the order of their worth
# Videos a step on a device of 80 GiB; `batch_size` makes them fit a smaller one.
BATCH = {
  ('B/32', 'infer'): 256, ('B/32', 'train'): 128, ('B/16', 'infer'): 128, ('B/16', 'train'): 64,
  ('L/14', 'infer'): 64, ('L/14', 'train'): 16}
FULL_MEMORY = 64 << 30                          # bytes that JAX must have for them
# Attention implementations, the one expected to be the fastest first.
ATTENTION = {'gpu': ('cudnn', 'xla', 'chunked'), 'tpu': ('chunked', 'xla')}
# B/16 made small enough for any machine: every program is built and run, and no time means much.
TINY = dict(
  image_size=32, patch_size=8, embed_dim=32, vision_width=64, vision_layers=1, vision_heads=2,
  vision_mlp=128, text_width=32, text_layers=1, text_heads=2, text_mlp=64, vocab_size=64,
  context_length=8, mit_heads=2, mit_mlp=64, prompt_layers=1,
  prompt_heads=2)


class Row(NamedTuple):
  """A check or a measurement.

  Fields:
    name: the key of the row in a file of results.
    kind: which program answers it: goldens, attention, dtypes, speed, profile or peer.
    settings: arguments of that program.
    limit: seconds after which the program is ended.
  """

  name: str
  kind: str
  settings: dict[str, Any]
  limit: float = 120


def plan(platform: str, tiny: bool = False) -> list[list[Row]]:
  """Returns the groups of a platform ('gpu' or 'tpu') in the order in which they are run.

  Correctness comes first: a fast wrong number is worth nothing. Every size follows with the
  attention that is expected to be the fastest, then transformers and what is only compared.
  """
  attention = ATTENTION[platform]
  if tiny:                                       # what a CPU has, and one training step of it
    return [check_rows(platform, VARIANTS[:1], tiny),
            [*speed_rows('B/16', 'bfloat16', 'chunked', tiny),
             profile_row('B/16', 'chunked', tiny)],
            *([peer_row('B/16', step, tiny)] for step in ('train', 'infer') if platform == 'gpu'),
            speed_rows('B/16', 'bfloat16', 'xla', tiny)[:1],
            speed_rows('B/16', 'float32', 'xla', tiny)[:1]]
  best = [speed_rows(variant, 'bfloat16', attention[0], tiny) for variant in VARIANTS]
  best[0].append(profile_row(VARIANTS[0], attention[0], tiny))
  second, *last = ([speed_rows(variant, 'bfloat16', name, tiny) for variant in VARIANTS]
                   for name in attention[1:])
  float32 = speed_rows('B/32', 'float32', 'xla', tiny)
  peers = [[peer_row(variant, step, tiny)] for variant in VARIANTS for step in ('train', 'infer')]
  first, rest = (peers[:2], peers[2:]) if platform == 'gpu' else ([], [])
  return [check_rows(platform, VARIANTS, tiny), *best, *first, *second, float32, *rest,
          *(rows for groups in last for rows in groups)]


def check_rows(platform: str, variants: tuple[str, ...], tiny: bool) -> list[Row]:
  lengths = [17, 50] if tiny else [197, 50, 257]
  goldens = [
    Row('goldens float32', 'goldens', {'dtype': 'float32', 'precision': 'highest'}),
    Row('goldens float32, default precision', 'goldens',
        {'dtype': 'float32', 'precision': 'default'}),
    Row('goldens bfloat16', 'goldens', {'dtype': 'bfloat16', 'precision': 'default'})]
  attention = [
    Row(f'attention {name} {dtype}', 'attention',
        {'implementation': name, 'dtype': dtype, 'lengths': lengths})
    for name in ATTENTION[platform] for dtype in ('float32', 'bfloat16')
    if (name, dtype) not in {('cudnn', 'float32'), ('xla', 'float32')}]
  dtypes = [
    Row(f'dtypes {variant}', 'dtypes', {'model': model_fields(variant, tiny)})
    for variant in ('B/32', 'B/16') if variant in variants]
  return goldens + attention + dtypes


def speed_rows(variant: str, dtype: str, attention: str, tiny: bool) -> list[Row]:
  # Inference first: it needs less memory, so the peak of the process is that of each row in turn.
  return [
    Row(f'{variant} {step} {dtype} {attention}', 'speed',
        speed_settings(variant, step, dtype, attention, tiny), 240)
    for step in ('infer', 'train')]


def profile_row(variant: str, attention: str, tiny: bool) -> Row:
  settings = speed_settings(variant, 'train', 'bfloat16', attention, tiny)
  return Row(f'profile {variant} train bfloat16 {attention}', 'profile', settings | {'updates': 3})


def peer_row(variant: str, step: str, tiny: bool) -> Row:
  settings = speed_settings(variant, step, 'bfloat16', 'xla', tiny)
  del settings['model']['attention']             # is what transformers chooses
  how = 'eager' if tiny else 'compiled'          # a CPU compiles for minutes
  return Row(f'transformers {variant} {step} bfloat16', 'peer', settings | {'how': how}, 120)


def speed_settings(
  variant: str, step: str, dtype: str, attention: str, tiny: bool
) -> dict[str, Any]:
  model = model_fields(variant, tiny) | {
    'dtype': dtype, 'residual_dtype': dtype, 'attention': attention}
  return {'step': step, 'model': model, 'classes': 7 if tiny else CLASSES,
          'batch': 4 if tiny else BATCH[variant, step], 'sized': not tiny}


def model_fields(variant: str, tiny: bool) -> dict[str, Any]:
  return {'variant': variant, 'num_frames': FRAMES, **(TINY if tiny else {})}


def batch_size(settings: dict[str, Any], memory: int | None) -> int:
  """Returns the videos of a step, halved until they fit `memory` bytes in proportion."""
  batch, share = settings['batch'], (memory or FULL_MEMORY) / FULL_MEMORY
  while settings['sized'] and batch > 1 and batch > settings['batch'] * share:
    batch //= 2
  return batch
