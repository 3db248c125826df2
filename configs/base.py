"""The config that all others are, plus differences: every field is in xclip_jax/config/fields.py.

It is in the package so that commands have it where only that is installed.
"""

from xclip_jax.config import get_config

__all__ = ['get_config']
