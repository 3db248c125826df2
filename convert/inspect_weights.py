"""What a file or folder with weights holds, told from names and shapes alone."""

import collections
import dataclasses
import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert import export
from xclip_jax.errors import UserError
from xclip_jax.models.config import VARIANTS, XCLIPConfig
from xclip_jax.parallel import tree_names
from xclip_jax.weights import apply, architecture, hub, native, opening, rules
from xclip_jax.weights.files import archive

_PARTS = (
  (r'vision/blocks_.*/message_.*', 'message'), (r'vision/.*', 'vision'), (r'mit/.*', 'mit'),
  (r'prompt/.*', 'prompt'), (r'text/.*', 'text'), (r'logit_scale', 'logit_scale'),
)
_UNKNOWN, _IGNORED = 'unknown names', 'not parameters'
_RULE = f'the rule width // {architecture.HEAD_WIDTH}'


@dataclasses.dataclass
class Description:
  """What there is to say of weights; everything in it can be written as JSON."""

  source: str
  files: list[str]
  kind: str                     # of archive, or 'native folder', or 'run'
  dialect: str
  bytes: int                    # of the files
  tensors: int
  dtypes: dict[str, int]        # name -> how many tensors
  parameters: dict[str, int]    # part -> how many numbers
  config: dict[str, Any] | None
  variant: str | None           # the published size that it is, but for the number of frames
  heads: dict[str, dict[str, Any]]
  preprocess: dict[str, Any] | None
  template: str
  licence: str
  known: dict[str, Any] | None  # the row of hub.KNOWN
  also_holds: dict[str, str]
  problems: list[str]
  notes: list[str]


def describe(source: str) -> Description:
  """Looks into whatever `inference.open_weights` opens, without converting an array.

  Weights that do not fit or lack a head count are described too: what is wrong is in `problems`.

  Raises:
    ValueError: there is nothing of that name, or it holds no weights of CLIP or X-CLIP.
  """
  folder = Path(source).expanduser()
  if (folder / 'checkpoints').is_dir() or (folder / 'metrics.jsonl').is_file():
    return _describe_ours(source, folder, opening.open_weights(source), 'run')
  path = hub.locate(source)
  if path.is_dir() and native.is_native(path):
    return _describe_ours(source, path, native.read(path), 'native folder')
  return _describe_foreign(source, path)


def _describe_ours(source: str, path: Path, weights: native.Weights, kind: str) -> Description:
  flat = tree_names.flatten(weights.params)
  files = sorted(p for p in path.rglob('*') if p.is_file()) if kind != 'run' else []
  came = f' (from {weights.source}, {weights.dialect})' if weights.dialect != 'native' else ''
  return Description(
    source=source, files=[str(p) for p in files], kind=kind, dialect='native',
    bytes=sum(p.stat().st_size for p in files), tensors=len(flat),
    dtypes=_count(str(x.dtype) for x in flat.values()),
    parameters=_count_parts((tree_names.match(k, _PARTS), x.size) for k, x in flat.items()),
    config=dataclasses.asdict(weights.config), variant=_variant(weights.config),
    heads=_heads(weights.config, 'config.json', tuple(architecture.WIDTHS)),
    preprocess=dataclasses.asdict(weights.preprocess), template=weights.template,
    licence=weights.licence, known=None, also_holds={}, problems=[],
    notes=[*weights.notes, *([f'converted{came}'] if came and kind != 'run' else [])],
  )


