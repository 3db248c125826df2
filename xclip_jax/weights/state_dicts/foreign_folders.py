"""Folders of trainers whose weights must be put together before they can be read."""

from pathlib import Path

from xclip_jax.errors import UserError


def check(path: Path) -> None:
  """Raises UserError, with the command that makes one file, for a sharded training checkpoint."""
  folder = path if path.is_dir() else path.parent
  is_part = path.is_dir() or path.suffix == '.distcp' or path.name == '.metadata'
  if is_part and (folder / '.metadata').is_file() and any(folder.glob('*.distcp')):
    raise UserError(
      f'{folder} is a checkpoint of torch.distributed.checkpoint, in parts; make one file of it '
      f'where PyTorch is installed: python -m torch.distributed.checkpoint.format_utils '
      f'dcp_to_torch {folder} weights.pth; then name weights.pth')
  if path.is_dir() and (path / 'zero_to_fp32.py').is_file():
    raise UserError(
      f'{path} is a checkpoint of DeepSpeed, in parts; make one file of it where DeepSpeed is '
      f'installed: python {path / "zero_to_fp32.py"} {path} weights; then name the file in weights')
