"""Batches of more than the reference's one sparse clip a video: repeats, dense clips, views."""

import itertools
import threading

import numpy as np
import pytest
import reading

import videos
from xclip_jax.data import bad_files
from xclip_jax.data.clips import augment, pipeline, sampling
from xclip_jax.data.datasets import annotations

N, T, S, FRAMES = 6, 4, 32, 40
TRAIN = augment.TrainTransform(S, 'multiscale', flip=0.5, color_jitter=0.8, grayscale=0.2)
PLAIN = augment.TrainTransform(S, 'center', flip=0, color_jitter=0, grayscale=0)
FIELDS = ('video', 'label', 'index', 'mask', 'failed', 'error')


def painted():
  """Wide frames [FRAMES, 48, 96, 3], their number in the middle and another grey on either side."""
  frames = np.full((FRAMES, 48, 96, 3), 60, np.uint8)
  frames[:, :, 72:] = 160
  frames[:, :, 24:72] = videos.barcode_frames(FRAMES, 48, 48)
  return frames


@pytest.fixture(scope='module')
def listed(tmp_path_factory):
  """Six videos, the fourth of them broken."""
  folder, examples = tmp_path_factory.mktemp('videos'), []
  for row in range(N):
    path = folder / f'video {row}.mp4'
    if row == 3:
      path.write_text('nothing')
    else:
      videos.write_video(path, painted(), options={'g': '10'})
    examples.append(annotations.Example(str(path), row % 2))
  return annotations.VideoList(examples, annotations.ClassList(('a', 'b'), (None, None)), folder)


def train(listed, count, transform=TRAIN, batch_size=8, **options):
  options = dict(num_frames=T, seed=3, threads=2) | options
  with reading.open_training(listed, transform, batch_size=batch_size, **options) as batches:
    return list(itertools.islice(batches, count))


def evaluate(listed, transform, batch_size=4, **options):
  options = dict(num_frames=T, threads=2) | options
  with reading.open_evaluation(listed, transform, batch_size=batch_size, **options) as batches:
    return list(batches)


def rows_of(batches):
  return [{k: batch[k][i] for k in batch} for batch in batches for i in range(len(batch['index']))]


def assert_same(first, second):
  for a, b in zip(first, second, strict=True):
    for name in FIELDS:
      np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def numbers(clip):
  return [videos.read_barcode(frame) for frame in clip]


def test_repeats_put_each_video_in_a_row_r_times_never_alike(listed):
  (batch,) = train(listed, 1, batch_size=12, repeats=2)
  groups = batch['index'].reshape(6, 2)
  assert (groups[:, 0] == groups[:, 1]).all()
  assert batch['video'].shape == (12, T, S, S, 3) and batch['video'].flags.c_contiguous
  assert batch['error'].dtype == 'S200' and batch['mask'].all()
  assert len({clip.tobytes() for clip in batch['video']}) == 12
  np.testing.assert_array_equal(batch['label'], batch['index'] % 2)


