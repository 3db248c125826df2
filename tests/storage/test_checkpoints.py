"""A damaged checkpoint is noticed, named and put aside; the run goes on from the one before."""

import pathlib
import random
import threading

import jax
import numpy as np
import optax
import pytest

import tiny
from xclip_jax.parallel import mesh as mesh_lib
from xclip_jax.storage import state
from xclip_jax.storage.checkpoints import CheckpointError, Checkpoints
from xclip_jax.training import job as job_lib
from xclip_jax.training import run as run_lib


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tiny.write_data(tmp_path_factory.mktemp('data'))


def flip(file: pathlib.Path, place: float) -> None:
  """Changes one bit; `place` is 0 to 1."""
  content = bytearray(file.read_bytes())
  content[int(place * len(content))] ^= 4
  file.write_bytes(content)


def largest(folder: pathlib.Path) -> pathlib.Path:
  return max((x for x in folder.rglob('*') if x.is_file()), key=lambda x: x.stat().st_size)


@pytest.mark.slow
def test_a_run_with_a_damaged_latest_checkpoint_goes_on_from_the_one_before(
  root, tmp_path, capfd
):
  config = tiny.config(root, train__steps=6, log_steps=1, eval__every_steps=100, report=False,
                       data__zero_shot='')
  workdir = tmp_path / 'run'
  run_lib.run(config, workdir)
  rows = (workdir / 'metrics.jsonl').read_bytes()
  flip(largest(workdir / 'checkpoints/6'), 0.5)
  with pytest.raises(CheckpointError, match=r'checkpoints/6 is damaged: .* what was saved'):
    run_lib.run(config, workdir, 'eval')
  run_lib.run(config, workdir)
  said = capfd.readouterr().err
  assert 'checkpoints/6 is damaged: ' in said and 'going on from step 3' in said
  assert (workdir / 'metrics.jsonl').read_bytes() == rows
  assert (workdir / 'damaged_checkpoints/6').is_dir()
  run_lib.run(config, workdir, 'eval')                     # the new step 6
  for step in (3, 6):
    flip(largest(workdir / 'checkpoints' / str(step)), 0.5)
  with pytest.raises(CheckpointError, match='checkpoints/6 is damaged'):
    run_lib.run(config, workdir)
  assert (workdir / 'checkpoints/6').is_dir(), 'nothing is moved where nothing can be read'


@pytest.fixture(scope='module')
def saved():
  """A state with parameters drawn at random, its shapes and its places on the mesh."""
  config = tiny.config('unused')
  abstract = state.abstract(job_lib.make_model(config), optax.sgd(0.1))
  places = mesh_lib.infer(abstract, config.sharding, mesh_lib.make_mesh({}))
  rng = np.random.default_rng(0)
  drawn = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(x.dtype), abstract)
  return jax.device_put(drawn, places), abstract, places


def test_a_file_that_was_cut_off_is_named_in_one_line(saved, tmp_path):
  want, abstract, places = saved
  with Checkpoints(tmp_path / 'a') as ckpt:
    ckpt.save(3, want, {})
  file = largest(tmp_path / 'a/checkpoints/3/state')
  file.write_bytes(file.read_bytes()[:100])
  with pytest.raises(CheckpointError) as caught, Checkpoints(tmp_path / 'a') as ckpt:
    ckpt.restore_latest(abstract, places)
  said = str(caught.value).splitlines()
  assert 'could not read the checkpoint' in said[0] and 'value of size 100' in said[0]
  assert len(said) == 2 and 'TensorStore(' not in str(caught.value)


def test_no_changed_bit_is_read_as_if_nothing_were(saved, tmp_path):
  want, abstract, places = saved
  with Checkpoints(tmp_path / 'a') as ckpt:
    ckpt.save(3, want, {'window': [1]})
  rng, refused = random.Random(0), 0
  files = sorted(x for x in (tmp_path / 'a/checkpoints').rglob('*') if x.stat().st_size)
  for _ in range(8):
    file = rng.choices(files, [x.is_file() * x.stat().st_size for x in files])[0]
    before = file.read_bytes()
    flip(file, rng.random())
    try:
      with Checkpoints(tmp_path / 'a') as ckpt:
        step, got, host = ckpt.restore_latest(abstract, places)
      assert (step, host) == (3, {'window': [1]})
      jax.tree.map(np.testing.assert_array_equal, got, want)
    except CheckpointError:
      refused += 1
    file.write_bytes(before)
  assert refused >= 4                      # of the rest nothing is read


class ReadLate(list):
  """Rows that a thread other than the main one reads only after `changed` is set."""

  changed = threading.Event()

  def __iter__(self):
    if threading.current_thread() is not threading.main_thread():
      assert self.changed.wait(30)
    return super().__iter__()

  def __deepcopy__(self, memo):
    return list(super().__iter__())


def test_a_checkpoint_holds_the_numbers_of_its_step_though_the_run_changes_them_at_once(
  saved, tmp_path
):
  """On a slow store the next log row, or broken video, comes before the JSON is written."""
  drawn, abstract, places = saved
  rows, bad_files = ReadLate([{'loss': 1.0}]), {'3': 'cut off'}
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, drawn, {'window': rows, 'bad_files': bad_files})
    rows.append({'loss': 2.0})
    bad_files['4'] = 'lost'
    rows.changed.set()
    checkpoints.wait()
    _, host = checkpoints.restore(1, abstract, places)
  assert host == {'window': [{'loss': 1.0}], 'bad_files': {'3': 'cut off'}}
