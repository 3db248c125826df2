"""Weights leave for other frameworks and come back, and the commands say what they do."""

import dataclasses
import functools
import json
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from configs import base
from convert import __main__ as cli
from convert import golden_preprocess
from goldens_io import GOLDENS, load_npz
from xclip_jax import files
from xclip_jax.cli import main as xclip
from xclip_jax.cli.commands import convert
from xclip_jax.data.clips import augment
from xclip_jax.models import vision
from xclip_jax.models.config import XCLIPConfig
from xclip_jax.parallel import tree_names
from xclip_jax.storage import state
from xclip_jax.storage.checkpoints import Checkpoints
from xclip_jax.text.tokenizer import Tokenizer
from xclip_jax.training import job as job_lib
from xclip_jax.weights import apply, hub, native, opening, rules
from xclip_jax.weights.export import formats, huggingface
from xclip_jax.weights.files import archive, archive_writers

TINY = XCLIPConfig(
  image_size=32, patch_size=16, num_frames=4, embed_dim=64, vision_width=128, vision_layers=2,
  vision_heads=2, vision_mlp=512, text_width=64, text_layers=1, text_heads=1, text_mlp=256,
  vocab_size=80, context_length=12, mit_layers=1, mit_heads=1, mit_mlp=256, prompt_layers=2,
  prompt_heads=1,
)
# What no rule of a width could guess.
ODD = dataclasses.replace(
  TINY, vision_heads=8, text_heads=4, mit_heads=2, prompt_heads=16, text_mlp=96, mit_layers=2,
  mit_mlp=80, text_activation='gelu', prompt_activation='gelu',
)


def make_weights(config, seed=0, **fields):
  rng = np.random.default_rng(seed)
  draw = lambda x: rng.standard_normal(x.shape).astype(np.float32)
  params = jax.tree.map(draw, apply.abstract_params(config))
  return native.Weights(config, params, licence='MIT', **fields)


@pytest.fixture(scope='module', autouse=True)
def traced_once():
  """Tracing an initialisation is most of what tiny weights cost; there are three architectures."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(apply, 'abstract_params', functools.cache(apply.abstract_params))
    yield


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A place with `tiny` and `odd`, in our own format."""
  folder = tmp_path_factory.mktemp('weights')
  native.save(folder / 'tiny', make_weights(TINY))
  native.save(folder / 'odd', make_weights(ODD, template='a video of {}'))
  return folder


@pytest.fixture
def run(capsys):
  """Runs a command in this process: (exit code, stdout, stderr)."""
  def command(*arguments):
    code = cli.main([str(x) for x in arguments])
    return code, *capsys.readouterr()
  return command


def same_params(got, want):
  got, want = tree_names.flatten(got), tree_names.flatten(want)
  assert got.keys() == want.keys()
  for key, x in want.items():
    np.testing.assert_array_equal(got[key], x, err_msg=key)


def left_in(folder):
  return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize('name', ['tiny', 'odd'])
def test_hugging_face_and_back_is_bit_identical(folder, run, tmp_path, name):
  code, out, _ = run(folder / name, tmp_path / 'hf', '--to', 'hf')
  assert code == 0
  count = sum(x.size for x in jax.tree.leaves(make_weights(TINY if name == 'tiny' else ODD).params))
  assert f'(hf): {count:,} parameters' in out
  assert 'antialiased' in out and 'no tokenizer files' in out
  assert ('a video of {}' in out) == (name == 'odd')
  assert left_in(tmp_path / 'hf') == [
    'LICENSE', 'config.json', 'model.safetensors', 'preprocessor_config.json']
  want, got = hub.read(folder / name), hub.read(tmp_path / 'hf')
  assert got.config == want.config and got.dialect == 'huggingface'
  same_params(got.params, want.params)
  assert archive.read(tmp_path / 'hf/model.safetensors').tree['__metadata__'] == {'format': 'pt'}
  assert run(tmp_path / 'hf', tmp_path / 'again')[0] == 0
  again = hub.read(tmp_path / 'again')
  assert again.config == want.config
  same_params(again.params, want.params)


