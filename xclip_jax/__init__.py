"""X-CLIP in JAX: the public surface, loaded on first use so that data workers never import jax."""

import importlib

_PUBLIC = {
  'XCLIP': 'models.xclip',
  'XCLIPConfig': 'models.config',
  'XCLIPOutput': 'models.xclip',
  'VideoFeatures': 'models.xclip',
  'VARIANTS': 'models.config',
  'make_config': 'models.config',
  'Tokenizer': 'text.tokenizer',
  'load': 'inference.classifier',
  'Classifier': 'inference.classifier',
}
__all__ = list(_PUBLIC)
__version__ = '0.1.0'


def __getattr__(name: str):
  if name not in _PUBLIC:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(f'{__name__}.{_PUBLIC[name]}'), name)


def __dir__() -> list[str]:
  return sorted(__all__)
