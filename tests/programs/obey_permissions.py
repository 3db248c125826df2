"""Runs a command that may not pass over the permissions of files, even as root.

obey_permissions.py PROGRAM ARGUMENT...: gives up CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH first.
"""

import ctypes
import os
import sys

PR_CAPBSET_DROP = 24

if __name__ == '__main__':
  for capability in (1, 2):
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
  os.execv(sys.argv[1], sys.argv[1:])
