"""`xclip weights inspect` lists the tensors of any file that can be read."""

import json

import numpy as np
import pytest

import torch_files
from goldens_io import GOLDENS
from xclip_jax.cli.main import main
from xclip_jax.weights import inspection
from xclip_jax.weights.files import archive


@pytest.fixture
def inspect(capsys):
  def run(path, *options):
    code = main(['weights', 'inspect', str(path), *options])
    return code, capsys.readouterr().out

  return run


def test_a_file_of_another_kind_of_model_is_listed(inspect, tmp_path):
  path = tmp_path / 'resnet.safetensors'
  archive.write_safetensors(path, {
    'layer1.0.conv1.weight': np.zeros((8, 3, 3, 3), np.float16), 'fc.bias': np.ones(5, np.float32)})
  code, out = inspect(path)
  lines = [' '.join(line.split()) for line in out.splitlines()]
  assert code == 0
  assert 'layer1.0.conv1.weight float16 [8, 3, 3, 3]' in lines and 'fc.bias float32 [5]' in lines
  assert any(line.startswith('! problem not the names of a CLIP') for line in lines)
  code, out = inspect(path, '--json')
  description = json.loads(out)
  assert {'name': 'fc.bias', 'shape': [5], 'dtype': 'float32'} in description['entries']
  assert description['dialect'] == 'unknown' and description['config'] is None


def test_tensors_wherever_they_are_nested_are_listed(inspect, tmp_path):
  tree = {
    'epoch': 7, 'teacher': {'backbone': {'weight': torch_files.tensor(torch_files.MATRIX)}},
    'queue': [torch_files.tensor(np.zeros(3, np.int64))]}
  code, out = inspect(torch_files.write_zip(tmp_path / 'odd.pth', tree))
  lines = [' '.join(line.split()) for line in out.splitlines()]
  assert code == 0
  assert 'teacher.backbone.weight float32 [4, 6]' in lines and 'queue.0 int64 [3]' in lines
  assert 'also holds epoch: 7' in lines


def test_names_shapes_and_dtypes_of_a_model_are_listed_too(inspect):
  code, out = inspect(GOLDENS / 'hf_tiny_a')
  # More than 100 tensors: blocks that are alike are one line.
  assert code == 0 and 'logit_scale  float32 []' in out
  assert 'text_model.encoder.layers.*.layer_norm1.bias  float32 [32], 2 of them' in out
  entries = inspection.describe(str(GOLDENS / 'hf_tiny_a')).entries
  assert {'name': 'text_model.encoder.layers.1.layer_norm1.bias', 'shape': [32],
          'dtype': 'float32'} in entries


def test_a_name_cannot_move_the_cursor(inspect, tmp_path):
  path = tmp_path / 'odd.safetensors'
  archive.write_safetensors(path, {'a\x1b[2Jb': np.zeros(1, np.float32)})
  _, out = inspect(path)
  assert '\x1b' not in out and 'a\\x1b[2Jb  float32 [1]' in out


def test_a_folder_whose_preprocessing_cannot_be_followed_is_described(inspect, tmp_path):
  for name in ('config.json', 'model.safetensors'):
    (tmp_path / name).write_bytes((GOLDENS / 'hf_tiny_a' / name).read_bytes())
  (tmp_path / 'preprocessor_config.json').write_text('{"size": null}')
  code, out = inspect(tmp_path)
  assert code == 0 and '! problem   preprocessor_config.json: size is null' in out
