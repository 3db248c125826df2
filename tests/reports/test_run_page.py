"""Tests of a run's report: it can always be drawn, and it says no more than is true."""

import itertools
import re
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest

from xclip_jax.evaluation.scores import Scores
from xclip_jax.reports import class_pictures, contact_sheet, run_page, theme, time_test

MOTIONS = ('turning clockwise', 'turning counter-clockwise', 'moving left', 'moving right')
NAMES = tuple(f'a {color} triangle {motion}' for color in 'abcdefghi' for motion in MOTIONS)
PAIRS = tuple(i ^ 1 for i in range(36))


def predicted(guess, label, K, names=None, index=None, failed=None) -> Scores:
  """Scores that put 0.9 on `guess` and the rest evenly elsewhere; `failed` rows come last."""
  guess, label, failed = np.asarray(guess, np.int64), np.asarray(label, np.int32), failed or {}
  probabilities = np.full((len(label), K), 0.1 / max(K - 1, 1), np.float32)
  probabilities[np.arange(len(label)), guess] = 0.9
  index = np.arange(len(label), dtype=np.int32) if index is None else index
  R = max([-1, *index, *failed]) + 1
  failed = {row: 'gone' for row in set(range(R)) - set(index.tolist())} | failed
  labels = np.zeros(R, np.int32)
  labels[index] = label
  return Scores(
    'single-label', names or tuple(f'class {i}' for i in range(K)), np.log(probabilities)[:, None],
    index, labels, tuple(f'{row}.mp4' for row in range(R)), failed, 'fingerprint')


def noisy(K, n, accuracy, seed=0, **fields) -> Scores:
  random = np.random.default_rng(seed)
  label = random.integers(0, K, n)
  guess = np.where(random.random(n) < accuracy, label, random.integers(0, K, n))
  return predicted(guess, label, K, **fields)


def clip(T=8, label='a cat', best='a cat') -> contact_sheet.Clip:
  frames = np.random.default_rng(T).integers(0, 255, (T, 24, 32, 3), dtype=np.uint8)
  top = (best, 0.7), ('W' * 80, 0.2), ('a $5 bill and $\\bad', 0.1)
  return contact_sheet.Clip(frames, label, top)


def write(folder, val, partner=None, history=(), **fields) -> Path:
  """Writes a page of a run about its validation set."""
  return run_page.write(folder, run_page.RunReport(
    title='x', history=list(history), scores={'val': val},
    partner=partner or (None,) * len(val.texts), **fields))


def pictures_of(page: Path) -> list[str]:
  """Names of the embedded pictures, each checked to be a PNG that fits a README."""
  names = re.findall(r'!\[\w+\]\((.*?)\)', page.read_text())
  for name in names:
    picture = cv2.imread(str(page.parent / name))
    assert picture is not None, name
    assert 400 < picture.shape[1] < 1700 and 200 < picture.shape[0] < 2200, (name, picture.shape)
    assert picture.min() < 100, f'{name} is blank'
    assert picture[:8].min() == 255 and picture[:, -8:].min() == 255, f'{name} is cut off'
  return names


@pytest.fixture(scope='module')
def full(tmp_path_factory) -> Path:
  """A page with everything a run can have."""
  history = [{'step': s, 'loss': 3 / s, 'accuracy': 1 - 1 / s, 'lr': 1e-3} for s in range(1, 90)]
  history[4]['loss'], history[7]['loss'] = float('nan'), float('inf')
  history += [{'step': 45, 'val/top1': 0.5, 'zero_shot/top1': 0.3}, {'step': 90, 'val/top1': 0.9}]
  label = np.arange(144) % 36
  return run_page.write(tmp_path_factory.mktemp('runs') / 'new' / 'report', run_page.RunReport(
    title='Motions & more', history=history, scores={
      'val': noisy(36, 144, 0.9, names=NAMES,
                   failed={144 + i: f'bad_{i}.mp4: cut | short' for i in range(26)}),
      'zero_shot': noisy(4, 40, 0.5), 'zero_shot_all': noisy(40, 40, 0.2)},
    orders={'in order': predicted(label, label, 36), 'shuffled': noisy(36, 144, 0.5),
           'reversed': predicted(label ^ 1, label, 36), 'single frame': noisy(36, 144, 0.3)},
    partner=PAIRS, clips=[clip(), clip(3), clip(16, best='a dog')], facts={'config': 'demo_a.py'},
  ))


def test_every_picture_is_written_and_linked(full):
  names = ['curves.png', 'time.png', 'contact_sheet.png', 'confusion.png']
  assert pictures_of(full) == names
  assert sorted(p.name for p in full.parent.iterdir()) == sorted([*names, 'report.md'])


def test_the_page_states_every_result_with_its_chance(full):
  text = full.read_text()
  assert '# Motions \\& more' in text
  assert '144 of 170 videos were evaluated' in text
  assert '| never trained on, among new classes only | 4 | 40 of 40 |' in text
  assert re.search(r'among new classes only .* \| n/a \| 25\.0% \|', text)   # top-5 of four
  assert re.search(r'among trained and new classes \| 40 .* \| 2\.5% \|', text)
  assert 'played backwards, 100.0% are taken for the class they have become' in text
  assert '| config | demo\\_a.py |' in text
  assert len(re.findall(r'^\| a \w triangle .* \|$', text, re.MULTILINE)) == 36


def test_unreadable_files_are_listed_but_not_without_end(full):
  text = full.read_text()
  assert 'unreadable (26)' in text and '- row 163: bad\\_19.mp4: cut \\| short' in text
  assert 'bad\\_20' not in text and '- and 6 more' in text


