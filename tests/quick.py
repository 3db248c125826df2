"""XLA flags of the tests: compiling is nearly all that small models cost, so it is kept short."""

from importlib import metadata

# LLVM does not optimize. And of two ways to write loops the older one is twice as fast then; since
# XLA refuses to start with a flag that it does not know, only where that one is known to be.
_OLDER = metadata.version('jax').startswith('0.10.')
# A module is compiled whole: splitting it among threads takes more CPU in all.
FLAGS = ('--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1'
         + _OLDER * ' --xla_cpu_use_fusion_emitters=false')
# What asks for full optimization again: `jax.jit(f, compiler_options=quick.OPTIMIZED)`.
OPTIMIZED = {'xla_backend_optimization_level': 3} | (
  {'xla_cpu_use_fusion_emitters': True} if _OLDER else {})
