"""Names of published weights, their files, and the reader of any file or folder with weights."""

import dataclasses
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from xclip_jax import files
from xclip_jax.assets import bundled
from xclip_jax.errors import UserError
from xclip_jax.models.config import XCLIPConfig
from xclip_jax.weights import apply, architecture, native, remote, rules
from xclip_jax.weights.configs import beside, processor, tokenizer_files
from xclip_jax.weights.configs.section import MOST, read_json
from xclip_jax.weights.files import archive
from xclip_jax.weights.native import Weights
from xclip_jax.weights.state_dicts import adapters, foreign_folders, search


class Known(NamedTuple):
  """Describes a published checkpoint; accuracies are the authors', not measured with this code."""

  variant: str                   # a name in xclip_jax.VARIANTS
  num_frames: int                # T; for CLIP, which has none: the default
  image_size: int
  preprocess: native.Preprocess
  licence: str
  published: str                 # accuracy in percent, and on what
  sha256: str = ''               # of OpenAI's files, part of their address


def _xclip(variant: str, frames: int, published: str, image_size: int = 224) -> Known:
  return Known(variant, frames, image_size, native.HUGGING_FACE, 'MIT', published)


def _openai(variant: str, sha256: str, published: str, image_size: int = 224) -> Known:
  return Known(variant, 8, image_size, native.REFERENCE, 'MIT', published, sha256)


def _open_clip(variant: str, published: str) -> Known:
  return Known(variant, 8, 224, native.REFERENCE, 'MIT', published)


# Accuracies: X-CLIP's paper and README; CLIP's paper; LAION's model cards; DataComp's paper.
_FEW = 'top-1, one view of split 1'
KNOWN: Mapping[str, Known] = {
  'microsoft/xclip-base-patch32': _xclip('B/32', 8, 'K400 80.4 top-1, 4 x 3 views'),
  'microsoft/xclip-base-patch32-16-frames': _xclip('B/32', 16, 'K400 81.1 top-1, 4 x 3 views'),
  'microsoft/xclip-base-patch16': _xclip('B/16', 8, 'K400 83.8 top-1, 4 x 3 views'),
  'microsoft/xclip-base-patch16-16-frames': _xclip('B/16', 16, 'K400 84.7 top-1, 4 x 3 views'),
  'microsoft/xclip-large-patch14': _xclip('L/14', 8, 'K400 87.1 top-1, 4 x 3 views'),
  'microsoft/xclip-large-patch14-16-frames': _xclip(
    'L/14@336', 16, 'K400 87.7 top-1, 4 x 3 views', 336),
  'microsoft/xclip-base-patch16-kinetics-600': _xclip('B/16', 8, 'K600 85.3 top-1, 4 x 3 views'),
  'microsoft/xclip-base-patch16-kinetics-600-16-frames': _xclip(
    'B/16', 16, 'K600 85.8 top-1, 4 x 3 views'),
  'microsoft/xclip-large-patch14-kinetics-600': _xclip('L/14', 8, 'K600 88.3 top-1, 4 x 3 views'),
  **{
    f'microsoft/xclip-base-patch16-{short}-{shots}-shot': _xclip(
      'B/16', 32, f'{name} {top1} {_FEW}, {shots} clips a class')
    for short, name, row in (
      ('hmdb', 'HMDB51', (53.0, 57.3, 62.8, 64.0)), ('ucf', 'UCF101', (76.4, 83.4, 88.3, 91.4)))
    for shots, top1 in zip((2, 4, 8, 16), row, strict=True)
  },
  'microsoft/xclip-base-patch16-zero-shot': _xclip(
    'B/16', 32, 'zero-shot top-1: HMDB51 44.6, UCF101 72.0, K600-new 65.2'),
  'ViT-B/32': _openai(
    'B/32', '40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af',
    'of CLIP, ImageNet zero-shot 63.2 top-1'),
  'ViT-B/16': _openai(
    'B/16', '5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f',
    'of CLIP, ImageNet zero-shot 68.6 top-1'),
  'ViT-L/14': _openai(
    'L/14', 'b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836',
    'of CLIP, ImageNet zero-shot 75.3 top-1'),
  'ViT-L/14@336px': _openai(
    'L/14@336', '3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02',
    'of CLIP, ImageNet zero-shot 76.2 top-1', 336),
  'openai/clip-vit-base-patch32': _open_clip('B/32', 'the same weights as ViT-B/32'),
  'openai/clip-vit-base-patch16': _open_clip('B/16', 'the same weights as ViT-B/16'),
  'openai/clip-vit-large-patch14': _open_clip('L/14', 'the same weights as ViT-L/14'),
  'laion/CLIP-ViT-B-32-laion2B-s34B-b79K': _open_clip(
    'B/32', 'of CLIP, ImageNet zero-shot 66.6 top-1'),
  'laion/CLIP-ViT-B-16-laion2B-s34B-b88K': _open_clip(
    'B/16', 'of CLIP, ImageNet zero-shot 70.2 top-1'),
  'laion/CLIP-ViT-L-14-laion2B-s32B-b82K': _open_clip(
    'L/14', 'of CLIP, ImageNet zero-shot 75.3 top-1'),
  'laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K': _open_clip('B/32', ''),
  'laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K': _open_clip('B/16', ''),
  'laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K': _open_clip(
    'L/14', 'of CLIP, ImageNet zero-shot 79.2 top-1'),
}

