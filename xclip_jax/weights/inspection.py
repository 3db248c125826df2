"""Descriptions of files and folders with weights, from tensor names and shapes alone."""

import collections
import dataclasses
import json
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xclip_jax.errors import UserError
from xclip_jax.models.config import VARIANTS, XCLIPConfig
from xclip_jax.parallel import tree_names
from xclip_jax.weights import apply, architecture, hub, native, opening, rules
from xclip_jax.weights.configs import beside
from xclip_jax.weights.configs.section import read_json
from xclip_jax.weights.files import archive
from xclip_jax.weights.state_dicts import adapters, foreign_folders, search

_PARTS = (
  (r'vision/blocks_.*/message_.*', 'message'), (r'vision/.*', 'vision'), (r'mit/.*', 'mit'),
  (r'prompt/.*', 'prompt'), (r'text/.*', 'text'), (r'logit_scale', 'logit_scale'),
  (r'logit_bias', 'logit_bias'),
)
# Limits of what is described of a file that is no CLIP: tensors, other values, and nesting.
_MOST_TENSORS, _MOST_LEAVES, _DEEPEST = 100_000, 100, 32
_UNKNOWN, _IGNORED = 'unknown names', 'not parameters'
_NO_CHECKSUMS = ('no checksums in {}: a damaged tensor is not noticed; compare the sha256 of the '
                 'file with its publisher\'s')
_RULE = f'the rule width // {architecture.HEAD_WIDTH}'


@dataclasses.dataclass
class Description:
  """Facts about weights, all of which JSON can hold."""

  source: str
  files: list[str]
  kind: str                     # kind of the archive, or 'native folder', or 'run'
  dialect: str                  # key of rules.DIALECTS, or 'unknown'
  bytes: int                    # size of the files together
  tensors: int
  dtypes: dict[str, int]        # dtype -> number of tensors
  entries: list[dict[str, Any]] # name, shape and dtype of every tensor, as the file has them
  parameters: dict[str, int]    # part of the model -> number of parameters
  config: dict[str, Any] | None
  variant: str | None           # the published size that the config has, whatever its frames
  heads: dict[str, dict[str, Any]]
  preprocess: dict[str, Any] | None
  template: str | tuple[str, ...]
  licence: str
  known: dict[str, Any] | None  # the row of hub.KNOWN, if the source is a published name
  also_holds: dict[str, str]
  problems: list[str]
  notes: list[str]


def describe(
  source: str, subtree: str | None = None, checksums: bool = True
) -> Description:
  """Describes whatever `opening.open_weights` opens, without converting an array.

  Weights that do not fit or lack a head count are described too, and so are the tensors of a file
  that is of no CLIP or X-CLIP; `problems` says what is wrong.

  Args:
    source: see `xclip_jax.load`.
    subtree, checksums: see `weights.hub.ReadOptions`.

  Raises:
    UserError: the source does not exist, or is no file with tensors that can be read.
  """
  folder = Path(source).expanduser()
  if (folder / 'checkpoints').is_dir() or (folder / 'metrics.jsonl').is_file():
    return _describe_own_format(source, folder, opening.open_weights(source), 'run')
  path = hub.locate(source)
  foreign_folders.check(path)
  if adapters.find_folder(path):
    return _describe_own_format(source, path, hub.read(source, subtree=subtree), 'merged adapter')
  if path.is_dir() and native.is_native(path):
    search.check_no_subtree(source, subtree)
    return _describe_own_format(source, path, native.read(path, checksums), 'native folder')
  return _describe_foreign(source, path, subtree, checksums)


def _describe_own_format(
  source: str, path: Path, weights: native.Weights, kind: str
) -> Description:
  flat = tree_names.flatten(weights.params)
  stored, notes = flat, [*weights.notes]
  if kind == 'native folder':      # reading widens float16, so the dtypes come from the file
    contents = archive.read(path / 'params.safetensors')
    stored, _ = archive.state_dict(contents)
    notes += [] if contents.checksums else [_NO_CHECKSUMS.format('an older folder')]
  dtypes = {name: str(x.dtype) for name, x in stored.items()}
  files = sorted(p for p in path.rglob('*') if p.is_file()) if kind != 'run' else []
  origin = f' (from {weights.source}, {weights.dialect})' if weights.dialect != 'native' else ''
  return Description(
    source=source, files=[str(p) for p in files], kind=kind, dialect='native',
    bytes=sum(p.stat().st_size for p in files), tensors=len(flat),
    dtypes=_count(dtypes.values()), entries=_entries(stored, dtypes),
    parameters=_count_parts((tree_names.match(k, _PARTS), x.size) for k, x in flat.items()),
    config=dataclasses.asdict(weights.config), variant=_variant(weights.config),
    heads=_heads(weights.config, 'config.json', tuple(architecture.WIDTHS)),
    preprocess=dataclasses.asdict(weights.preprocess), template=weights.template,
    licence=weights.licence, known=None, also_holds={}, problems=[],
    notes=[*notes, *([f'converted{origin}'] if origin and kind != 'run' else [])],
  )


