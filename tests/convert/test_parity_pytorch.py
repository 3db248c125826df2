"""PyTorch reads what we write and computes what we compute, and the other way round."""

import dataclasses

import jax
import numpy as np
import pytest

from convert import __main__ as cli
from convert import golden_preprocess, verify
from xclip_jax.data.clips import augment
from xclip_jax.models import vision as vision_lib
from xclip_jax.models.config import XCLIPConfig
from xclip_jax.models.xclip import XCLIP
from xclip_jax.parallel import tree_names
from xclip_jax.text import tokenizer
from xclip_jax.weights import apply, hub, native
from xclip_jax.weights.export import formats, hf_config

pytestmark = pytest.mark.parity

# Everything differs: widths, depths, ratios, every head count, activations, sizes.
CONFIGS = (
  XCLIPConfig(
    image_size=32, patch_size=16, num_frames=4, embed_dim=48, vision_width=64, vision_layers=2,
    vision_heads=4, vision_mlp=160, text_width=40, text_layers=3, text_heads=5, text_mlp=96,
    vocab_size=90, context_length=13, mit_layers=2, mit_heads=3, mit_mlp=80, prompt_layers=1,
    prompt_heads=6,
  ),
  XCLIPConfig(
    image_size=48, patch_size=16, num_frames=3, embed_dim=128, vision_width=128, vision_layers=3,
    vision_heads=2, vision_mlp=512, text_width=64, text_layers=1, text_heads=1, text_mlp=256,
    vocab_size=61, context_length=20, mit_layers=1, mit_heads=2, mit_mlp=512, prompt_layers=2,
    prompt_heads=2,
  ),
  XCLIPConfig(
    image_size=24, patch_size=8, num_frames=5, embed_dim=32, vision_width=36, vision_layers=1,
    vision_heads=3, vision_mlp=72, text_width=56, text_layers=2, text_heads=7, text_mlp=60,
    vocab_size=tokenizer.Tokenizer.vocab_size, context_length=16, mit_layers=1, mit_heads=8,
    mit_mlp=64, prompt_layers=3, prompt_heads=16, vision_activation='gelu', mit_activation='gelu',
    prompt_activation='gelu',
  ),
)
OFFICIAL = CONFIGS[1]       # the one whose heads follow the rule


@pytest.fixture(scope='module')
def torch():
  return pytest.importorskip('torch')


@pytest.fixture(scope='module')
def transformers(torch):
  return pytest.importorskip('transformers')


def make_weights(config, seed=0):
  rng = np.random.default_rng(seed)

  def draw(name, x):
    values = rng.standard_normal(x.shape).astype(np.float32)
    if name == 'logit_scale':
      return np.array(2.5, np.float32)
    if name.endswith('/kernel'):
      return values * np.float32(np.prod(x.shape[:-1]) ** -0.5)
    return values * np.float32(0.2) + np.float32(name.endswith('/scale'))

  params = tree_names.map_with_names(draw, apply.abstract_params(config))
  return native.Weights(config, params, native.HUGGING_FACE)


def our_logits(weights, video, token_ids):
  return verify._run(weights.config, weights.params, video, token_ids)['logits']


@pytest.mark.parametrize('config', CONFIGS)
def test_logits_and_gradients_match_transformers(transformers, config):
  result = verify.compare(make_weights(config), seed=1, grads=True)
  assert result.failures(1e-5) == [], verify.show(result)
  leaves = jax.tree.leaves(apply.abstract_params(config))
  assert len(result.gradients) == len(leaves)
  blocks = config.vision_layers + config.text_layers + config.mit_layers + config.prompt_layers
  assert len(result.layers) == blocks + 11
  assert min(row.magnitude for row in result.layers) > 1e-3       # nothing is compared with zeros


