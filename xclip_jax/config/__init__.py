"""What can be asked of a run? Every field, with its unit and default, and what makes one wrong."""

from xclip_jax.config.fields import get_config
from xclip_jax.config.validation import validate

__all__ = ['get_config', 'validate']
