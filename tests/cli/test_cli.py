"""Promises of the `xclip` command: classify, embed, weights."""

import collections
import csv
import dataclasses
import functools
import io
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import tiny
import videos
import xclip_jax
from xclip_jax.cli import main, output, startup
from xclip_jax.inference import classifier
from xclip_jax.models.config import XCLIPConfig
from xclip_jax.models.xclip import XCLIP
from xclip_jax.weights import apply, hub, native

LABELS = ['a dog, running', 'ein Bär', '猫が寝ている']
SIZES = {                     # name: frames, height, width; one is shorter than a clip
  'a.mp4': (12, 48, 64), 'deep/er/b.MKV': (3, 32, 40), 'deep/c.avi': (25, 64, 36),
  'tür/ö 猫.webm': (9, 40, 40),
}
CODECS = {'.avi': 'mpeg4', '.webm': 'libvpx'}


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  config = XCLIPConfig(num_frames=4, **tiny.FIELDS | {'context_length': 32})
  rng = np.random.default_rng(0)
  draw = lambda x: (0.3 * rng.standard_normal(x.shape)).astype(np.float32)
  params = jax.tree.map(draw, apply.abstract_params(config))
  folder = tmp_path_factory.mktemp('weights') / 'tiny'
  return str(native.save(folder, native.Weights(config, params, template='a video of {}')))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp('videos')
  for seed, (name, shape) in enumerate(SIZES.items()):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = np.random.default_rng(seed).integers(0, 256, (shape[0], 1, 1, 3), np.uint8)
    frames = np.broadcast_to(frames, (*shape, 3)).copy()
    videos.write_video(path, frames, codec=CODECS.get(path.suffix, 'libx264'))
  (root / 'deep/notes.txt').write_text('no video')
  (root / '.hidden.mp4').write_text('no video')
  return root


@pytest.fixture(scope='module')
def labels_file(tmp_path_factory):
  file = tmp_path_factory.mktemp('labels') / 'labels.txt'
  file.write_text('# what may be seen\n\n' + '\n'.join(LABELS) + '\n', encoding='utf-8')
  return str(file)


load_once = functools.cache(classifier.load)


@pytest.fixture(autouse=True)
def one_load(monkeypatch):
  """Compiles once for all tests, and leaves JAX's configuration alone."""
  monkeypatch.setattr(classifier, 'load', load_once)
  monkeypatch.setattr(startup, 'prepare_compilation', lambda quiet: None)


@pytest.fixture
def classify(weights, labels_file, capsys):
  """Runs `xclip classify`: exit code, standard output, standard error."""
  def run(*arguments):
    code = main.main(
      ['classify', *map(str, arguments), '--weights', weights, '--labels-file', labels_file]
    )
    return code, *capsys.readouterr()

  return run


def files_of(folder):
  return sorted(str(folder / name) for name in SIZES)


def test_the_table_shows_the_answers_best_first_and_aligned(classify, folder, weights):
  files = files_of(folder)
  code, out, err = classify(*files, '--top', 2)
  assert (code, err) == (0, '')
  lines = out.splitlines()
  assert len(lines) == 2 * len(files)
  expected = xclip_jax.load(weights).classify(files, LABELS)
  for i, answer in enumerate(expected):
    for line, (label, probability) in zip(lines[2 * i:], answer.top(2), strict=False):
      assert line.endswith(f'{100 * probability:5.1f} %  {label}')
    assert lines[2 * i].split('  ')[0].rstrip().endswith(files[i][-9:])
    assert lines[2 * i + 1].startswith(' ')
  before_label = {output.columns(line[:line.index('%')]) for line in lines}
  assert len(before_label) == 1


