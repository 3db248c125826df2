"""`python -m xclip_jax.cli`: the `xclip` command without its entry point on the PATH."""

import sys

from xclip_jax.cli.main import main

if __name__ == '__main__':
  sys.exit(main())