_MOST_LISTED = 20         # keys of a file in one note
_OPENAI_ADDRESS = 'https://openaipublic.azureedge.net/clip/models/{sha256}/{file}'


@dataclasses.dataclass(frozen=True)
class ReadOptions:
  """Options of reading weights; None: as the weights say.

  Fields:
    heads: where a config beside the weights disagrees with the reference's rule of width // 64:
      'file' follows the config, 'reference' the rule.
    num_frames: T; another one than the weights were trained with interpolates MIT positions. For
      weights of CLIP, which have none: the T of the model that is made of them, default 8.
    image_size: interpolates patch positions.
    seed: of the modules that weights of CLIP lack.
    new_modules: their sizes; default: the reference's.
    subtree: key or prefix of the model to take from a file that holds several, such as
      'state_dict_ema'; '.' is the model without any.
    checksums: compare the parameters with the checksums in their file, which reads it once more.
  """

  heads: str = 'file'
  num_frames: int | None = None
  image_size: int | None = None
  seed: int = 0
  new_modules: XCLIPConfig | None = None
  subtree: str | None = None
  checksums: bool = True

  def __post_init__(self):
    if self.heads not in ('file', 'reference'):
      raise UserError(f"heads must be 'file' or 'reference', got {self.heads!r}")
    for field, most in (('num_frames', MOST), ('image_size', 1 << 14)):
      value = getattr(self, field)
      if value is not None and (not isinstance(value, int) or not 1 <= value <= most):
        raise UserError(f'{field} must be a whole number from 1 to {most}, got {value!r}')


def read(source: str | os.PathLike, **options: Any) -> Weights:
  """Reads weights of any kind.

  Args:
    source: 'toy', the small model in the package; a name in KNOWN; another name on the Hugging
      Face hub (`owner/name`); a file (TorchScript archive, torch.save, safetensors, index of
      shards); or a folder (ours, or as Hugging Face, open_clip or PEFT write them).
    **options: fields of `ReadOptions`.

  Raises:
    UserError: no weights have that name, or they cannot be read or do not fit; the message says
      what to do.
  """
  chosen = ReadOptions(**options)
  name, known = os.fspath(source), KNOWN.get(os.fspath(source))
  if files.is_remote(source):
    with remote.local_copy(name) as copy:
      weights = read(copy, **options)
    return weights if weights.dialect == 'native' else dataclasses.replace(weights, source=name)
  path = locate(source)
  if path.is_dir() and native.is_native(path):
    search.check_no_subtree(source, chosen.subtree)
    weights = native.read(path, chosen.checksums)
    if chosen.heads == 'reference':
      config, told = _judge_heads(weights.config, chosen.heads)
      notes = (f'config.json {told}',) if told else ()
      weights = dataclasses.replace(weights, config=config, notes=notes)
  else:
    foreign_folders.check(path)
    adapter = adapters.find_folder(path)
    weights = _read_adapted(adapter, chosen) if adapter else _read_foreign(path, known, chosen)
    if weights.source != name and not Path(name).exists():
      weights = dataclasses.replace(weights, source=name)
  return resample(weights, chosen.num_frames, chosen.image_size)


def resample(weights: Weights, num_frames: int | None, image_size: int | None) -> Weights:
  """Interpolates positions for another number of frames or image size, and adds a note."""
  config = weights.config
  params, new = apply.resample(weights.params, config, num_frames, image_size)
  changed = tuple(
    f'{axis} positions interpolated from {old} to {now}; train the model further, or check it'
    for axis, old, now in (
      ('frame', config.num_frames, new.num_frames), ('patch', config.image_size, new.image_size))
    if old != now
  )
  return dataclasses.replace(weights, config=new, params=params, notes=weights.notes + changed)