def test_names_cannot_move_the_cursor_and_long_ones_lose_their_beginning(capsys, monkeypatch):
  name = '/videos/' + 'x' * 60 + '/\x1b[2J\udcff猫.mp4'
  monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
  output.Table([name]).show(name, [('a\nb', 1.0)])
  out = capsys.readouterr().out
  assert out.startswith('…xxx') and out.count('\n') == 1
  assert out.endswith('/\\x1b[2J\\udcff猫.mp4  100.0 %  a\\nb\n')
  assert output.columns(out.split('  ')[0]) == 48
  monkeypatch.undo()                       # a file or a pipe gets the whole name
  output.Table([name]).show(name, [('a', 1.0)])
  assert capsys.readouterr().out.startswith(f'/videos/{"x" * 60}/\\x1b[2J\\udcff猫.mp4  ')


def test_csv_and_json_hold_what_the_table_shows(classify, folder, tmp_path):
  code, out, _ = classify(
    folder, '--top', 2, '--csv', tmp_path / 'out.csv', '--json', tmp_path / 'out.json'
  )
  assert code == 0
  content = json.loads((tmp_path / 'out.json').read_text(encoding='utf-8'))
  assert content['labels'] == LABELS and content['failed'] == []
  assert content['template'] == 'a video of {}'
  assert [x['path'] for x in content['videos']] == files_of(folder)
  shown = [(f'{100 * t["probability"]:.1f}', t['label']) for x in content['videos']
           for t in x['top']]
  lines = out.splitlines()
  assert len(lines) == len(shown) == 8
  assert all(line.endswith(f'{p} %  {x}') for line, (p, x) in zip(lines, shown, strict=True))
  rows = list(csv.DictReader((tmp_path / 'out.csv').read_text(encoding='utf-8').splitlines()))
  assert [(f'{100 * float(r["probability"]):.1f}', r['label']) for r in rows] == shown
  assert [(r['path'], r['rank']) for r in rows] == [(f, k) for f in files_of(folder) for k in '12']


@pytest.mark.parametrize('kind', ['csv', 'json'])
def test_a_dash_puts_nothing_else_on_standard_output(classify, folder, kind):
  code, out, err = classify(folder / 'a.mp4', f'--{kind}', '-')
  assert (code, err) == (0, '')
  if kind == 'json':
    assert json.loads(out)['videos'][0]['path'] == str(folder / 'a.mp4')
  else:
    assert len(list(csv.DictReader(io.StringIO(out)))) == 3


def test_a_broken_file_is_reported_and_the_rest_goes_on(classify, folder, tmp_path):
  broken = tmp_path / 'broken.mp4'
  broken.write_bytes((folder / 'a.mp4').read_bytes()[:300])
  whole = classify(folder)[1].splitlines()
  code, out, err = classify(
    broken, folder, tmp_path / 'missing.mp4', '--json', tmp_path / 'out.json'
  )
  assert code == 1
  assert [line.split('%')[1] for line in out.splitlines()] == [x.split('%')[1] for x in whole]
  content = json.loads((tmp_path / 'out.json').read_text())
  assert [x['path'] for x in content['videos']] == files_of(folder)
  assert [x['path'] for x in content['failed']] == [str(broken), str(tmp_path / 'missing.mp4')]
  first, second, last = err.splitlines()
  assert first == f'xclip: {broken}: {content["failed"][0]["reason"]}'
  assert 'missing.mp4: cannot be read as a video (No such file' in second
  assert last == 'xclip: 2 of 6 videos could not be used'


def test_an_answer_that_is_no_number_is_a_failure(
  weights, folder, tmp_path, capsys, monkeypatch
):
  model = classifier.load(weights)
  damaged = classifier.Classifier(dataclasses.replace(
    model.weights, params=jax.tree.map(lambda x: x * np.nan, model.weights.params)))
  monkeypatch.setattr(classifier, 'load', lambda *_, **__: damaged)
  code = main.main(['classify', str(folder / 'a.mp4'), '--weights', 'x', '--labels', 'a, b'])
  captured = capsys.readouterr()
  assert code == 1 and captured.out == ''
  assert 'a.mp4: the model answers with NaN or infinity; its weights are damaged' in captured.err
  features = tmp_path / 'features.npz'
  for what in ([str(folder / 'a.mp4')], ['--labels', 'a, b']):
    command = ['embed', *what, '--weights', 'x', '-o', str(features), '--overwrite']
    assert main.main(command) in (1, 2)
    assert 'answers with NaN or infinity' in capsys.readouterr().err


