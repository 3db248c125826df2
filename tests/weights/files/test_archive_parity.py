"""PyTorch itself agrees: what it saves is read, and it loads what is written."""

import collections

import numpy as np
import pytest

from torch_files import PLAIN
from xclip_jax.weights.files import archive


@pytest.fixture
def torch_tree():
  torch = pytest.importorskip('torch')
  torch.manual_seed(0)
  base = torch.randn(6, 5)
  return {
    'plain': base, 'turned': base.t(), 'slice': base[1::2, 2:], 'expanded': base[:1].expand(9, 5),
    'half': base.half(), 'bfloat': base.bfloat16(), 'double': base.double(),
    'scalar': torch.tensor(224), 'empty': torch.zeros(0, 3), 'bool': base > 0,
    'complex': torch.complex(base, base), 'parameter': torch.nn.Parameter(base),
    **{name: torch.ones(3, dtype=getattr(torch, name)) for name in
       ('int8', 'uint8', 'int16', 'int32', 'int64', 'uint16', 'uint32', 'uint64')}}


def same_as_torch(found, tensors):
  assert list(found) == list(tensors)
  for name, tensor in tensors.items():
    tensor = tensor.detach()
    want = tensor.float().numpy() if str(tensor.dtype) == 'torch.bfloat16' else tensor.numpy()
    np.testing.assert_array_equal(found[name], want, err_msg=name)
    assert found[name].dtype == want.dtype


@pytest.mark.parity
@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('protocol', [2, 4, 5])
def test_what_torch_saves_is_read(tmp_path, torch_tree, zipped, protocol):
  torch = pytest.importorskip('torch')
  optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
  optimizer.param_groups[0]['params'][0].sum().backward()
  optimizer.step()
  path = tmp_path / 'a.pth'
  torch.save({'model': collections.OrderedDict(torch_tree), 'optimizer': optimizer.state_dict(),
              'epoch': 3, 'device': torch.device('cuda:0'), 'size': torch.Size([1, 2]),
              'dtype': torch.float16, 'best': np.float64(1)}, path,
             pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
  contents = archive.read(path)
  assert contents.kind == ('torch zip' if zipped else 'torch legacy')
  found, rest = archive.state_dict(contents)
  same_as_torch(found, torch_tree)
  assert np.shares_memory(found['plain'], found['turned'])
  assert rest['epoch'] == 3 and rest['device'] == 'cuda:0' and rest['size'] == (1, 2)
  assert rest['optimizer']['state'][0]['exp_avg'].shape == (3,) and rest['best'] == 1


@pytest.mark.parity
def test_what_torch_saves_of_a_module_is_read(tmp_path):
  torch = pytest.importorskip('torch')
  model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4)).half()
  torch.save(model.state_dict(), tmp_path / 'a.pth')
  found, rest = archive.state_dict(archive.read(tmp_path / 'a.pth'))
  same_as_torch(found, model.state_dict())
  assert rest == {}
  torch.save(model, tmp_path / 'b.pth')
  with pytest.raises(archive.ArchiveError, match='Sequential'):
    archive.state_dict(archive.read(tmp_path / 'b.pth'))


@pytest.mark.parity
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.parametrize('trace', [False, True])
def test_what_torchscript_saves_is_read(tmp_path, trace):
  torch = pytest.importorskip('torch')
  model = torch.nn.Sequential(
    torch.nn.Linear(4, 3), torch.nn.Sequential(torch.nn.LayerNorm(3), torch.nn.Linear(3, 2))).eval()
  model.register_buffer('input_resolution', torch.tensor(224))
  model = model.half() if not trace else model
  script = torch.jit.trace(model, torch.ones(1, 4)) if trace else torch.jit.script(model)
  torch.jit.save(script, str(tmp_path / 'a.pt'))
  contents = archive.read(tmp_path / 'a.pt')
  assert contents.kind == 'torchscript'
  found, _ = archive.state_dict(contents)
  want = script.state_dict()
  same_as_torch({name: found[name] for name in want}, want)
  assert set(found) == set(want)


@pytest.mark.parity
@pytest.mark.parametrize('wrap', [None, 'model'])
@pytest.mark.parametrize('mapped', [False, True])
def test_torch_loads_what_is_written(tmp_path, wrap, mapped):
  torch = pytest.importorskip('torch')
  archive.write_torch(tmp_path / 'a.pt', PLAIN, wrap)
  loaded = torch.load(tmp_path / 'a.pt', weights_only=True, mmap=mapped)
  loaded = loaded[wrap] if wrap else loaded
  assert type(loaded) is collections.OrderedDict and list(loaded) == list(PLAIN)
  for name, array in PLAIN.items():
    np.testing.assert_array_equal(loaded[name].numpy(), array)
    assert loaded[name].numpy().dtype == array.dtype