def _describe_foreign(source: str, path: Path) -> Description:
  path, config_file = hub.find_files(path)
  contents = archive.read(path)
  state, rest = archive.state_dict(contents)
  problems, notes = [], []
  try:
    dialect = apply.detect_dialect(state)
  except ValueError as error:
    raise UserError(f'{path}: {error}') from error
  known, is_clip = hub.KNOWN.get(source), dialect in rules.CLIP_DIALECTS
  frames = known.num_frames if known else 8
  # Where the config beside the weights contradicts them, the weights alone still tell most of it.
  config = None
  for file in dict.fromkeys((config_file, None)):
    try:
      content = native.read_json(file) if file else None
      config = architecture.infer_config(state, dialect, content, frames)
      config_file = file
      break
    except ValueError as error:
      problems.append(str(error))
  preprocess = known.preprocess if known else native.REFERENCE
  if config:
    problems += _misfits(state, dialect, config)
    if dialect == 'huggingface':
      preprocess = hub.read_preprocess(path.parent / 'preprocessor_config.json', config.image_size)
  if is_clip:
    notes.append('weights of CLIP: message, integration and prompt modules will be drawn when read')
    if not config_file and contents.kind != 'torchscript':
      notes.append('no config beside the weights: QuickGELU is assumed')
  files = [path, *(file for file in contents.files if file != path)]
  return Description(
    source=source, files=[str(p) for p in files], kind=contents.kind, dialect=dialect,
    bytes=sum(p.stat().st_size for p in files), tensors=len(state), dtypes=_dtypes(contents, state),
    parameters=_count_parts((_part(k, dialect), x.size) for k, x in state.items()),
    config=dataclasses.asdict(config) if config else None,
    variant=_variant(config) if config else None,
    heads=_heads(
      config, config_file.name if config_file else _RULE,
      ('vision', 'text') if is_clip else tuple(architecture.WIDTHS)
    ) if config else {},
    preprocess=dataclasses.asdict(preprocess), template='{}',
    licence=known.licence if known else 'unknown', known=known._asdict() if known else None,
    also_holds={str(k): _summary(v) for k, v in rest.items() if k != '__metadata__'},
    problems=problems, notes=notes,
  )


def _part(key: str, dialect: str) -> str:
  if any(tree_names.matches(pattern, key) for pattern in rules.IGNORED):
    return _IGNORED
  for rule in rules.DIALECTS[dialect]:
    if tree_names.matches(re.escape(rule.theirs).replace(r'\{i\}', r'\d+'), key):
      return tree_names.match(rule.ours[0].replace('{i}', '0'), _PARTS)
  return _UNKNOWN


def _misfits(state: Mapping[str, np.ndarray], dialect: str, config: XCLIPConfig) -> list[str]:
  """Lists what conversion would refuse."""
  if dialect in rules.CLIP_DIALECTS:      # completing them to an X-CLIP takes random numbers
    unknown = [key for key in state if _part(key, dialect) == _UNKNOWN]
    return [f'unknown key {key!r}' for key in unknown]
  # One number seen through every shape: nothing of the file is read.
  shapes = {key: np.broadcast_to(np.float32(0), x.shape) for key, x in state.items()}
  try:
    apply.to_params(shapes, dialect, config)
  except ValueError as error:
    return [line.strip() for line in str(error).splitlines()[1:]]
  return []


def _heads(config: XCLIPConfig, told_by: str, towers: tuple[str, ...]) -> dict[str, dict]:
  found = {}
  for tower, field in architecture.WIDTHS.items():
    heads, width = getattr(config, f'{tower}_heads'), getattr(config, field)
    reference = width // architecture.HEAD_WIDTH or None       # none: narrower than one head
    found[tower] = {
      'heads': heads, 'width': width, 'told_by': told_by if tower in towers else _RULE,
      'reference': reference, 'agrees': reference in (None, heads),
    }
  return found


def _variant(config: XCLIPConfig) -> str | None:
  shape = lambda c: {
    k: v for k, v in vars(c).items()
    if not k.endswith('_heads') and k not in (
      'num_frames', 'dtype', 'residual_dtype', 'attention', 'remat', 'drop_path', 'prompt_alpha')
  }
  return next((name for name, c in VARIANTS.items() if shape(c) == shape(config)), None)


