import sys

from xclip_jax.data.video import archives

for path in sys.argv[2:]:
  for number in range(int(sys.argv[1])):
    try:
      print(path, number, hash(archives.read(f'{path}/{number}')))
    except OSError:
      print(path, number, 'refused')