def _read_adapted(folder: Path, options: ReadOptions) -> Weights:
  """Reads the model that an adapter was trained on, and merges the adapter into it."""
  adapter = adapters.read(folder)
  base = adapters.find_base(adapter)
  try:
    path = locate(base)
    if adapters.find_folder(path) or (path.is_dir() and native.is_native(path)):
      raise UserError(f'{path} is an adapter itself, or weights in our own format, which names '
                      'parameters otherwise')
  except UserError as error:
    raise adapters.explain_unopened(adapter, error) from error
  weights = _read_foreign(path, KNOWN.get(base), options, adapter)
  note = f'merged with the adapter {folder}, of {len(adapter.tensors)} tensors'
  return dataclasses.replace(weights, source=str(folder), notes=(*weights.notes, note))


def _read_foreign(
  path: Path, known: Known | None, options: ReadOptions, adapter: adapters.Adapter | None = None
) -> Weights:
  """Reads weights in another format than ours."""
  path = beside.find_weights(path)
  contents = archive.read(path)
  found = search.find(contents, options.subtree, options.checksums)
  dialect = found.dialect
  state = adapters.merge(found.state, adapter) if adapter else found.state
  try:
    is_clip = dialect in rules.CLIP_DIALECTS
    config_file, notes = beside.find_config(path, dialect)
    file_config = read_json(config_file) if config_file else None
    frames = options.num_frames or (known.num_frames if known else 8)
    config = architecture.infer_config(
      state, dialect, file_config, frames, config_file.name if config_file else '')
    preprocess, more = read_preprocess(path.parent, dialect, config.image_size, known)
    if dialect.startswith('huggingface'):
      tokenizer_files.check(path.parent)
  except UserError as error:
    raise UserError(f'{path}: {error}') from error
  notes = [*found.notes, *notes, *more]
  if config_file is not None:
    config, told = _judge_heads(config, options.heads)
    notes += [f'{config_file.name} {told}'] if told else []
  if is_clip and options.new_modules:
    like = {
      k: v for k, v in vars(options.new_modules).items()
      if k.split('_')[0] in ('messages', 'mit', 'prompt') or k == 'logit_bias'
    }
    config = dataclasses.replace(config, **like)
  if is_clip:
    notes += _notes_on_clip(config, options.seed)
    if file_config is None and contents.kind != 'torchscript':
      notes.append(
        'no config beside the weights: QuickGELU is assumed, as in OpenAI\'s; most models trained '
        'with open_clip use exact GELU, and then open_clip_config.json must lie beside them'
      )
  notes += _notes_on_unused(found, config)
  try:
    params = apply.to_params(state, dialect, config, options.seed)
  except UserError as error:
    raise UserError(f'{path}: {error}') from error
  return Weights(
    config, params, preprocess, source=str(path), dialect=dialect,
    licence=known.licence if known else 'unknown', notes=tuple(notes),
  )


def read_preprocess(
  folder: Path, dialect: str, image_size: int, known: Known | None
) -> tuple[native.Preprocess, list[str]]:
  """Returns how frames become input, and notes on what is not said or not followed.

  Hugging Face's X-CLIP has it in JSON beside the weights. Others are prepared as the reference
  does, also CLIP, whose modules of X-CLIP are new and see frames as X-CLIP's training does.
  """
  if dialect == 'huggingface':
    return processor.read(folder, image_size)
  described = [
    name for name in (processor.FILE, processor.NESTING_FILE) if (folder / name).is_file()]
  notes = [
    f'{", ".join(described)} beside the weights: not followed, frames are prepared as for the '
    'reference\'s X-CLIP'] if described and dialect in rules.CLIP_DIALECTS else []
  return known.preprocess if known else native.REFERENCE, notes


def _notes_on_clip(config: XCLIPConfig, seed: int) -> list[str]:
  """Returns the note on the modules that weights of CLIP lack, if the model has any."""
  parts = {'messages': 'message', 'mit': 'integration', 'prompt': 'prompt'}
  new = [name for field, name in parts.items() if getattr(config, field)]
  if not new:
    return []
  modules = f'{", ".join(new[:-1])} and {new[-1]}' if new[1:] else new[0]
  return [f'weights of CLIP: {modules} modules are new, drawn from seed {seed}; train before use']


def _notes_on_unused(found: search.StateDict, config: XCLIPConfig) -> list[str]:
  """Returns notes on what is in a file and not in the model."""
  notes = []
  unused = sorted(str(key) for key in found.rest if key != '__metadata__')
  if unused:
    more = f' and {len(unused) - _MOST_LISTED} more' if unused[_MOST_LISTED:] else ''
    notes.append(f'not used: {", ".join(unused[:_MOST_LISTED])}{more}')
  if 'logit_bias' in found.state and not config.logit_bias:
    notes.append('not used: logit_bias, which changes no softmax over labels')
  ignored = sorted(k for k in found.state if any(re.fullmatch(p, k) for p in rules.IGNORED))
  if ignored:
    notes.append(f'not parameters, not used: {", ".join(ignored)}')
  return notes


