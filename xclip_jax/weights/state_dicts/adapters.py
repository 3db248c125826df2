"""Low-rank adapters (LoRA) as PEFT writes them, merged into the model that they were trained on."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xclip_jax.errors import UserError
from xclip_jax.weights.configs import section
from xclip_jax.weights.files import archive

CONFIG = 'adapter_config.json'
FILES = ('adapter_model.safetensors', 'adapter_model.bin')
_MERGE_FIRST = ('merge it first with PEFT, model.merge_and_unload(), save the result with '
                'model.save_pretrained(FOLDER), and name that folder')
_LOW_RANK = re.compile(
  r'(?P<layer>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(\.(?!weight$|bias$)[^.]+)?'
  r'(\.(?P<part>weight|bias))?')
# Options of PEFT with which an adapter is more than a product that is added to a matrix.
_NOT_FOLLOWED = (
  'use_dora', 'use_qalora', 'use_bdlora', 'arrow_config', 'kasa_config', 'monteclora_config',
  'layer_replication', 'megatron_config', 'alora_invocation_tokens')
# Ways of drawing the first values that leave the model as it was; others move a part of it into
# the adapter, and the model on disk is no longer the one that the adapter belongs to.
_INITIALISATIONS = (None, True, False, 'gaussian', 'orthogonal', 'eva')


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter:
  """Holds an adapter and the name or path of the model that it belongs to."""

  folder: Path
  base: str
  config: Mapping[str, Any] = dataclasses.field(repr=False)
  tensors: Mapping[str, np.ndarray] = dataclasses.field(repr=False)


def find_folder(path: Path) -> Path | None:
  """Returns the folder of the adapter that `path` is, or is a file of; None if it is none."""
  folder = path if path.is_dir() else path.parent if path.name in (CONFIG, *FILES) else None
  return folder if folder and (folder / CONFIG).is_file() else None


def read(folder: Path) -> Adapter:
  """Reads an adapter.

  Raises:
    UserError: its config or its tensors are missing, or it is of a kind that is not merged here.
    ArchiveError: the file of its tensors cannot be read.
  """
  config = section.read_json(folder / CONFIG)
  base, kind = config.get('base_model_name_or_path'), config.get('peft_type')
  if not isinstance(base, str) or not base:
    raise UserError(f'{folder} is an adapter whose {CONFIG} names no base_model_name_or_path; name '
                    f'its model there, or {_MERGE_FIRST}')
  if kind != 'LORA':
    raise UserError(f'{folder} is an adapter of {base} of the kind {kind!r:.80}, only LORA is '
                    f'merged here; {_MERGE_FIRST}')
  options = [name for name in _NOT_FOLLOWED if config.get(name)]
  if config.get('init_lora_weights') not in _INITIALISATIONS:
    options.append(f'init_lora_weights {config["init_lora_weights"]!r:.80}')
  if options:
    raise UserError(f'{folder} is an adapter of {base} with {options[0]}, which is not followed '
                    f'here; {_MERGE_FIRST}')
  file = next((folder / name for name in FILES if (folder / name).is_file()), None)
  if file is None:
    raise UserError(f'{folder} is an adapter of {base} without {" or ".join(FILES)}; download it '
                    'again')
  contents = archive.read(file)
  tensors, _ = archive.state_dict(contents)
  contents.check(tensors.values())
  return Adapter(folder, base, config, tensors)


def find_base(adapter: Adapter) -> str:
  """Returns the name or path of an adapter's model; a path may start from the adapter's folder."""
  paths = [Path(adapter.base), adapter.folder / adapter.base, adapter.folder.parent / adapter.base]
  return str(next((path for path in paths if path.exists()), adapter.base))


def explain_unopened(adapter: Adapter, reason: UserError) -> UserError:
  """Returns the error that the model of an adapter cannot be opened."""
  return UserError(
    f'{adapter.folder} is an adapter of {adapter.base}, which cannot be opened: {reason}. Name '
    f'where it is as base_model_name_or_path in {CONFIG}, or {_MERGE_FIRST}')


def merge(state: Mapping[str, np.ndarray], adapter: Adapter) -> dict[str, np.ndarray]:
  """Adds an adapter to the parameters of its model, as merge_and_unload of PEFT does.

  Args:
    state: foreign names -> arrays.
    adapter: whose tensors refer to these names.

  Returns:
    The same names; merged arrays are float32.

  Raises:
    UserError: a tensor of the adapter fits none of the parameters.
  """
  merged = dict(state)
  pairs: dict[tuple[str, ...], dict[str, np.ndarray]] = {}
  for key, array in adapter.tensors.items():
    match = _LOW_RANK.fullmatch(key)
    if match:
      kind = 'bias' if match['part'] == 'bias' else match['kind'] or ''
      pairs.setdefault((match['layer'], kind), {})[match['side']] = array
    else:                     # a parameter that was trained as a whole: modules_to_save, or a bias
      _put(adapter, merged, [key], array, lambda old, new: new)
  for (layer, kind), pair in pairs.items():
    try:
      rank = pairs[layer, '' if kind == 'bias' else kind]['A'].shape[0]
      change = _scale(adapter, layer, rank) * _change(pair, kind)
    except (LookupError, ValueError, TypeError, ArithmeticError) as error:
      raise UserError(f'{adapter.folder}: the two matrices of {layer!r:.200}, or their scale in '
                      f'{CONFIG}, do not fit together ({error}); {_MERGE_FIRST}') from error
    ends = ('.bias',) if kind == 'bias' else ('.weight', '.in_proj_weight')
    _put(adapter, merged, [layer + end for end in ends], change, np.add)
  return merged


def _change(pair: Mapping[str, np.ndarray], kind: str) -> np.ndarray:
  """Returns what the two matrices of a layer add to it, but for the scale."""
  b = np.asarray(pair['B'], np.float32)
  if kind == 'bias':
    return b
  a = np.asarray(pair['A'], np.float32)
  if a.ndim == 4:                                   # a convolution, and one of 1 x 1 after it
    return (b.reshape(b.shape[:2]) @ a.reshape(len(a), -1)).reshape(len(b), *a.shape[1:])
  return (b @ a).T if kind else b @ a               # a table of embeddings is [in, out]


def _scale(adapter: Adapter, layer: str, rank: int) -> float:
  """Returns alpha / rank, or alpha over the root of the rank, by the patterns of the config."""
  patterns = adapter.config.get('alpha_pattern') or {}
  alpha = next((patterns[x] for x in patterns if re.fullmatch(rf'(.*\.)?({x})', layer)),
               adapter.config['lora_alpha'])
  return alpha / (math.sqrt(rank) if adapter.config.get('use_rslora') else rank)


def _put(
  adapter: Adapter, state: dict[str, np.ndarray], names: list[str], array: np.ndarray,
  combine: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> None:
  """Changes the parameter that the adapter calls by one of `names`, without what wraps the model.

  What an adapter wraps has other parts before its name: 'base_model.model.' at least.
  """
  for name in (name.replace('.base_layer', '') for name in names):
    while name not in state and '.' in name:
      name = name.partition('.')[2]
    if name in state:
      old = np.asarray(state[name], np.float32)
      if old.shape != array.shape:
        raise UserError(
          f'{adapter.folder}: {names[0]!r:.200} is {list(array.shape)}, and {name!r:.200} of '
          f'{adapter.base} is {list(old.shape)}; {_MERGE_FIRST}')
      state[name] = combine(old, np.asarray(array, np.float32))
      return
  raise UserError(f'{adapter.folder}: {adapter.base} has no parameter for {names[0]!r:.200}; '
                  f'{_MERGE_FIRST}')
