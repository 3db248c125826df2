import pathlib
import sys

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # `import videos` in any test
flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl's flags