def _dtypes(contents: archive.Contents, state: Mapping[str, np.ndarray]) -> dict[str, int]:
  if contents.kind != 'safetensors':
    return _count(str(x.dtype) for x in state.values())
  # Reading widens bfloat16, so ask the files themselves.
  found = []
  for file in contents.files:
    if file.suffix == '.json':
      continue
    with open(file, 'rb') as opened:
      header = json.loads(opened.read(struct.unpack('<Q', opened.read(8))[0]))
    found += [entry['dtype'] for name, entry in header.items() if name != '__metadata__']
  names = {'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16', 'F64': 'float64', 'I64': 'int64'}
  return _count(names.get(x, x) for x in found)


def _count(names: Any) -> dict[str, int]:
  return dict(collections.Counter(names).most_common())


def _count_parts(sizes: Any) -> dict[str, int]:
  order = [*dict.fromkeys(part for _, part in _PARTS), _IGNORED, _UNKNOWN]
  counts = collections.Counter()
  for part, size in sizes:
    counts[part] += int(size)
  parameters = {part: counts[part] for part in order if part in counts}
  total = sum(n for part, n in parameters.items() if part != _IGNORED)
  return {'total': total, **parameters}


def _summary(value: Any) -> str:
  """Says in a few words what something that is not a parameter is."""
  if value is None or isinstance(value, bool | int | float | str):
    return repr(value)[:80]
  if isinstance(value, np.ndarray):
    return f'{value.dtype} {list(value.shape)}'
  if isinstance(value, archive.Inert):
    return f'{value.name} (not rebuilt)'
  if isinstance(value, Mapping):
    return f'dict of {len(value)}: {", ".join(map(str, list(value)[:5]))}'[:80]
  return f'{type(value).__name__} of {len(value)}' if hasattr(value, '__len__') else (
    type(value).__name__)


def show(d: Description) -> str:
  """Writes a description for people."""
  lines = [f'{d.source}']
  row = lambda name, value: lines.append(f'  {name:<12}{value}')
  row('kind', f'{d.kind}, {d.dialect} names' + (f', {d.bytes / 2**20:,.1f} MiB' if d.bytes else ''))
  row('tensors', f'{d.tensors}: ' + ', '.join(f'{n} {dtype}' for dtype, n in d.dtypes.items()))
  row('parameters', f'{d.parameters["total"]:,}')
  for part, n in d.parameters.items():
    if part != 'total':
      lines.append(f'    {part:<14}{n:>13,}')
  if d.config:
    c = d.config
    size = d.variant or 'no published size'
    row('size', f'{size}, T={c["num_frames"]} frames of {c["image_size"]} pixels, '
                f'patches of {c["patch_size"]}')
    for tower in architecture.WIDTHS:
      h = d.heads[tower]
      mlp = c.get(f'{tower}_mlp', 4 * h['width'])
      lines.append(
        f'    {tower:<8}{c[f"{tower}_layers"]:>3} layers, width {h["width"]:>4}, {h["heads"]:>2} '
        f'heads ({h["told_by"]}), MLP {mlp}, {c[f"{tower}_activation"]}'
      )
    row('shared', f'embed_dim {c["embed_dim"]}, vocabulary {c["vocab_size"]}, context '
                  f'{c["context_length"]}')
    rest = ('prompt_alpha', 'drop_path', 'dtype', 'residual_dtype', 'attention', 'remat')
    row('as trained' if d.kind == 'run' else 'when run', ', '.join(f'{k} {c[k]}' for k in rest))
  if d.preprocess and d.config:
    preprocess = native.Preprocess(**d.preprocess)
    row('preprocess', export.say_preprocess(preprocess, d.config['image_size']))
  if d.template != '{}':
    row('template', repr(d.template))
  row('licence', d.licence)
  if d.known:
    row('published', d.known['published'])
  for name, what in d.also_holds.items():
    row('also holds', f'{name}: {what}')
  for tower, h in d.heads.items():
    if not h['agrees']:
      row('! heads', f'{tower} has {h["heads"]} heads by {h["told_by"]}; the reference would have '
                     f'{h["reference"]} (--heads reference)')
  for note in d.notes:
    row('note', note)
  for problem in d.problems:
    row('! problem', problem)
  return '\n'.join(lines)

