"""Checks of vocabularies: the tokenizer writes texts for CLIP's, also with tokens added."""

from xclip_jax.errors import UserError

SIZE = 49408           # CLIP's: 0..49405 text, 49406 start, 49407 end
# Tokens added after CLIP's, for textual inversion or to round the size. The next larger vocabulary
# of another tokenizer is GPT-2's, 50257.
_ADDED = 512


def is_clips(size: int) -> bool:
  """Tells whether a vocabulary of this size can be CLIP's, perhaps with a few tokens added."""
  return SIZE <= size <= SIZE + _ADDED


def check(size: int, source: str = 'the model') -> None:
  """Raises UserError unless texts can be written for a vocabulary of this size.

  Args:
    size: number of tokens in the vocabulary of a model.
    source: whose vocabulary, for the message.
  """
  if not is_clips(size):
    raise UserError(
      f'{source} has a vocabulary of {size} tokens, and this program writes texts with the tokens '
      f'of CLIP, 0..{SIZE - 1}: the model belongs to another tokenizer and would read other words. '
      'Take a model with CLIP\'s tokenizer, or give token ids of your own to model.apply')
