"""X-CLIP (Ni et al., ECCV 2022) in JAX: trains, evaluates and runs video-text models.

Answer what a video shows:
  import jax, xclip_jax
  model = xclip_jax.load('toy')     # or a run, a folder, a file, 'microsoft/xclip-base-patch32'
  print(model.classify('sample:ring', ['a ring growing', 'a square moving left']))
  video_features = model.embed_video(['a.mp4', 'b.mp4'])            # float32 [2, E]

Use the network itself (a flax.linen module), with the weights of `load` or with new ones:
  clip = model.preprocess('sample:ring')                            # float32 [T, H, W, 3]
  ids = xclip_jax.Tokenizer(model.config.context_length)(['a ring growing'])
  out = jax.jit(model.model.apply)({'params': model.params}, clip[None], ids)
  out.logits, out.video_features, out.text_features                 # [1, 1], [1, E], [1, E]
  net, params = xclip_jax.init('B/16', jax.random.key(0))
  net = xclip_jax.XCLIP(xclip_jax.make_config('B/16', num_frames=16))

Train and evaluate: xclip_jax.training.run, or the command `xclip --help`.

Names: load, init, Classifier, XCLIP, XCLIPConfig, make_config, VARIANTS, XCLIPOutput,
VideoFeatures, Tokenizer. Each is imported on first use, so that data workers never import jax.
"""

import importlib as _importlib
import typing as _typing

if _typing.TYPE_CHECKING:
  from xclip_jax.inference.classifier import Classifier as Classifier
  from xclip_jax.inference.classifier import load as load
  from xclip_jax.models.config import VARIANTS as VARIANTS
  from xclip_jax.models.config import XCLIPConfig as XCLIPConfig
  from xclip_jax.models.config import make_config as make_config
  from xclip_jax.models.xclip import XCLIP as XCLIP
  from xclip_jax.models.xclip import VideoFeatures as VideoFeatures
  from xclip_jax.models.xclip import XCLIPOutput as XCLIPOutput
  from xclip_jax.models.xclip import init as init
  from xclip_jax.text.tokenizer import Tokenizer as Tokenizer

__version__ = '0.1.0'
_MODULES = {
  'Classifier': 'inference.classifier',
  'Tokenizer': 'text.tokenizer',
  'VARIANTS': 'models.config',
  'VideoFeatures': 'models.xclip',
  'XCLIP': 'models.xclip',
  'XCLIPConfig': 'models.config',
  'XCLIPOutput': 'models.xclip',
  'init': 'models.xclip',
  'load': 'inference.classifier',
  'make_config': 'models.config',
}


def __getattr__(name: str):
  if name not in _MODULES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(_importlib.import_module(f'{__name__}.{_MODULES[name]}'), name)


def __dir__() -> list[str]:
  return sorted(_MODULES)
