"""Every field with its default; xclip_jax/config/fields.py explains each.

  xclip train --config base --workdir runs/mine --config.data.root=/data/mine
"""

from xclip_jax.config import get_config

__all__ = ['get_config']