def test_folders_and_globs_give_the_same_as_their_files(classify, folder):
  files = files_of(folder)
  want = classify(*files)
  assert want[0] == 0
  for places in (
    [folder], [f'{folder}/'], [folder / '**/*.[amwM]*[4iVm]'], [folder / '*', folder / 'a.mp4'],
    [files[0], folder, *files],
  ):
    code, out, err = classify(*places)
    assert (code, err) == (0, ''), places
    assert out == want[1], places


def test_a_name_with_brackets_is_a_file_before_it_is_a_glob(classify, folder, tmp_path):
  (tmp_path / '[ab].mp4').write_bytes((folder / 'a.mp4').read_bytes())
  code, out, _ = classify(tmp_path / '[ab].mp4')
  assert code == 0 and '[ab].mp4  ' in out


def test_nothing_is_overwritten_unasked(classify, folder, tmp_path):
  target = tmp_path / 'out.json'
  target.write_text('precious')
  for arguments, message in (
    (['--json', target], 'exists; choose another name, or add --overwrite'),
    (['--json', tmp_path / 'no/where.json'], 'No such file or directory'),
    (['--json', tmp_path, '--overwrite'], 'is not a file'),
    (['--json', tmp_path / 'x', '--csv', tmp_path / 'y/../x'], 'both write to'),
    (['--json', '-', '--csv', '-'], 'both write to -'),
  ):
    code, out, err = classify(folder / 'a.mp4', *arguments)
    assert code == 2 and out == '' and message in err and err.count('\n') == 1
  assert target.read_text() == 'precious'
  assert classify(folder / 'a.mp4', '--json', target, '--overwrite')[0] == 0
  assert json.loads(target.read_text())['videos']
  assert [x.name for x in tmp_path.iterdir()] == ['out.json']


