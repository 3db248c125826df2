"""The build: pyproject.toml says all but one thing, which is that a wheel holds `configs`, too."""

import pathlib

from setuptools import setup
from setuptools.command.build_py import build_py

CONFIGS = pathlib.Path('configs')


class BuildWithConfigs(build_py):
  """Puts the config files into the package, where xclip_jax.config.published looks for them."""

  def run(self):
    """Copies the package, then the config files; an editable install has them beside it."""
    super().run()
    if not self.editable_mode:
      for file in sorted(CONFIGS.glob('*.py')):
        self.copy_file(str(file), self._target(file), preserve_mode=False)

  def get_source_files(self):
    """Returns the files of a source distribution."""
    return [*super().get_source_files(), *map(str, sorted(CONFIGS.glob('*.py')))]

  def get_outputs(self, include_bytecode=True):
    """Returns the files that a build makes."""
    return [*super().get_outputs(include_bytecode), *map(self._target, CONFIGS.glob('*.py'))]

  def _target(self, file):
    folder = pathlib.Path(self.build_lib, 'xclip_jax/configs')
    self.mkpath(str(folder))
    return str(folder / file.name)


setup(cmdclass={'build_py': BuildWithConfigs})
