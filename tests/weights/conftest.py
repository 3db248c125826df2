import pytest

import torch_files

pytest.register_assert_rewrite('archive_checks')
WRITERS = {'zip': torch_files.write_zip, 'legacy': torch_files.write_legacy}


@pytest.fixture(params=WRITERS)
def write(request, tmp_path):
  return lambda tree, **options: WRITERS[request.param](tmp_path / 'a.pt', tree, **options)


@pytest.fixture
def zipped(tmp_path):
  return torch_files.write_zip(tmp_path / 'a.pt', torch_files.TENSORS)