def test_official_and_back_is_bit_identical(folder, run, tmp_path):
  code, out, _ = run(folder / 'tiny', tmp_path / 'x.pth', '--to', 'official')
  assert code == 0 and 'tensors only' in out and 'short side 36 (opencv)' in out
  assert list(archive.read(tmp_path / 'x.pth').tree) == ['model']
  want, got = hub.read(folder / 'tiny'), hub.read(tmp_path / 'x.pth')
  assert (got.config, got.preprocess) == (want.config, want.preprocess)
  assert got.dialect == 'official'
  same_params(got.params, want.params)


def test_openai_keeps_the_towers_and_says_what_it_drops(folder, run, tmp_path):
  code, out, _ = run(folder / 'tiny', tmp_path / 'clip.pt', '--to', 'openai')
  assert code == 0 and 'message, integration and prompt modules are dropped' in out
  assert 'logit_scale' in archive.read(tmp_path / 'clip.pt').tree      # at the top, nothing around
  source = tree_names.flatten(hub.read(folder / 'tiny').params)
  kept = {k: x for k, x in source.items() if not tree_names.matches(rules.NEW_PARAMETERS, k)}
  assert f'{sum(x.size for x in kept.values()):,} parameters' in out
  drawn = []
  for seed in (3, 4):
    code, out, _ = run(tmp_path / 'clip.pt', tmp_path / f'{seed}', '--frames', 4, '--seed', seed)
    assert code == 0 and f'drawn from seed {seed}' in out
    got = hub.read(tmp_path / f'{seed}')
    assert got.config == TINY
    drawn.append(tree_names.flatten(got.params))
    for key in kept:
      np.testing.assert_array_equal(drawn[-1][key], kept[key], err_msg=key)
  assert (drawn[0]['mit/pos_embed'] != drawn[1]['mit/pos_embed']).all()


def test_a_run_becomes_weights_of_both_kinds(run, tmp_path):
  c = base.get_config()
  c.model.num_frames, c.data.template = 4, 'a video of {}'
  c.model.fields = {
    k: getattr(TINY, k) for k in (
      'image_size', 'patch_size', 'embed_dim', 'vision_width', 'vision_layers', 'vision_heads',
      'vision_mlp', 'text_width', 'text_layers', 'text_heads', 'text_mlp', 'vocab_size',
      'context_length', 'mit_heads', 'mit_mlp', 'prompt_heads')
  }
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run/config.json').write_text(c.to_json_best_effort())
  params = make_weights(job_lib.make_model(c).config).params
  with Checkpoints(tmp_path / 'run') as checkpoints:
    checkpoints.save(1, state.create(params, optax.identity()), {}, 0.5)
  code, out, _ = run('inspect', tmp_path / 'run')
  assert code == 0 and 'run, native names' in out and "'a video of {}'" in out
  assert run(tmp_path / 'run', tmp_path / 'native')[0] == 0
  assert run(tmp_path / 'native', tmp_path / 'hf', '--to', 'hf')[0] == 0
  ours, theirs = hub.read(tmp_path / 'native'), hub.read(tmp_path / 'hf')
  same_params(ours.params, params)
  same_params(theirs.params, params)
  assert ours.template == 'a video of {}'
  # A run is never replaced by weights, though it holds a config.json as they do.
  code, _, err = run(tmp_path / 'native', tmp_path / 'run', '--overwrite')
  assert code == 2 and 'not a folder with weights' in err
  same_params(opening.open_weights(tmp_path / 'run').params, params)


def test_what_a_format_cannot_say_is_refused(folder, run, tmp_path):
  code, _, err = run(folder / 'odd', tmp_path / 'x.pth', '--to', 'official')
  assert code == 2 and left_in(tmp_path) == []
  for text in ('vision_heads=8: it always takes vision_width // 64 = 2', 'text_heads=4',
               'mit_heads=2', 'prompt_heads=16', "text_activation='gelu'",
               "prompt_activation='gelu'", 'use --to hf or native'):
    assert text in err
  assert 'mit_mlp' not in err and 'vision_activation' not in err
  code, _, err = run(folder / 'odd', tmp_path / 'x.pt', '--to', 'openai')
  assert code == 2 and 'text_heads=4' in err and 'mit_heads' not in err
  mixed = dataclasses.replace(TINY, mit_activation='gelu')
  with pytest.raises(ValueError, match='hidden_act, holds both'):
    formats.check_target(mixed, 'hf')
  formats.check_target(mixed, 'native')


