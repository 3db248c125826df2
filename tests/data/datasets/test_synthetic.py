"""The synthetic set: the same everywhere, told apart by time alone, whole after any accident."""

import collections
import csv
import dataclasses
import json
import os
import pathlib

import av
import numpy as np
import pytest

from xclip_jax.data.datasets import synthetic, synthetic_scenes

SMALL = synthetic.Recipe(seed=3, train=72, val=24, zero_shot=8, size=32, frames=8)


@pytest.fixture(scope='module')
def small_set(tmp_path_factory) -> pathlib.Path:
  return synthetic.write(tmp_path_factory.mktemp('synthetic') / 'set', SMALL)


def read_rows(path: pathlib.Path) -> list[dict[str, str]]:
  with open(path, newline='') as file:
    return list(csv.DictReader(file))


def read_frames(path: pathlib.Path) -> np.ndarray:
  with av.open(path) as container:
    return np.stack([frame.to_ndarray(format='rgb24') for frame in container.decode(video=0)])


def snapshot(folder: pathlib.Path) -> dict[str, tuple[bytes, int]]:
  return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
          for path in folder.rglob('*') if path.is_file()}


@pytest.mark.parametrize('motion', synthetic_scenes.MOTIONS)
def test_a_clip_played_backwards_is_a_clip_of_the_partner(motion):
  partner = synthetic_scenes.REVERSE[motion]
  for number, shape in enumerate(synthetic_scenes.SHAPES):
    scene = synthetic_scenes.draw_scene(np.random.default_rng(number), shape, motion, 8)
    # The same draw under the partner's name: reversal maps one distribution onto the other.
    other = synthetic_scenes.draw_scene(np.random.default_rng(number), shape, partner, 8)
    backwards = synthetic_scenes.reverse(scene)
    assert (backwards.motion, backwards.caption) == (partner, other.caption)
    frames = synthetic_scenes.render(scene, 32)
    np.testing.assert_array_equal(synthetic_scenes.render(backwards, 32), frames[::-1])
    np.testing.assert_array_equal(synthetic_scenes.render(other, 32), frames[::-1])
    assert (frames[0] != frames[-1]).any()


@pytest.mark.parametrize('shape', synthetic_scenes.SHAPES)
def test_the_scene_moves_the_way_its_name_says(shape):
  def change(motion: str, seed: int) -> tuple[float, ...]:
    scene = synthetic_scenes.draw_scene(np.random.default_rng(seed), shape, motion, 8)
    place = scene.center - 0.5
    turn = np.unwrap(np.arctan2(place[:, 1], place[:, 0]))      # y is down: clockwise is positive
    turn = turn[-1] - turn[0] if motion.startswith('circling') else 0
    x, y = (0, 0) if turn else place[-1] - place[0]
    return x, y, turn, np.log(scene.radius[-1] / scene.radius[0])

  wanted = {'moving left': (-1, 0, 0, 0), 'moving right': (1, 0, 0, 0), 'moving up': (0, -1, 0, 0),
            'moving down': (0, 1, 0, 0), 'circling clockwise': (0, 0, 1, 0),
            'circling counter-clockwise': (0, 0, -1, 0), 'growing': (0, 0, 0, 1),
            'shrinking': (0, 0, 0, -1)}
  for motion in synthetic_scenes.MOTIONS:
    for seed in range(10):
      assert tuple(np.sign(change(motion, seed))) == wanted[motion]


@pytest.mark.parametrize('shape', synthetic_scenes.SHAPES)
@pytest.mark.parametrize('motion', ['moving left', 'moving down', 'circling clockwise', 'growing'])
def test_the_motion_can_be_measured_in_the_pixels(shape, motion):
  scene = synthetic_scenes.draw_scene(np.random.default_rng(5), shape, motion, 16)
  grid = (np.arange(64) + 0.5) / 64
  plain = dataclasses.replace(      # white paint on black ground: the shape is what is bright
    scene, color='white', ground=np.zeros(3), tint=np.zeros_like(scene.tint))
  video = synthetic_scenes.render(plain, 64)[..., 0] > 128
  area = video.mean((1, 2))
  x, y = ((video * g).sum((1, 2)) / video.sum((1, 2)) for g in (grid, grid[:, None]))
  if motion == 'moving left':
    assert x[0] - x[-1] > 0.3 and abs(y[0] - y[-1]) < 0.05
  elif motion == 'moving down':
    assert y[-1] - y[0] > 0.3 and abs(x[0] - x[-1]) < 0.05
  elif motion == 'growing':
    assert area[-1] > 2.5 * area[0]
  else:
    turned = np.unwrap(np.arctan2(y - 0.5, x - 0.5))
    assert turned[-1] - turned[0] > 3
    assert area.max() < 1.6 * area.min()      # part of it may be outside the frame