def _describe_foreign(
  source: str, path: Path, subtree: str | None, checksums: bool
) -> Description:
  path = beside.find_weights(path)
  contents = archive.read(path)
  try:
    found = search.find(contents, subtree, checksums)
  except archive.ArchiveError:                       # damaged
    raise
  except UserError as error:
    if subtree is not None:
      raise
    return _describe_unknown(source, contents, str(error).removeprefix(f'{path}: '))
  state, dialect, rest = found.state, found.dialect, found.rest
  known, is_clip = hub.KNOWN.get(source), dialect in rules.CLIP_DIALECTS
  frames = known.num_frames if known else 8
  config_file, notes = beside.find_config(path, dialect)
  config, config_file, problems = _infer_config(state, dialect, config_file, frames)
  preprocess = None
  if config:
    problems += _misfits(state, dialect, config)
    try:
      preprocess, more = hub.read_preprocess(path.parent, dialect, config.image_size, known)
      notes += more
    except UserError as error:
      problems.append(str(error))
  if is_clip:
    notes.append('weights of CLIP: message, integration and prompt modules will be drawn when read')
    if not config_file and contents.kind != 'torchscript':
      notes.append('no config beside the weights: QuickGELU is assumed')
  if not contents.checksums:
    notes.append(_NO_CHECKSUMS.format(f'a file of the kind {contents.kind}'))
  dtypes = _stored_dtypes(contents, state)
  return Description(
    source=source, **_files(contents), kind=contents.kind, dialect=dialect,
    tensors=len(state), dtypes=_count(dtypes.values()), entries=_entries(state, dtypes),
    parameters=_count_parts((_part(k, dialect), x.size) for k, x in state.items()),
    config=dataclasses.asdict(config) if config else None,
    variant=_variant(config) if config else None,
    heads=_heads(
      config, config_file.name if config_file else _RULE,
      ('vision', 'text') if is_clip else tuple(architecture.WIDTHS)
    ) if config else {},
    preprocess=dataclasses.asdict(preprocess) if preprocess else None, template='{}',
    licence=known.licence if known else 'unknown', known=known._asdict() if known else None,
    also_holds={str(k): _summary(v) for k, v in rest.items() if k != '__metadata__'},
    problems=problems, notes=[*found.notes, *notes],
  )


def _describe_unknown(source: str, contents: archive.Contents, problem: str) -> Description:
  """Describes a file whose names are those of no CLIP or X-CLIP: its tensors, wherever they are."""
  state: dict[str, np.ndarray] = {}
  rest: dict[str, Any] = {}
  for name, value in _leaves(contents.tree):
    (state if isinstance(value, np.ndarray) else rest)[name] = value
  dtypes = _stored_dtypes(contents, state)
  return Description(
    source=source, **_files(contents), kind=contents.kind, dialect='unknown', tensors=len(state),
    dtypes=_count(dtypes.values()), entries=_entries(state, dtypes),
    parameters=_count_parts((_UNKNOWN, x.size) for x in state.values()), config=None, variant=None,
    heads={}, preprocess=None, template='{}', licence='unknown', known=None,
    also_holds={k: _summary(v) for k, v in list(rest.items())[:_MOST_LEAVES]
                if not k.startswith('__metadata__')},
    problems=[problem], notes=[],
  )


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
  """Yields dotted names and values of a nest of dicts and lists, which a file can make endless."""
  pending: list[tuple[str, Any, int]] = [('', tree, 0)]
  count = 0
  while pending and count < _MOST_TENSORS:
    name, value, depth = pending.pop()
    children: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
      children = list(value.items())
    elif isinstance(value, list | tuple):
      children = list(enumerate(value))
    if children and depth < _DEEPEST:
      pending += [(f'{name}.{key}' if name else str(key), child, depth + 1)
                  for key, child in reversed(children)]
    else:
      count += 1
      yield name, value