def test_repeats_draw_other_frames_too(listed):
  drawn = [numbers(clip) for clip in train(listed, 1, PLAIN, batch_size=12, repeats=4)[0]['video']]
  assert all((np.array(x) // (FRAMES // T) == np.arange(T)).all() for x in drawn)
  assert all(drawn[i] != drawn[i + 1] for i in (0, 4, 8))


def test_repeats_visit_the_videos_in_the_order_of_the_stream_without(listed):
  once = np.concatenate([b['index'] for b in train(listed, 3, batch_size=4)])
  often = np.concatenate([b['index'] for b in train(listed, 3, batch_size=8, repeats=2)])
  failed = np.concatenate([b['failed'] for b in train(listed, 3, batch_size=4)]) >= 0
  np.testing.assert_array_equal(often[::2][~failed], once[~failed])


def test_a_video_is_read_once_for_all_its_repeats(listed, monkeypatch):
  lengths, read = [], pipeline.decode.read_video

  def note(*args, **options):
    frames = read(*args, **options)
    if threading.current_thread() is threading.main_thread():     # not what earlier tests left over
      lengths.append(len(frames))
    return frames

  monkeypatch.setattr(pipeline.decode, 'read_video', note)
  train(listed, 1, batch_size=40, repeats=10, threads=0)
  assert set(lengths) == {10 * T} and len(lengths) >= 4


@pytest.mark.slow
def test_batch_size_workers_and_start_do_not_change_repeated_rows(listed):
  want = rows_of(train(listed, 4, batch_size=6, repeats=3))
  assert_same(rows_of(train(listed, 2, batch_size=12, repeats=3)), want)
  assert_same(rows_of(train(listed, 2, batch_size=6, repeats=3, start_step=2)), want[12:])
  assert_same(rows_of(train(listed, 4, batch_size=6, repeats=3, workers=1)), want)


@pytest.mark.parametrize('hosts', [
  [range(6), range(6, 12)],
  [[0, 1, 2, 9, 10, 11], range(3, 9)],
  [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]],      # copies of a video on several hosts
])
def test_hosts_read_their_rows_of_repeated_videos(listed, hosts):
  whole = train(listed, 3, batch_size=12, repeats=3)
  parts = [train(listed, 3, batch_size=12, repeats=3, rows=rows) for rows in hosts]
  for batch, *shares in zip(whole, *parts, strict=True):
    for rows, share in zip(hosts, shares, strict=True):
      for name in batch:
        np.testing.assert_array_equal(share[name], batch[name][list(rows)])


def test_an_unreadable_video_is_replaced_in_all_its_repeats_and_counted_once(listed):
  batches = train(listed, 1, batch_size=24, repeats=4)
  hit = batches[0]['failed'] >= 0
  assert hit.reshape(6, 4).sum(1).tolist().count(4) == 1 and hit.sum() == 4
  assert batches[0]['mask'].all() and 3 not in batches[0]['index']
  bad = bad_files.BadFiles(N, max_share=0.5)
  bad.update(batches[0])
  assert bad.count == 1


def test_dense_training_clips_are_windows_with_their_stride(listed):
  starts = set()
  for batch in train(listed, 4, PLAIN, sampling='dense', stride=5):
    for clip in batch['video']:
      frames = numbers(clip)
      assert np.diff(frames).tolist() == [5] * (T - 1)
      starts.add(frames[0])
  assert len(starts) > 10 and max(starts) <= FRAMES - 16


def test_dense_evaluation_is_the_middle_window(listed):
  for batch in evaluate(listed, augment.EvalTransform(S), sampling='dense', stride=5):
    for clip in batch['video'][batch['mask']]:
      assert numbers(clip) == [12, 17, 22, 27]


@pytest.mark.parametrize('clips, crops', [(1, 3), (4, 1), (2, 3)])
def test_views_come_crop_by_crop_and_every_video_counts_once(listed, clips, crops):
  transform = augment.EvalTransform(S, resize_ratio=1, crops=crops)
  batches = evaluate(listed, transform, clips=clips)
  index = np.concatenate([batch['index'] for batch in batches])
  mask = np.concatenate([batch['mask'] for batch in batches])
  assert index.tolist() == [*range(N), -1, -1]
  assert mask.tolist() == [True] * 3 + [False] + [True] * 2 + [False] * 2
  want = sampling.view_indices(FRAMES, T, clips)
  frames = pipeline.decode.read_video(listed[0]['path'], lambda _: want.ravel())
  oracle = transform(frames).reshape(crops * clips, T, S, S, 3)
  for batch in batches:
    assert batch['video'].shape == (4, crops * clips, T, S, S, 3)
    assert not batch['video'][~batch['mask']].any()
    for views in batch['video'][batch['mask']]:
      np.testing.assert_array_equal(views, oracle)       # all videos are painted alike
  if crops == 1:
    assert [numbers(view) for view in batches[0]['video'][0]] == want.tolist()


def test_reference_views_differ_by_row_and_repeat_exactly(listed):
  options = dict(clips=4, views='reference')
  first = evaluate(listed, augment.EvalTransform(S), **options)
  again = evaluate(listed, augment.EvalTransform(S), batch_size=2, **options)
  assert_same(rows_of(again), rows_of(first)[:N])
  shown = [[numbers(view) for view in first[0]['video'][row]] for row in range(2)]
  assert shown[0] != shown[1] and len({tuple(view) for view in shown[0]}) == 4


def test_wrong_numbers_are_refused(listed):
  with pytest.raises(ValueError, match=r'batch_size=8 .* multiple of repeats=3'):
    train(listed, 1, repeats=3)
  with pytest.raises(ValueError, match='repeats must be at least 1, found 0'):
    train(listed, 1, repeats=0)
  with pytest.raises(ValueError, match='clips must be at least 1, found 0'):
    evaluate(listed, augment.EvalTransform(S), clips=0)
  with pytest.raises(ValueError, match="sampling must be 'sparse' or 'dense'"):
    train(listed, 1, sampling='all')
