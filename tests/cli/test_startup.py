"""The start of a command: garbage is collected before the work, long compilations are said."""

import gc
import importlib
import logging
import shutil
import threading

import jax
import numpy as np
import pytest
import test_parsers

from xclip_jax import compilation_cache
from xclip_jax.assets import bundled
from xclip_jax.cli import main, output, startup

_LOWERED = '/jax/core/compile/jaxpr_to_mlir_module_duration'
_COMPILED = '/jax/core/compile/backend_compile_duration'


class Reached(Exception):
  """The work of a command has begun."""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Clips of two labels, their list, and a published list of captions."""
  folder = tmp_path_factory.mktemp('clips')
  sample = bundled.resolve_sample('sample:ring')
  for name in ('clips/run/a.mp4', 'clips/run/b.mp4', 'clips/jump/c.mp4', 'clips/jump/d.mp4'):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(sample, folder / name)
  with (folder / 'clips/jump/d.mp4').open('ab') as file:
    file.write(b'another content')
  for name in ('val', 'novel'):
    (folder / f'{name}.csv').write_text('path,label\nclips/run/a.mp4,0\nclips/jump/c.mp4,1\n')
  (folder / 'several.csv').write_text('path,label\nclips/run/a.mp4,0;1\nclips/jump/c.mp4,1\n')
  (folder / 'captions.csv').write_text('path,caption\nclips/run/a.mp4,somebody runs\n')
  for name in ('classes', 'classes_base', 'classes_novel'):
    (folder / f'{name}.csv').write_text('id,name\n0,run\n1,jump\n')
  return folder


MODEL = ('--weights', 'toy')
LABELS = ('--labels', 'run, jump')
EVAL = (*MODEL, '-o', 'out')
SCORE = 'evaluation.scorer.Scorer.score'
WORK = {                      # a command line, and the function that does the work
  'classify': (('sample:ring', *MODEL), 'inference.classifier.Classifier.classify_each'),
  'embed': (('sample:ring', *MODEL, '-o', 'x.npz'), 'inference.classifier.Classifier.embed_each'),
  'windows': (('sample:ring', *MODEL, '--every', '1'), 'inference.long_video.classify'),
  'train': (('--config', 'demo', '--workdir', 'out'), 'cli.commands.train.faulthandler.enable'),
  'finetune': (('clips', *MODEL, '-o', 'out'), 'data.datasets.own_clips.usable'),
  'weights interpolate': (('toy', 'toy', '-o', 'out'), 'weights.interpolate.interpolate'),
  'weights curve': (('toy', 'toy', '-o', 'out', '--on', 'val.csv'),
                    'evaluation.weight_curve.measure'),
  'weights inspect': (('toy',), 'weights.inspection.describe'),
  'convert': (('toy', 'out'), 'weights.export.formats.save'),
  'export': (('toy', '-o', 'out', '--to', 'stablehlo'), 'export.folder.export'),
  'data check': (('val.csv',), 'data.tools.check.check_list'),
  'data show': (('val.csv', '-o', 'x.png'), 'data.clips.pipeline.train_batches'),
  'data prepare': (('val.csv', '-o', 'out'), 'data.tools.prepare.prepare'),
  'data lists': (('folder', 'clips', '--train', '.', '--val', '.', '-o', 'out'),
                 'data.tools.derive_lists.from_split'),
  'data few-shot': (('val.csv', '--shots', '1', '-o', 'x.csv'), 'data.tools.derive_lists.few_shot'),
  'data base-novel': (('val.csv', '-o', 'out'), 'data.tools.derive_lists.base_novel'),
  'eval supervised': (('val.csv', *EVAL), SCORE),
  'eval zero-shot': (('val.csv', *EVAL), SCORE),
  'eval base-novel': (('val.csv', 'novel.csv', *EVAL), SCORE),
  'eval multi-label': (('several.csv', *EVAL), SCORE),
  'eval retrieval': (('captions.csv', *EVAL), SCORE),
  'eval compare': (('a', 'b'), 'evaluation.compare.compare'),
  'eval average': (('a', 'b'), 'evaluation.average.average'),
  'plan': (('--platform', 'cpu:1', '--variant', 'B/32'), 'planning.plan.devices'),
}


def test_every_subcommand_is_in_the_table():
  names = {' '.join(parser.prog.split()[1:]) for parser in test_parsers.COMMANDS}
  assert names == WORK.keys()


@pytest.mark.parametrize('name', WORK)
def test_work_happens_with_the_garbage_collector_on(name, folder, tmp_path, monkeypatch, capsys):
  words, function = WORK[name]
  states = []

  def reached(*_, **__):
    states.append(gc.isenabled())
    raise Reached

  owner, _, function = f'xclip_jax.{function}'.rpartition('.')
  try:
    owner = importlib.import_module(owner)
  except ModuleNotFoundError:
    module, _, owner = owner.rpartition('.')
    owner = getattr(importlib.import_module(module), owner)
  monkeypatch.setattr(owner, function, reached)
  monkeypatch.setattr(startup, 'prepare_compilation', lambda quiet: None)
  paths = {x.name: str(x) for x in folder.iterdir()}
  paths |= {x: str(tmp_path / x) for x in ('out', 'x.npz', 'x.png', 'x.csv')}
  assert main.main([*name.split(), *(paths.get(word, word) for word in words)]) == output.BUG
  assert 'Reached' in capsys.readouterr().err and states == [True]


def test_the_collector_rests_while_a_command_is_read_and_weights_are_opened(monkeypatch):
  states = []
  monkeypatch.setattr(main, '_check_paths', lambda arguments: states.append(gc.isenabled()))
  assert main.main(['weights']) == 0
  with startup.paused_collector():
    states.append(gc.isenabled())
    with startup.paused_collector():
      pass
    states.append(gc.isenabled())
  assert states == [False] * 3 and gc.isenabled()
  with pytest.raises(Reached), startup.paused_collector():
    raise Reached
  assert gc.isenabled()


@pytest.fixture
def announcements():
  """Watches compilations with little patience; yields a function that waits for what is said."""
  said, times = threading.Event(), []
  stop = compilation_cache.announce(lambda: (times.append(1), said.set()), patience=0.1)
  yield lambda seconds: (said.wait(seconds), len(times))[1]
  stop()


def test_a_long_compilation_is_said_once_while_it_lasts(announcements):
  for _ in range(2):
    jax.monitoring.record_event_duration_secs(_LOWERED, 1.0)
    assert announcements(5) == 1
    jax.monitoring.record_event_duration_secs(_COMPILED, 1.0)


def test_short_compilations_are_not_said(announcements):
  for _ in range(5):
    jax.monitoring.record_event_duration_secs(_LOWERED, 1.0)
    jax.monitoring.record_event_duration_secs(_COMPILED, 1.0)
    jax.monitoring.record_event_duration_secs('/jax/something/else', 1.0)
  assert announcements(0.3) == 0


def test_jax_reports_the_two_phases_of_a_compilation():
  events = []
  listen = lambda event, seconds, **_: events.append(event)
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    jax.jit(lambda x: x * 3.25 + 1)(np.float32(2))
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert [x for x in events if x in (_LOWERED, _COMPILED)] == [_LOWERED, _COMPILED]


def test_quiet_says_nothing_of_compilations(monkeypatch, capsys):
  monkeypatch.setattr(compilation_cache, 'enable', lambda: None)
  monkeypatch.setattr(compilation_cache, 'announce', lambda say: say())
  startup.prepare_compilation(quiet=True)
  assert capsys.readouterr().err == ''
  startup.prepare_compilation(quiet=False)
  assert capsys.readouterr().err.startswith('xclip: compiling (this can take a minute')


def test_progress_without_a_terminal_is_a_line_an_interval(monkeypatch, capsys):
  monkeypatch.setattr(output, '_LINE_SECONDS', 0.0)
  items = list(output.show_progress('abc', unit='video', desc='encoding'))
  err = capsys.readouterr().err
  assert items == ['a', 'b', 'c'] and '\r' not in err
  assert err.splitlines() == [f'xclip: encoding: {n} of 3 videos' for n in range(3)]
  assert list(output.show_progress('abc', unit='video', quiet=True)) == items
  monkeypatch.setattr(output, '_LINE_SECONDS', 60.0)
  assert list(output.show_progress('abc', unit='video')) == items
  assert capsys.readouterr().err == ''


def test_warnings_are_said_whatever_level_another_library_has_set(monkeypatch, capsys):
  monkeypatch.setattr(logging.root, 'level', logging.ERROR)          # absl's set_verbosity does it
  logging.getLogger('xclip_jax.data').manager._clear_cache()
  with startup.saying_warnings():
    logging.getLogger('xclip_jax.data').warning('a video is damaged')
  assert capsys.readouterr().err == 'xclip: a video is damaged\n'
