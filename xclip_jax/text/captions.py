"""Token ids of captions."""

import numpy as np

from xclip_jax.data import Split
from xclip_jax.errors import UserError
from xclip_jax.text.tokenizer import TextTooLongError, Tokenizer, bucket


def caption_ids(split: Split, context_length: int, truncate: bool) -> np.ndarray:
  """Tokenizes the R captions of a split to int32 [R, S]; UserError names a caption too long."""
  tokenize = Tokenizer(context_length)
  try:
    return bucket(tokenize(split.captions, truncate=truncate))
  except TextTooLongError:
    for row, caption in enumerate(split.captions):
      try:
        tokenize([caption])
      except TextTooLongError as error:
        reason = error.reason.removeprefix('texts[0] ')
        raise UserError(
          f'{split.name}, row {row + 1}: the caption {reason}; shorten it, or cut such captions '
          'with config.data.truncate_captions=True') from error
    raise
