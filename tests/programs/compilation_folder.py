"""Prints the folder of compiled programs that a run chooses: compilation_folder.py WORKDIR."""

import sys

import jax

from xclip_jax import compilation_cache

compilation_cache.enable(sys.argv[1])
print(jax.config.jax_compilation_cache_dir)