def _files(contents: archive.Contents) -> dict[str, Any]:
  """Returns the paths and the size of the files that were read, as fields of a Description."""
  files = list(dict.fromkeys(contents.files))
  return {'files': [str(p) for p in files], 'bytes': sum(p.stat().st_size for p in files)}


def _entries(state: Mapping[str, np.ndarray], dtypes: Mapping[str, str]) -> list[dict[str, Any]]:
  """Returns name, shape and stored dtype of every tensor, as JSON can hold them."""
  return [
    {'name': name, 'shape': list(x.shape), 'dtype': dtypes.get(name, str(x.dtype))}
    for name, x in state.items()]


def _infer_config(
  state: Mapping[str, np.ndarray], dialect: str, config_file: Path | None, num_frames: int
) -> tuple[XCLIPConfig | None, Path | None, list[str]]:
  """Infers the architecture; where the config file contradicts the weights, from them alone.

  Returns:
    The architecture if it can be told, the config file if it was of use, and the problems.
  """
  problems = []
  for file in dict.fromkeys((config_file, None)):
    try:
      content = read_json(file) if file else None
      name = file.name if file else ''
      config = architecture.infer_config(state, dialect, content, num_frames, name)
      return config, file, problems
    except UserError as error:
      problems.append(str(error))
  return None, config_file, problems


def _part(key: str, dialect: str) -> str:
  if any(tree_names.matches(pattern, key) for pattern in rules.IGNORED):
    return _IGNORED
  for rule in (*rules.DIALECTS[dialect], *rules.OPTIONAL):
    if tree_names.matches(re.escape(rule.theirs).replace(r'\{i\}', r'\d+'), key):
      return tree_names.match(rule.ours[0].replace('{i}', '0'), _PARTS)
  return _UNKNOWN


def _misfits(state: Mapping[str, np.ndarray], dialect: str, config: XCLIPConfig) -> list[str]:
  """Returns a line for each reason why conversion would refuse the weights."""
  if dialect in rules.CLIP_DIALECTS:      # completing a CLIP to an X-CLIP takes random numbers
    unknown = [key for key in state if _part(key, dialect) == _UNKNOWN]
    return [f'unknown key {key!r}' for key in unknown]
  # One zero, broadcast to the shape of every tensor: no tensor of the file is read.
  shapes = {key: np.broadcast_to(np.float32(0), x.shape) for key, x in state.items()}
  try:
    apply.to_params(shapes, dialect, config)
  except UserError as error:
    return [line.strip() for line in str(error).splitlines()[1:]]
  return []


def _heads(config: XCLIPConfig, told_by: str, towers: tuple[str, ...]) -> dict[str, dict]:
  heads_of_towers = {}
  for tower, field in architecture.WIDTHS.items():
    heads, width = getattr(config, f'{tower}_heads'), getattr(config, field)
    reference = width // architecture.HEAD_WIDTH or None       # None: narrower than a head
    heads_of_towers[tower] = {
      'heads': heads, 'width': width, 'told_by': told_by if tower in towers else _RULE,
      'reference': reference, 'agrees': reference in (None, heads),
    }
  return heads_of_towers


def _variant(config: XCLIPConfig) -> str | None:
  shape = lambda c: {
    k: v for k, v in vars(c).items()
    if not k.endswith('_heads') and k not in (
      'num_frames', 'dtype', 'residual_dtype', 'attention', 'remat', 'drop_path', 'prompt_alpha')
  }
  return next((name for name, c in VARIANTS.items() if shape(c) == shape(config)), None)


def _stored_dtypes(
  contents: archive.Contents, state: Mapping[str, np.ndarray]
) -> dict[str, str]:
  """Returns the dtype of each tensor in the file; reading has widened bfloat16 to float32."""
  dtypes = {name: str(x.dtype) for name, x in state.items()}
  if contents.kind != 'safetensors':
    return dtypes
  names = {'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16', 'F64': 'float64', 'I64': 'int64'}
  stored = {}
  for file in contents.files:
    if file.suffix == '.json':
      continue
    with open(file, 'rb') as opened:
      header = json.loads(opened.read(struct.unpack('<Q', opened.read(8))[0]))
    stored |= {
      name: names.get(entry['dtype'], entry['dtype'])
      for name, entry in header.items() if name != '__metadata__'}
  # Prefixes of wrappers are not in the names any more; then the order of the file is the same.
  renamed = dict(zip(state, stored.values(), strict=False)) if len(stored) == len(state) else {}
  return dtypes | {name: dtype for name, dtype in {**renamed, **stored}.items() if name in dtypes}


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
  """Describes a value that is not a parameter in a few words."""
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
