import time

from xclip_jax.data import workers

if __name__ == '__main__':
  list(workers.unordered(time.sleep, [0, 0, 60, 60, 60, 60], 2, None, chunk=1))