def test_transformers_reads_every_field_of_the_config(transformers, tmp_path):
  formats.save(make_weights(CONFIGS[0]), 'hf', tmp_path / 'hf')
  loaded = transformers.XCLIPConfig.from_pretrained(tmp_path / 'hf').to_dict()
  default = transformers.XCLIPConfig().to_dict()
  written = hf_config.make(CONFIGS[0])
  for section in ('text_config', 'vision_config'):
    assert loaded[section].items() >= written[section].items()
    assert not default[section].keys() - loaded[section].keys()
    written.pop(section)
  assert loaded.items() >= written.items()


def test_transformers_model_arrives_with_its_logits(transformers, torch, tmp_path):
  torch.manual_seed(0)
  text = dict(
    vocab_size=70, hidden_size=40, intermediate_size=72, num_hidden_layers=2,
    num_attention_heads=5, max_position_embeddings=11)
  vision = dict(
    hidden_size=48, intermediate_size=100, num_hidden_layers=2, num_attention_heads=6,
    image_size=32, patch_size=8, num_frames=3, mit_hidden_size=24, mit_intermediate_size=50,
    mit_num_hidden_layers=2, mit_num_attention_heads=4)
  model = transformers.XCLIPModel(transformers.XCLIPConfig(
    text_config=text, vision_config=vision, projection_dim=24, prompt_layers=1,
    prompt_num_attention_heads=3)).eval()
  model.save_pretrained(tmp_path / 'theirs')
  weights = hub.read(tmp_path / 'theirs')
  video, token_ids, _ = verify.make_inputs(weights, 2)

  with torch.no_grad():
    want = model(
      input_ids=torch.from_numpy(token_ids.astype(np.int64)),
      pixel_values=torch.from_numpy(video.transpose(0, 1, 4, 2, 3).copy()),
    ).logits_per_video.numpy()
  np.testing.assert_allclose(our_logits(weights, video, token_ids), want, rtol=0, atol=1e-5)
  formats.save(weights, 'hf', tmp_path / 'ours')
  again = transformers.XCLIPModel.from_pretrained(tmp_path / 'ours').state_dict()
  assert again.keys() == model.state_dict().keys()
  assert all(torch.equal(x, again[key]) for key, x in model.state_dict().items())


def test_torch_loads_our_files(torch, tmp_path):
  weights = make_weights(OFFICIAL)
  for target in ('official', 'openai'):
    formats.save(weights, target, tmp_path / target)
    found = torch.load(tmp_path / target, weights_only=True)
    if target == 'official':
      assert list(found) == ['model']
      found = found['model']
    want = apply.to_state_dict(weights.params, formats.DIALECTS[target])
    assert list(found) == list(want)
    for key, x in want.items():
      assert found[key].dtype == torch.float32 and found[key].is_contiguous(), key
      np.testing.assert_array_equal(found[key].numpy(), x, err_msg=key)


def test_clip_of_transformers_arrives_whole(transformers, torch, tmp_path):
  torch.manual_seed(0)
  text = dict(
    vocab_size=70, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, max_position_embeddings=12, eos_token_id=69, bos_token_id=68)
  vision = dict(
    hidden_size=96, intermediate_size=128, num_hidden_layers=2, num_attention_heads=3,
    image_size=32, patch_size=16, hidden_act='gelu')
  model = transformers.CLIPModel(transformers.CLIPConfig(
    text_config=text, vision_config=vision, projection_dim=64)).eval()
  model.save_pretrained(tmp_path)
  weights = hub.read(tmp_path, num_frames=4)
  assert weights.dialect == 'huggingface_clip'
  c = weights.config
  assert (c.text_heads, c.vision_heads, c.vision_activation) == (4, 3, 'gelu')
  _, token_ids, _ = verify.make_inputs(weights, 0)
  with torch.no_grad():
    want = model.get_text_features(input_ids=torch.from_numpy(token_ids.astype(np.int64)))
  want = want.pooler_output if hasattr(want, 'pooler_output') else want
  got = verify._jit(lambda ids: XCLIP(c).apply(
    {'params': weights.params}, ids, method='encode_text'))(token_ids)
  np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=4e-6)      # features up to 3
  # Without its messages the image tower cannot be run, so it is compared tensor by tensor.
  again = apply.to_state_dict(weights.params, 'huggingface_clip')
  theirs = model.state_dict()
  assert again.keys() == theirs.keys() - {
    'text_model.embeddings.position_ids', 'vision_model.embeddings.position_ids'}
  for key, x in again.items():
    np.testing.assert_array_equal(x, theirs[key].numpy(), err_msg=key)