def test_style_does_not_leak_into_other_figures(full):
  assert matplotlib.rcParams['font.size'] == matplotlib.rcParamsDefault['font.size']


@pytest.mark.parametrize('K', [1, 3, 400])
def test_a_bare_run_has_a_report(tmp_path, K):
  (tmp_path / 'time.png').write_text('of an earlier report')
  page = write(tmp_path, noisy(K, 500, 0.7))
  assert pictures_of(page) == ['curves.png', 'confusion.png']
  assert not (tmp_path / 'time.png').exists()
  assert 'nan' not in page.read_text() and 'never trained on' not in page.read_text()


def test_one_logged_step_and_one_odd_clip_are_enough(tmp_path):
  both = noisy(2, 9, 0.5)
  page = write(tmp_path, both, history=[{'step': 20, 'loss': float('nan'), 'accuracy': 0.5}],
               clips=[clip(1)], orders={'in order': both})
  assert pictures_of(page) == ['curves.png', 'time.png', 'contact_sheet.png', 'confusion.png']


def test_nothing_evaluated_is_said_not_crashed(tmp_path):
  none = predicted([], [], 3, failed={0: 'gone', 1: 'gone'})
  page = write(tmp_path, none, partner=(1, 0, None), orders={'in order': none, 'shuffled': none})
  text = page.read_text()
  assert 'ranked first for n/a' in text and '0 of 2 videos' in text and 'nan' not in text
  assert text.count('| 0 | n/a |') == 3
  assert pictures_of(page) == ['curves.png', 'time.png', 'confusion.png']


def test_names_of_classes_cannot_break_the_page(tmp_path):
  names = ('a|b <script>', 'costs $5 or $\\frac', 'two\nlines *bold* ' + 'long ' * 40)
  page = write(tmp_path, noisy(3, 20, 0.5, names=names))
  text = page.read_text()
  assert 'a\\|b \\<script\\>' in text and 'costs \\$5 or \\$\\\\frac' in text
  assert 'two lines \\*bold\\*' in text
  assert pictures_of(page) == ['curves.png', 'confusion.png']


def test_many_classes_are_cut_to_the_best_and_worst(tmp_path):
  label = np.repeat(np.arange(1, 400), 2)                        # class 0 has no video
  guess = np.where(label < 6, label + 100, label)                # 1..5 always wrong
  page = write(tmp_path, predicted(guess, label, 400))
  best, worst = page.read_text().split('## The ten best')[1].split('## The ten worst')
  assert best.count('| 100.0% |') == 10 and worst.count('\n| class') == 11   # and the heading
  assert all(f'| class {c} | 2 | 0.0% | class {c + 100} |' in worst for c in range(1, 6))
  assert '| class 0 |' not in best + worst


@pytest.mark.parametrize('K', [3, 36, 60])
def test_labels_of_the_confusion_matrix_do_not_overlap(K):
  with matplotlib.rc_context(theme.STYLE):
    figure = class_pictures.draw_confusion(noisy(K, 100, 0.5, names=(NAMES * 2)[:K]), 'Confusion')
    figure.draw_without_rendering()
  for axis, low, high in (figure.axes[0].xaxis, 'x0', 'x1'), (figure.axes[0].yaxis, 'y0', 'y1'):
    boxes = [label.get_window_extent() for label in axis.get_ticklabels()]
    spans = sorted((getattr(box, low), getattr(box, high)) for box in boxes)
    assert len(spans) == K
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


LABEL = np.arange(72) % 36
FAIR = np.where(np.arange(72) < 36, LABEL, LABEL ^ 1)            # half right, half the reversal


def sentence(ordered, shuffled, partner=PAIRS, rows=slice(None)):
  index = np.arange(72, dtype=np.int32)
  return time_test.sentence({
    'in order': predicted(ordered, LABEL, 36),
    'shuffled': predicted(shuffled[rows], LABEL[rows], 36, index=index[rows]),
  }, partner)


def test_time_is_claimed_when_shuffling_destroys_the_difference():
  text = sentence(LABEL, FAIR)
  assert text.startswith('The model uses time') and '100.0%' in text and '50.0%' in text
  # Clips that are missing from one of the two are left out of the comparison.
  assert sentence(LABEL, FAIR, rows=slice(20, None)).startswith('The model uses time')


@pytest.mark.parametrize(('ordered', 'shuffled'), [
  (LABEL, LABEL),                                                # as good without the order
  (FAIR, FAIR), (FAIR, LABEL),                                   # never better than chance
  (FAIR, LABEL ^ 1),                                             # shuffling hurts, from chance
  (LABEL, np.where(np.arange(72) < 5, LABEL ^ 1, LABEL)),        # five clips are no evidence
])
def test_time_is_not_claimed_without_evidence(ordered, shuffled):
  text = sentence(ordered, shuffled)
  assert text.startswith('No sign') and 'The model uses time' not in text


def test_without_partners_only_the_effect_on_accuracy_is_named():
  none = (None,) * 36
  assert sentence(LABEL, FAIR, none).startswith('Accuracy depends on the order of the frames: 100')
  assert sentence(LABEL, LABEL, none).startswith('No sign that accuracy depends on')
  assert sentence(FAIR, LABEL, none).startswith('No sign that accuracy depends on')


def test_without_a_shuffled_pass_nothing_is_claimed():
  only = {'in order': predicted(LABEL, LABEL, 36), 'reversed': predicted(LABEL ^ 1, LABEL, 36)}
  assert time_test.sentence(only, PAIRS) == 'Accuracy by the order of the frames'