def test_every_shape_and_motion_is_seen_but_no_held_out_pair():
  seen, held_out = map(synthetic_scenes.compositions, ('train', 'zero_shot'))
  assert (len(seen), len(held_out)) == (24, 8)
  assert synthetic_scenes.compositions('val') == seen
  assert set(seen).isdisjoint(held_out)
  for shape in synthetic_scenes.SHAPES:
    motions = [motion for other, motion in held_out if other == shape]
    assert len(motions) == 2 and synthetic_scenes.REVERSE[motions[0]] == motions[1]
  assert min(collections.Counter(motion for _, motion in seen).values()) == 3
  assert min(collections.Counter(motion for _, motion in held_out).values()) >= 1


def test_colors_say_nothing_about_the_class():
  colors = collections.defaultdict(set)
  for number in range(24 * 40):
    scene = synthetic.Recipe(frames=2).scene('train', number)
    colors[scene.shape, scene.motion].add(scene.color)
  assert all(len(found) == 6 for found in colors.values()) and len(colors) == 24


def test_annotations_and_classes_agree(small_set):
  splits = {'train': ('classes.csv', 72), 'val': ('classes.csv', 24),
            'zero_shot': ('classes_zero_shot.csv', 8)}
  for split, (classes, count) in splits.items():
    classes, rows = read_rows(small_set / classes), read_rows(small_set / f'{split}.csv')
    assert list(classes[0]) == ['id', 'name', 'reverse']
    assert [row['id'] for row in classes] == [str(i) for i in range(len(classes))]
    names = [row['name'] for row in classes]
    assert all(names[names.index(row['reverse'])] != row['name'] for row in classes)
    assert list(rows[0]) == ['path', 'label', 'caption'] and len(rows) == count
    labels = collections.Counter(int(row['label']) for row in rows)
    assert set(labels.values()) == {count // len(classes)}
    for row in rows:
      color = row['caption'].split()[1]
      assert row['caption'].replace(f' {color}', '', 1) == names[int(row['label'])]
      assert (small_set / row['path']).is_file()


def test_a_stored_clip_shows_its_scene(small_set):
  for split, number in (('train', 0), ('train', 71), ('zero_shot', 5)):
    frames = read_frames(small_set / f'videos/{split}/{number:05d}.mp4')
    drawn = synthetic_scenes.render(SMALL.scene(split, number), SMALL.size)
    assert frames.shape == drawn.shape == (8, 32, 32, 3)
    error = np.abs(frames[:, None].astype(int) - drawn[None]).mean((2, 3, 4))    # [stored, drawn]
    assert error.argmin(1).tolist() == list(range(8))
    assert np.diag(error).max() < 9     # most of it from colour at half resolution
    with av.open(small_set / f'videos/{split}/{number:05d}.mp4') as container:
      assert container.streams.video[0].average_rate == 16


def test_ffmpeg_without_x264_still_writes_clips(tmp_path):
  drawn = synthetic_scenes.render(SMALL.scene('train', 1), 32)
  (tmp_path / 'clip.mp4').write_bytes(synthetic.encode(drawn, codec='mpeg4'))
  assert np.abs(read_frames(tmp_path / 'clip.mp4').astype(int) - drawn).mean() < 9


def test_clips_depend_only_on_seed_split_and_number(small_set, tmp_path, monkeypatch):
  monkeypatch.setattr(synthetic, '_MIN_CLIPS', 60)  # so that a small set is drawn by two processes
  again = synthetic.write(tmp_path / 'again', SMALL, processes=2)
  assert {name: data for name, (data, _) in snapshot(again).items()} == {
    name: data for name, (data, _) in snapshot(small_set).items()}
  larger = dataclasses.replace(SMALL, train=90)
  other = dataclasses.replace(SMALL, seed=4)
  first = synthetic_scenes.render(SMALL.scene('train', 7), 32)
  np.testing.assert_array_equal(synthetic_scenes.render(larger.scene('train', 7), 32), first)
  assert (synthetic_scenes.render(other.scene('train', 7), 32) != first).any()
  assert (synthetic_scenes.render(SMALL.scene('val', 7), 32) != first).any()


@pytest.mark.parametrize('manifest', ['kept', 'lost', 'damaged'])
def test_only_missing_and_damaged_clips_are_drawn_again(tmp_path, manifest):
  folder = synthetic.write(tmp_path / 'set', SMALL)
  before = snapshot(folder)
  names = 'train/00003', 'val/00001', 'train/00070'
  deleted, cut, empty = (f'videos/{name}.mp4' for name in names)
  (folder / deleted).unlink()
  os.truncate(folder / cut, 700)
  os.truncate(folder / empty, 0)
  (folder / 'train.csv').write_text('path,label,caption\n')
  if manifest == 'lost':
    (folder / 'manifest.json').unlink()
  elif manifest == 'damaged':
    os.truncate(folder / 'manifest.json', 100)
  synthetic.write(folder, SMALL)
  after = snapshot(folder)
  assert {name: data for name, (data, _) in after.items()} == {
    name: data for name, (data, _) in before.items()}
  drawn = {name for name in after if name.endswith('.mp4') and after[name][1] != before[name][1]}
  assert drawn == {deleted, cut, empty}


def test_clips_of_another_seed_are_not_taken_for_ours(small_set, tmp_path):
  other = dataclasses.replace(SMALL, seed=4)
  folder = synthetic.write(tmp_path / 'set', other)
  (folder / 'manifest.json').unlink()     # as if the run that drew them had been interrupted
  synthetic.write(folder, SMALL)
  assert snapshot(folder)['videos/val/00000.mp4'][0] == (
    small_set / 'videos/val/00000.mp4').read_bytes()


def test_a_whole_set_is_returned_untouched(small_set):
  before = snapshot(small_set)
  assert synthetic.write(small_set, SMALL) == small_set
  assert snapshot(small_set) == before
  assert set(json.loads((small_set / 'manifest.json').read_text())['sizes']) == (
    set(before) - {'manifest.json'})


def test_sets_with_other_parameters_have_other_folders(tmp_path, monkeypatch):
  monkeypatch.setenv('XCLIP_CACHE', str(tmp_path))
  counts = {'train': 2, 'val': 1, 'zero_shot': 1, 'size': 32, 'frames': 2}
  recipe = synthetic.Recipe(**counts)
  other_recipes = (dataclasses.replace(recipe, seed=1), dataclasses.replace(recipe, train=3))
  folders = {synthetic.prepare(recipe=x) for x in (recipe, *other_recipes)}
  assert len(folders) == 3 and {folder.parent for folder in folders} == {tmp_path}
  assert synthetic.prepare(tmp_path / 'here', recipe).parent == tmp_path / 'here'


def test_a_config_may_say_how_many_processes_draw(tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(synthetic, '_draw', lambda *arguments: drawn.append(arguments[-1]))
  monkeypatch.setattr(synthetic, '_texts', lambda recipe: {})
  monkeypatch.setattr(synthetic.Recipe, 'clips', lambda recipe: [])
  settings = {'train': 2, 'val': 1, 'zero_shot': 1, 'size': 32, 'frames': 2}
  folders = {synthetic.prepare_settings(tmp_path / str(n), settings | {'processes': n}).name
             for n in (1, 3)}
  assert drawn == [1, 3] and len(folders) == 1               # and the set is the same


def test_a_folder_with_another_set_is_refused(small_set):
  with pytest.raises(ValueError, match=r'holds another synthetic set \(seed=3 instead of 9\)'):
    synthetic.write(small_set, dataclasses.replace(SMALL, seed=9))


@pytest.mark.parametrize(('field', 'value', 'message'), [
  ('train', 0, 'train must be an integer >= 1, got 0'), ('size', 33, 'size must be even'),
  ('frames', 1.5, 'frames must be an integer')])
def test_impossible_parameters_are_named(field, value, message):
  with pytest.raises(ValueError, match=message):
    synthetic.Recipe(**{field: value})


def test_the_command_draws_into_the_folder_it_is_given(tmp_path, capsys):
  command = ['--out', str(tmp_path / 'set'), '--train', '2', '--val', '1', '--zero-shot', '1',
             '--size', '32', '--frames', '2']
  synthetic.main(command)
  assert capsys.readouterr().out.strip() == str(tmp_path / 'set')
  assert len(read_rows(tmp_path / 'set' / 'train.csv')) == 2
  with pytest.raises(SystemExit):
    synthetic.main([*command, '--seed', '1'])
  assert 'seed=0 instead of 1' in capsys.readouterr().err