@pytest.mark.parametrize('shape', [(240, 320), (360, 641), (224, 224), (300, 225), (1080, 1920)])
def test_pixels_match_their_processor(transformers, shape):
  frames = golden_preprocess.make_frames(*shape)
  p = native.HUGGING_FACE
  crops = augment.EvalTransform(224, p.resize_ratio, p.filter)(frames)
  want = golden_preprocess.process(frames, 224, do_rescale=False, do_normalize=False)
  assert want.dtype == np.uint8
  np.testing.assert_array_equal(crops, want)
  np.testing.assert_allclose(
    vision_lib.normalize(crops, p.mean, p.std), golden_preprocess.process(frames, 224), rtol=0,
    atol=1e-6)


def test_the_golden_crops_are_still_theirs(transformers):
  size = golden_preprocess.IMAGE_SIZE
  with np.load(golden_preprocess.FILE) as golden:
    for height, width in golden_preprocess.SHAPES:
      frames = golden_preprocess.make_frames(height, width)
      np.testing.assert_array_equal(
        golden_preprocess.process(frames, size, do_rescale=False, do_normalize=False),
        golden[f'crops_{height}x{width}'])


def test_their_processor_works_from_our_folder(transformers, tmp_path):
  config = CONFIGS[2]
  weights = dataclasses.replace(
    make_weights(config), preprocess=native.Preprocess(resize_ratio=1.5, filter='pillow'))
  formats.save(weights, 'hf', tmp_path / 'hf')
  processor = transformers.XCLIPProcessor.from_pretrained(tmp_path / 'hf')
  texts = ["a dog's tail", 'Héllo, wörld!', 'playing the guitar on a stage 12', 'x' * 20]
  frames = golden_preprocess.make_frames(40, 57, config.num_frames)
  got = processor(text=texts, videos=list(frames), return_tensors='np', padding=True)
  ids = tokenizer.Tokenizer(config.context_length)(texts)
  ends = ids.argmax(1)
  np.testing.assert_array_equal(got['input_ids'].argmax(1), ends)
  for row, (mine, theirs) in enumerate(zip(ids, got['input_ids'], strict=True)):
    np.testing.assert_array_equal(theirs[:ends[row] + 1], mine[:ends[row] + 1])
  p = hub.read(tmp_path / 'hf').preprocess
  crops = augment.EvalTransform(config.image_size, p.resize_ratio, p.filter)(frames)
  pixels = np.asarray(vision_lib.normalize(crops, p.mean, p.std)).transpose(0, 3, 1, 2)
  np.testing.assert_allclose(got['pixel_values'][0], pixels, rtol=0, atol=1e-6)


def test_verify_tells_equal_from_different(transformers, tmp_path, capsys, monkeypatch):
  native.save(tmp_path / 'x', make_weights(OFFICIAL))
  assert cli.main(['verify', str(tmp_path / 'x'), '--no-grads']) == 0
  assert 'equal: logits within 1e-05' in capsys.readouterr().out
  make = hf_config.make
  monkeypatch.setattr(hf_config, 'make', lambda c: make(dataclasses.replace(c, mit_heads=4)))
  assert cli.main(['verify', str(tmp_path / 'x')]) == 1
  out = capsys.readouterr().out
  assert 'DIFFERENT: logits' in out and 'DIFFERENT: gradient' in out
  assert cli.main(['verify', str(tmp_path / 'nothing')]) == 2