def test_what_is_stopped_leaves_no_file(classify, folder, tmp_path, monkeypatch):
  def stop(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(classifier.Classifier, '_answers', stop)
  code, _, err = classify(folder, '--csv', tmp_path / 'out.csv')
  assert code == 130 and err == 'xclip: stopped; nothing was written\n'
  assert list(tmp_path.iterdir()) == []


def test_labels_come_from_text_lines_or_classes(weights, folder, labels_file, capsys, tmp_path):
  (tmp_path / 'classes.csv').write_text('id,name,reverse\n1,closing,opening\n0,opening,closing\n')
  for arguments, labels in (
    (['--labels', ' a dog ,a cat,, '], ['a dog', 'a cat']),
    (['--labels-file', labels_file], LABELS),
    (['--labels-file', str(tmp_path / 'classes.csv')], ['opening', 'closing']),
  ):
    code = main.main(
      ['classify', str(folder / 'a.mp4'), '--weights', weights, '--json', '-', *arguments]
    )
    assert code == 0
    assert json.loads(capsys.readouterr().out)['labels'] == labels


def test_the_template_is_written_around_labels(classify, folder):
  asked = lambda *more: json.loads(classify(folder / 'a.mp4', '--json', '-', *more)[1])
  plain, same, other = asked(), asked('--template', 'a video of {}'), asked('--template', '{}!')
  assert plain['videos'] == same['videos'] != other['videos']
  assert other['template'] == '{}!'


@pytest.mark.parametrize('arguments, message', [
  (['--labels', 'a'], 'arguments are required: VIDEO'),
  (['{folder}/a.mp4'], 'give either --labels or --labels-file'),
  (['{folder}/a.mp4', '--labels', ' , '], '--labels holds no labels'),
  (['{folder}/a.mp4', '--labels', 'a,b,a'], "--labels holds 'a' more than once"),
  (['{folder}/a.mp4', '--labels-file', '/dev/null'], '/dev/null holds no labels'),
  (['{folder}/a.mp4', '--labels-file', '/no/where'], '/no/where cannot be read as UTF-8 text'),
  (['{folder}/a.mp4', '--labels-file', '{folder}/a.mp4'], 'cannot be read as UTF-8 text'),
  (['{folder}/a.mp4', '--labels', 'word ' * 40], 'shorten it, or cut it with --truncate'),
  (['{folder}/a.mp4', '--labels', 'a', '--weights', '/no/where'], "'/no/where' is not there"),
  (['{folder}/a.mp4', '--labels', 'a', '--weights', '{folder}'], 'holds no weights'),
  (['{folder}/a.mp4', '--labels', 'a', '--template', 'x'], 'must hold {} for the label'),
  (['{folder}/a.mp4', '--labels', 'a', '--top', '0'], '--top must be at least 1'),
  (['{folder}/a.mp4', '--labels', 'a', '--frames', '-1'], '--frames must be at least 1'),
  (['{folder}/a.mp4', '--labels', 'a', '--heads', 'x'], "invalid choice: 'x'"),
  (['{folder}/*.mov', '--labels', 'a'], 'no videos found: nothing matches'),
  (['{empty}', '--labels', 'a'], 'no videos found in'),
])
def test_what_cannot_be_done_is_one_line_and_code_2(
  arguments, message, weights, folder, tmp_path, capsys
):
  places = {'folder': folder, 'empty': tmp_path}
  fill = lambda x: functools.reduce(lambda x, k: x.replace(f'{{{k}}}', str(places[k])), places, x)
  assert main.main(['classify', '--weights', weights, *map(fill, arguments)]) == 2
  out, err = capsys.readouterr()
  assert out == '' and message in err and err.startswith('xclip: ') and err.count('\n') == 1


def test_truncate_cuts_long_labels(weights, folder, tmp_path, capsys):
  long, out = 'word ' * 40, str(tmp_path / 'texts.npy')
  shared = ['--weights', weights, '--labels', f'{long},a dog', '--truncate']
  assert main.main(['classify', str(folder / 'a.mp4'), *shared, '--json', '-']) == 0
  assert json.loads(capsys.readouterr().out)['labels'] == [long.strip(), 'a dog']
  assert main.main(['embed', *shared, '-o', out]) == 0
  assert np.isfinite(np.load(out)).all()


def test_embed_writes_features_of_what_could_be_read(
  weights, folder, labels_file, tmp_path, capsys
):
  missing = str(tmp_path / 'missing.mp4')
  code = main.main(
    ['embed', missing, str(folder), '--weights', weights, '-o', str(tmp_path / 'out.npz'),
     '--labels-file', labels_file]
  )
  assert code == 1 and 'missing.mp4: cannot be read' in capsys.readouterr().err
  model = xclip_jax.load(weights)
  with np.load(tmp_path / 'out.npz') as found:
    assert found['video_features'].dtype == np.float32
    assert found['paths'].tolist() == files_of(folder) and found['failed'].tolist() == [missing]
    np.testing.assert_array_equal(found['video_features'], model.embed_video(files_of(folder)))
    np.testing.assert_array_equal(found['text_features'], model.embed_text(LABELS))
    assert found['labels'].tolist() == LABELS
    config = json.loads(str(found['config']))
  assert XCLIPConfig(**config['model']) == model.config and config['weights'] == weights
  assert main.main(['embed', '--weights', weights, '-o', str(tmp_path / 'out.npz')]) == 2
  assert 'no videos and no labels' in capsys.readouterr().err


def test_mixed_inputs_compile_two_programs(classify, folder, weights, monkeypatch, tmp_path):
  classifier._programs.cache_clear()                # what other tests compiled
  fresh = classifier.Classifier(native.read(weights))
  monkeypatch.setattr(classifier, 'load', lambda *_, **__: fresh)
  traced, encode = collections.Counter(), XCLIP.encode_video

  def counted(self, video, *rest):
    traced[video.shape[0]] += 1
    return encode(self, video, *rest)

  monkeypatch.setattr(XCLIP, 'encode_video', counted)
  files = files_of(folder)
  for copy in (1, 2):
    for file in files_of(folder):
      files.append(f'{tmp_path}/{copy}{pathlib.Path(file).name}')
      pathlib.Path(files[-1]).write_bytes(pathlib.Path(file).read_bytes())
  for count in (1, 3, 5, 8, 9, 12):
    assert classify(*files[:count])[0] == 0
  assert traced == {1: 1, 8: 1}


def test_weights_are_listed_with_whose_accuracy_it_is(capsys):
  assert main.main(['weights']) == 0
  out = capsys.readouterr().out
  for name, known in hub.KNOWN.items():
    line = next(line for line in out.splitlines() if line.split()[:1] == [name])
    assert known.variant in line and known.licence in line and line.endswith(known.published)
  assert 'PUBLISHED BY THE AUTHORS' in out
  assert 'except for toy, none was measured' in ' '.join(out.split())


def test_help_has_examples_and_version_is_the_packages(capsys):
  for arguments, text in (
    ('--help', 'xclip classify clip.mp4 --weights'), ('--version', xclip_jax.__version__)
  ):
    with pytest.raises(SystemExit) as done:
      main.main([arguments])
    assert done.value.code == 0 and text in capsys.readouterr().out


def run_fresh(*arguments, cache, code='sys.exit(cli.main(sys.argv[1:]))'):
  env = tiny.environment() | {'XCLIP_CACHE': str(cache)}
  env.pop('JAX_COMPILATION_CACHE_DIR', None)           # the tests' own, which the command heeds
  program = f'import sys; from xclip_jax.cli import main as cli; {code}'
  return subprocess.run(
    [sys.executable, '-c', program, *map(str, arguments)],
    env=env, capture_output=True, text=True, timeout=99,
  )


def test_a_fresh_process_loads_only_what_it_needs(weights, folder, labels_file, tmp_path):
  code = 'code = cli.main(sys.argv[1:]); print(*sys.modules, file=sys.stderr); sys.exit(code)'
  arguments = ['classify', folder, '--weights', weights, '--labels-file', labels_file]
  done = run_fresh(*arguments, '/no/where.mp4', cache=tmp_path, code=code)
  assert done.returncode == 1 and len(done.stdout.splitlines()) == 12, done.stderr[-2000:]
  loaded = set(done.stderr.splitlines()[-1].split())
  assert 'jax' in loaded
  assert [] == sorted(loaded & {
    'orbax', 'orbax.checkpoint', 'grain', 'optax', 'matplotlib', 'tensorboardX', 'tensorflow',
    'huggingface_hub', 'tensorflow_datasets', 'torch', 'transformers', 'tqdm', 'ml_collections',
    'xclip_jax.training.run', 'xclip_jax.training.evaluate_run', 'xclip_jax.storage.checkpoints',
    'xclip_jax.reports.run_page',
  })
  kept = {x.name for x in (tmp_path / 'compiled').iterdir()}
  assert kept
  # A place where nothing can be kept is no reason to fail.
  (tmp_path / 'file').touch()
  again = run_fresh(*arguments, cache=tmp_path / 'file')
  assert again.returncode == 0 and again.stdout == done.stdout, again.stderr[-2000:]


def test_a_mistake_is_answered_without_loading_jax(folder, tmp_path):
  code = 'code = cli.main(sys.argv[1:]); print("jax" in sys.modules); sys.exit(code)'
  done = run_fresh('classify', folder, '--weights', 'x', '--labels', '', cache=tmp_path, code=code)
  assert (done.returncode, done.stdout) == (2, 'False\n')
  assert done.stderr == 'xclip: --labels holds no labels\n'
