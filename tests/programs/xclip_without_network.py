"""The `xclip` command where every use of the network fails."""

import socket
import sys


def refuse(*_, **__):
  raise AssertionError('the network was used')


socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse

from xclip_jax.cli import main  # noqa: E402  (after the network is closed)

sys.exit(main.main(sys.argv[1:]))
