import gc
import os
import pathlib
import shutil
import sys
import tempfile

import jaxtyping
from absl import flags

HERE = pathlib.Path(__file__).parent
for folder in (*HERE.rglob('*/'), HERE):                # `import videos` in any test
  if any(folder.glob('*.py')):
    sys.path.insert(0, str(folder))
sys.path.append(str(HERE.parent))                       # `from benchmarks.data import ...`

import quick  # noqa: E402  (a neighbour)

os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {quick.FLAGS}'

# Shapes of annotations are checked in the tests alone, in these modules.
SHAPES_CHECKED = [*(f'xclip_jax.models.{name}' for name in (
  'attention', 'layers', 'vision', 'text', 'integration', 'prompt', 'xclip', 'inference_options',
  'training_options')), 'xclip_jax.training.objectives', 'xclip_jax.evaluation.metrics']
jaxtyping.install_import_hook(SHAPES_CHECKED, 'shape_checker.check')

# What one test compiled, in whatever process, the others read from a folder of this session.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:      # xdist's workers have it from their parent
  SHARED = tempfile.mkdtemp(prefix='xclip-compiled-')
  os.environ |= {
    'JAX_COMPILATION_CACHE_DIR': SHARED, 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
  }
else:
  SHARED = None

flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl's flags


def pytest_collection_finish():
  """Spares the collector what lives as long as the session: modules, and the tests themselves."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000, 20, 100)


def pytest_unconfigure():
  if SHARED:
    shutil.rmtree(SHARED, ignore_errors=True)
