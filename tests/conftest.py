import os
import pathlib
import sys

from absl import flags

# Compiling is nearly all that small models cost: tell LLVM to hurry. What is compared with PyTorch
# asks for full optimization again (tests/models/test_parity.py).
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_backend_optimization_level=0'

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))                          # `import videos` in any test
sys.path.append(str(HERE.parent / 'benchmarks'))       # `import barcode_videos`
flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl's flags
