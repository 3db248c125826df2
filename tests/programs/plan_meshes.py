import json
import sys

from xclip_jax import config
from xclip_jax.planning import plan

fields = json.loads(sys.argv[1])
for mesh in sys.argv[2:]:
  c = config.get_config()
  c.model.num_frames, c.model.fields = 2, fields
  c.train.batch_size, c.augment.blend_rows = 16, 2        # the rows of a device
  c.mesh.update({k: int(n) for k, n in (x.split('=') for x in mesh.split(','))})
  found = plan.make(c, 'cpu', classes=5)
  print(json.dumps({k: [x.count, x.bytes] for k, x in found.traffic.items()}))