def _judge_heads(config: XCLIPConfig, heads: str) -> tuple[XCLIPConfig, str]:
  """Compares a file's head counts with the reference's; returns the config to use and a note."""
  differ = {
    k: n for k, n in architecture.reference_heads(vars(config)).items()
    if n not in (0, vars(config)[k])
  }
  if not differ:
    return config, ''
  told = ', '.join(f'{k} {vars(config)[k]} (reference: {n})' for k, n in differ.items())
  told = f'has other head counts than the reference: {told}; '
  if heads == 'reference':
    return dataclasses.replace(config, **differ), told + 'following the reference'
  return config, told + (
    "following the file, as its authors ran it; heads='reference' does otherwise")


def locate(source: str | os.PathLike) -> Path:
  """Finds the file or folder of a path or name, downloading it if need be and possible."""
  name = os.fspath(source)
  files.check_scheme(name, 'weights', bucket=False)          # `read` copies those of a bucket
  path = Path(name).expanduser()
  if path.exists():
    return path
  if name == bundled.TOY:
    return bundled.TOY_FOLDER
  if name in KNOWN and KNOWN[name].sha256:
    return _openai_file(name)
  if isinstance(source, str) and re.fullmatch(r'[\w-][\w.-]*/[\w.-]+', name) and (
      path.suffix not in ('.pt', '.pth', '.bin', '.safetensors', '.json')):
    return _hub_folder(name)
  raise UserError(
    f'{name!r} is not there: neither a file or folder, nor a name like {bundled.TOY}, '
    f'microsoft/xclip-base-patch32 or {", ".join(k for k in KNOWN if KNOWN[k].sha256)}'
  )


def _openai_file(name: str) -> Path:
  """Returns OpenAI's archive, verified, from the cache that their code uses too."""
  sha256 = KNOWN[name].sha256
  file = name.replace('/', '-') + '.pt'
  folder = Path(os.environ.get('CLIP_CACHE', '~/.cache/clip')).expanduser()
  path, address = folder / file, _OPENAI_ADDRESS.format(sha256=sha256, file=file)
  if not path.is_file():
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'{file}.{os.getpid()}.tmp')
    try:
      with urllib.request.urlopen(address, timeout=30) as response, open(temporary, 'wb') as out:
        while chunk := response.read(1 << 20):
          out.write(chunk)
      files.replace_file(temporary, path)
    except (urllib.error.URLError, OSError) as error:
      temporary.unlink(missing_ok=True)
      raise UserError(
        f'{name} is not in {folder} and cannot be downloaded ({error}). Without a network: '
        f'download {address} elsewhere and put it there as {path}'
      ) from error
  digest = files.sha256(path)
  if digest != sha256:
    raise UserError(
      f'{path} is damaged or another file: its sha256 is {digest}, OpenAI\'s {name} has {sha256}; '
      'delete it, it is then downloaded again'
    )
  return path


def _hub_folder(name: str) -> Path:
  """Returns the folder of a Hugging Face repository, from the network or else from its cache."""
  import huggingface_hub  # here: it takes a while, and files on disk do not need it
  from huggingface_hub import errors

  try:
    names = {f.rfilename for f in huggingface_hub.HfApi().model_info(name).siblings or []}
  except errors.RepositoryNotFoundError as error:
    raise UserError(
      f'{name!r} is neither a file or folder here nor a repository on the Hugging Face hub '
      '(or one that asks you to log in: huggingface-cli login)'
    ) from error
  except (OSError, errors.HfHubHTTPError, errors.OfflineModeIsEnabled) as error:
    return _cached_folder(name, error)
  except Exception as error:      # the client's own transport raises types that change by version
    return _cached_folder(name, error)
  try:
    weights = beside.choose_weights(names)
  except UserError as error:
    raise UserError(
      f'the repository {name} {error}, in a folder that you download it to') from error
  patterns = [*([weights] if weights else [x for x, _ in beside.WEIGHT_FILES]),
              *beside.DESCRIPTIONS, *(x for x in names if '-of-' in x or x.startswith('adapter_'))]
  try:
    return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
  except Exception as error:      # likewise
    return _cached_folder(name, error)


def _cached_folder(name: str, reason: Exception) -> Path:
  """Returns the folder of a repository in the cache; UserError says what to download by hand."""
  import huggingface_hub
  from huggingface_hub import errors

  try:
    return Path(huggingface_hub.snapshot_download(name, local_files_only=True))
  except (OSError, ValueError, errors.LocalEntryNotFoundError) as error:
    raise UserError(
      f'{name} is not in the cache of the Hugging Face hub and cannot be downloaded ({reason}). '
      f'Without a network: download https://huggingface.co/{name} elsewhere (config.json, '
      'preprocessor_config.json, and model.safetensors or pytorch_model.bin) into one folder and '
      'give that folder'
    ) from error
