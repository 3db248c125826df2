"""Imports as on a machine that lacks the packages in ABSENT_PACKAGES (a sitecustomize.py)."""

import importlib.machinery
import os
import sys

ABSENT = os.environ['ABSENT_PACKAGES'].split()


class Bare(importlib.machinery.PathFinder):
  @classmethod
  def find_spec(cls, name, path=None, target=None):
    return None if name.split('.')[0] in ABSENT else super().find_spec(name, path, target)


sys.meta_path[:] = [Bare if x is importlib.machinery.PathFinder else x for x in sys.meta_path]
