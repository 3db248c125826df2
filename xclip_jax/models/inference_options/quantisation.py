"""Kernels in the dtype of inference: bfloat16, or 8-bit integers with a scale for each output."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from xclip_jax.models.config import DTYPES, XCLIPConfig


def cast_for_inference(params: Any, config: XCLIPConfig) -> Any:
  """Stores kernels in the compute dtype (or int8), so that no call has to convert them.

  In bfloat16 results are the same to the bit and kernels take half the memory. With `int8_kernels`
  the kernels of affine maps become integers from -127 to 127 with a float32 scale for each output
  (`kernel_scale`): half the memory again, at the price of rounding.
  """
  cast = {}
  for name, x in params.items():
    if isinstance(x, Mapping):
      cast[name] = cast_for_inference(x, config)
    elif name != 'kernel' or x.dtype == jnp.int8:
      cast[name] = x
    elif config.int8_kernels and x.ndim == 2:
      kernel = np.asarray(x, np.float32)
      scale = np.maximum(np.abs(kernel).max(axis=0), 1e-12) / 127
      cast[name] = np.round(kernel / scale).astype(np.int8)
      cast['kernel_scale'] = scale.astype(np.float32)
    else:
      cast[name] = x.astype(DTYPES[config.dtype], copy=False)   # a kernel mapped from a file stays
  return cast