@pytest.mark.parametrize('target', formats.TARGETS)
def test_nothing_is_overwritten_unasked(folder, run, tmp_path, target):
  code, _, err = run(folder / 'tiny', tmp_path / 'x', '--to', target)
  assert code == 0
  before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
  code, _, err = run(folder / 'odd', tmp_path / 'x', '--to', target)
  assert code == 2 and 'exists' in err and err.count('\n') == 1
  assert before == {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
  other = make_weights(TINY, seed=1)
  native.save(tmp_path / 'other', other)
  assert run(tmp_path / 'other', tmp_path / 'x', '--to', target, '--overwrite')[0] == 0
  file = {'native': 'x/params.safetensors', 'hf': 'x/model.safetensors'}.get(target, 'x')
  tensors, _ = archive.state_dict(archive.read(tmp_path / file))
  assert any(np.array_equal(x, other.params['text']['pos_embed']) for x in tensors.values())
  assert left_in(tmp_path) == ['other', 'x']


def test_other_things_are_never_overwritten(folder, run, tmp_path):
  (tmp_path / 'photos').mkdir()
  (tmp_path / 'photos/a.jpg').write_text('')
  (tmp_path / 'letter.txt').write_text('dear')
  for name, target in (('photos', 'hf'), ('photos', 'official'), ('letter.txt', 'native')):
    code, _, err = run(folder / 'tiny', tmp_path / name, '--to', target, '--overwrite')
    assert code == 2 and name in err
  for source, destination in ((folder / 'tiny', folder / 'tiny'),
                              (folder / 'tiny/params.safetensors', folder / 'tiny')):
    code, _, err = run(source, destination, '--overwrite')
    assert code == 2 and 'is or holds SRC' in err
  assert (tmp_path / 'letter.txt').read_text() == 'dear'
  assert left_in(tmp_path) == ['letter.txt', 'photos'] and left_in(tmp_path / 'photos') == ['a.jpg']


@pytest.mark.parametrize('target', formats.TARGETS)
@pytest.mark.parametrize('overwrite', [False, True])
def test_a_death_in_the_middle_leaves_what_was_there(
  folder, tmp_path, monkeypatch, target, overwrite
):
  weights = hub.read(folder / 'tiny')
  if overwrite:
    formats.save(weights, target, tmp_path / 'x')
  before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
  chunks, seen = archive_writers._chunks, []

  def dying(array):
    seen.append(array)
    if len(seen) == 10:
      raise KeyboardInterrupt
    return chunks(array)

  monkeypatch.setattr(archive_writers, '_chunks', dying)
  with pytest.raises(KeyboardInterrupt):
    formats.save(weights, target, tmp_path / 'x', overwrite)
  assert len(seen) == 10
  assert before == {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
  assert left_in(tmp_path) == (['x'] if overwrite else [])


def test_mistakes_are_one_message(folder, run, tmp_path):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'page.pth').write_text('<!doctype html>')
  for source, words in (
    (tmp_path / 'nothing.pth', 'is not there'), (tmp_path / 'empty', 'holds no weights'),
    (tmp_path / 'page.pth', 'web page'),
  ):
    for arguments in ((source, tmp_path / 'x'), ('inspect', source)):
      code, out, err = run(*arguments)
      assert code == 2 and not out and words in err and err.startswith('error: ')
  assert left_in(tmp_path) == ['empty', 'page.pth']


def test_head_counts_that_disagree_are_told_and_can_be_changed(folder, run, tmp_path):
  run(folder / 'odd', tmp_path / 'hf', '--to', 'hf')
  code, out, _ = run(tmp_path / 'hf', tmp_path / 'file')
  assert code == 0 and 'prompt_heads 16 (reference: 1)' in out
  assert hub.read(tmp_path / 'file').config.prompt_heads == 16
  code, out, _ = run(tmp_path / 'hf', tmp_path / 'reference', '--heads', 'reference')
  assert code == 0 and 'following the reference' in out
  assert hub.read(tmp_path / 'reference').config.prompt_heads == 1
  code, out, _ = run('inspect', tmp_path / 'hf')
  assert 'prompt has 16 heads by config.json; the reference would have 1' in out


def test_frames_and_picture_size_can_be_changed(folder, run, tmp_path):
  code, out, _ = run(folder / 'tiny', tmp_path / 'x', '--frames', 6, '--image-size', 64)
  assert code == 0 and out.count('interpolated') == 2
  got = hub.read(tmp_path / 'x').config
  assert (got.num_frames, got.image_size) == (6, 64)


def test_inspect_tells_every_dialect(folder, run, tmp_path):
  weights, parts = hub.read(folder / 'tiny'), {}
  for target in formats.TARGETS:
    formats.save(weights, target, tmp_path / target)
    code, out, _ = run('inspect', tmp_path / target, '--json')
    assert code == 0
    told = json.loads(out)
    assert told['dialect'] == formats.DIALECTS.get(target, 'native')
    assert XCLIPConfig(**told['config']) == dataclasses.replace(
      TINY, num_frames=8 if target == 'openai' else 4)
    assert not told['problems'] and told['dtypes'] == {'float32': told['tensors']}
    assert all(tower['agrees'] for tower in told['heads'].values())
    parts[target] = told['parameters']
    code, out, _ = run('inspect', tmp_path / target)
    assert f'{formats.DIALECTS.get(target, "native")} names' in out
  assert parts['native'] == parts['hf'] == parts['official']
  towers = ('vision', 'text', 'logit_scale')
  assert {k: parts['native'][k] for k in towers} == {k: parts['openai'][k] for k in towers}
  assert parts['openai']['total'] == sum(parts['openai'][k] for k in towers)


def test_inspect_tells_what_else_is_there_and_what_does_not_fit(folder, run, tmp_path):
  tensors = apply.to_state_dict(hub.read(folder / 'tiny').params, 'official')
  del tensors['visual.ln_pre.bias']
  tensors |= {'extra': np.zeros((2, 3), np.float32), 'input_resolution': np.array(32)}
  tensors['visual.proj'] = tensors['visual.proj'].astype(np.float16)
  archive.write_torch(tmp_path / 'x.pth', tensors, wrap='model')
  code, out, _ = run('inspect', tmp_path / 'x.pth', '--json')
  told = json.loads(out)
  assert code == 0 and told['dialect'] == 'official'
  assert told['dtypes'] == {'float32': len(tensors) - 2, 'float16': 1, 'int64': 1}
  assert told['parameters']['unknown names'] == 6 and told['parameters']['not parameters'] == 1
  assert told['problems'] == ["missing 'vision/ln_pre/bias'", "unknown key 'extra'"]
  code, _, err = run(tmp_path / 'x.pth', tmp_path / 'y')
  assert code == 2 and "unknown key 'extra'" in err


def test_inspect_goes_on_where_conversion_stops(folder, run, tmp_path):
  formats.save(hub.read(folder / 'odd'), 'hf', tmp_path / 'hf')
  content = json.loads((tmp_path / 'hf/config.json').read_text())
  content['vision_config']['intermediate_size'] = 7
  (tmp_path / 'hf/config.json').write_text(json.dumps(content))
  code, out, _ = run('inspect', tmp_path / 'hf')
  assert code == 0 and 'vision_mlp: 7 in config.json, 512 in the weights' in out
  assert 'prompt    2 layers, width   64,  1 heads (the rule width // 64)' in out
  narrow = dataclasses.replace(TINY, text_width=32, text_mlp=128)
  tensors = apply.to_state_dict(make_weights(narrow).params, 'official')
  archive.write_torch(tmp_path / 'narrow.pth', tensors)
  code, out, _ = run('inspect', tmp_path / 'narrow.pth')
  assert code == 0 and 'official names' in out and 'text_width=32 is less than one head' in out


def test_inspect_knows_published_names(folder, run, tmp_path, monkeypatch):
  formats.save(hub.read(folder / 'tiny'), 'hf', tmp_path / 'hf')
  monkeypatch.setattr(hub, 'locate', lambda source: tmp_path / 'hf')
  code, out, _ = run('inspect', 'microsoft/xclip-base-patch32')
  assert code == 0 and 'K400 80.4 top-1' in out and 'licence     MIT' in out


def test_inspect_converts_no_array(folder, run, tmp_path, monkeypatch):
  formats.save(hub.read(folder / 'tiny'), 'official', tmp_path / 'x.pth')
  asked = []
  inward = rules.inward
  monkeypatch.setattr(
    rules, 'inward', lambda rule, x: asked.append(x.strides) or inward(rule, x))
  assert run('inspect', tmp_path / 'x.pth')[0] == 0
  assert asked and all(not any(strides) for strides in asked)      # one number, seen many times


def test_a_progress_bar_sees_the_hidden_files_that_are_written(tmp_path):
  (tmp_path / '.other.1.tmp').mkdir()
  with files.atomic_file(tmp_path / 'x.pt') as file:
    file.write(bytes(10))
    file.flush()
    assert formats._bytes_written(tmp_path / 'x.pt') == 10
  with files.atomic_folder(tmp_path / 'x') as folder:
    (folder / 'a').write_bytes(bytes(7))
    assert formats._bytes_written(tmp_path / 'x') == 7
  assert formats._bytes_written(tmp_path / 'x') == 0


def test_the_command_offers_every_format():
  assert convert.TARGETS == formats.TARGETS


def test_xclip_convert_and_inspect_do_what_python_m_convert_does(folder, tmp_path, capsys):
  assert xclip.main(['convert', str(folder / 'tiny'), str(tmp_path / 'x'), '--to', 'hf']) == 0
  assert f'wrote {tmp_path / "x"} (hf)' in capsys.readouterr().out
  same_params(hub.read(tmp_path / 'x').params, hub.read(folder / 'tiny').params)
  for program in (xclip.main, cli.main):
    words = ['weights', 'inspect'] if program is xclip.main else ['inspect']
    assert program([*words, str(tmp_path / 'x')]) == 0
    assert 'huggingface names' in capsys.readouterr().out
  assert xclip.main(['convert', str(folder / 'tiny'), str(tmp_path / 'x')]) == 2
  assert capsys.readouterr().err.count('\n') == 1


def test_clips_files_are_made_of_our_merges(tmp_path):
  huggingface.write_tokenizer(tmp_path, 77)
  vocabulary = json.loads((tmp_path / 'vocab.json').read_text(encoding='utf-8'))
  assert sorted(vocabulary.values()) == list(range(Tokenizer.vocab_size))
  assert vocabulary['<|endoftext|>'] == Tokenizer.eot_token
  merges = (tmp_path / 'merges.txt').read_text(encoding='utf-8').splitlines()
  assert len(merges) == 1 + 48894 and merges[1] == 'i n'
  assert all(''.join(pair.split()) in vocabulary for pair in merges[1:])


def test_preprocessing_of_hugging_face_weights_is_theirs():
  golden = load_npz('hf_preprocess.npz')
  preprocess = native.HUGGING_FACE
  size = golden_preprocess.IMAGE_SIZE
  for height, width in golden_preprocess.SHAPES:
    frames = golden_preprocess.make_frames(height, width)
    crops = augment.EvalTransform(size, preprocess.resize_ratio, preprocess.filter)(frames)
    np.testing.assert_array_equal(crops, golden[f'crops_{height}x{width}'])
    np.testing.assert_allclose(
      vision.normalize(crops, preprocess.mean, preprocess.std), golden[f'pixels_{height}x{width}'],
      rtol=0, atol=1e-6)


def test_the_command_works_as_documented(tmp_path):
  source = GOLDENS / 'hf_tiny_a'
  root = GOLDENS.parents[1]
  command = lambda *arguments: subprocess.run(
    [sys.executable, '-m', 'convert', *map(str, arguments)], cwd=root, capture_output=True,
    text=True, check=False)
  done = command(source, tmp_path / 'x')
  assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith(f'wrote {tmp_path / "x"}')
  same_params(hub.read(tmp_path / 'x').params, hub.read(source).params)
