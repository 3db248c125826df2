"""What the model sees is what Hugging Face's processor makes of the same JSON."""

import json

import numpy as np
import pytest

from convert import golden_preprocess
from goldens_io import load_npz
from xclip_jax.data.clips import augment
from xclip_jax.errors import UserError
from xclip_jax.weights import native
from xclip_jax.weights.configs import processor

GOLDEN = load_npz('hf_preprocess_forms.npz')
SIZE = 16


def see(preprocess):
  """The frames as the model sees them: float32 [2, 16, 16, 3]."""
  frames = golden_preprocess.make_frames(*golden_preprocess.FRAMES)
  crops = augment.EvalTransform.of(preprocess, SIZE)(frames)
  return (crops - np.float32(preprocess.mean)) / np.float32(preprocess.std)


def read(folder, content, name='preprocessor_config.json'):
  (folder / name).write_text(json.dumps(content))
  return processor.read(folder, SIZE)


@pytest.mark.parametrize('form', golden_preprocess.FORMS)
def test_frames_are_prepared_as_the_processor_does(form, tmp_path):
  kind, changes = golden_preprocess.FORMS[form]
  saved = json.loads(str(GOLDEN[f'{form}.json']))
  written = {'image_processor_type': f'{kind}ImageProcessor', 'crop_size': SIZE, **changes}
  for content in (saved, written):
    preprocess, _ = read(tmp_path, content)
    want = GOLDEN[f'{form}.pixels']
    np.testing.assert_allclose(see(preprocess), want, atol=1e-6 * max(np.abs(want).max(), 1))


def test_forms_differ_in_what_the_model_sees():
  pixels = {form: GOLDEN[f'{form}.pixels'].tobytes() for form in golden_preprocess.FORMS}
  same = {'plain', 'number', 'resample_2'}, {'stretched', 'pair'}, {'square', 'no_crop'}
  assert len(set(pixels.values())) == len(pixels) - sum(len(forms) - 1 for forms in same)
  for forms in same:
    assert len({pixels[form] for form in forms}) == 1


def test_filters_have_one_name_everywhere():
  assert augment._PILLOW_FILTERS.keys() == native.RESAMPLE.keys()
  for name, number in native.RESAMPLE.items():
    assert augment._PILLOW_FILTERS[name] == number


def test_the_processor_config_of_transformers_5_wins(tmp_path):
  saved = json.loads(str(GOLDEN['statistics.json']))
  read(tmp_path, json.loads(str(GOLDEN['plain.json'])))
  nested = {'image_processor': saved, 'processor_class': 'XCLIPProcessor'}
  preprocess, notes = read(tmp_path, nested, 'processor_config.json')
  np.testing.assert_allclose(see(preprocess), GOLDEN['statistics.pixels'], atol=1e-6)
  assert notes == []
  older = {'processor_class': 'XCLIPProcessor'}               # of transformers 4: nothing is nested
  preprocess, _ = read(tmp_path, older, 'processor_config.json')
  np.testing.assert_allclose(see(preprocess), GOLDEN['plain.pixels'], atol=1e-6)


def test_missing_statistics_are_those_of_the_processor_class_and_it_is_said(tmp_path):
  for cls, mean in (('VideoMAEImageProcessor', 0.5), ('CLIPFeatureExtractor', 0.48145466)):
    preprocess, notes = read(tmp_path, {'feature_extractor_type': cls, 'size': 20})
    assert preprocess.mean[0] == round(mean * 255, 6)
    assert len(notes) == 2 and 'image_mean is missing' in notes[0] and cls in notes[0]
  (tmp_path / 'preprocessor_config.json').unlink()
  preprocess, [note] = processor.read(tmp_path, SIZE)
  assert preprocess == native.HUGGING_FACE and 'preprocessor_config.json' in note


@pytest.mark.parametrize('change, words', [
  ({'size': None}, 'size is null'),
  ({'size': {'longest_edge': 20}}, 'size is .*only shortest_edge'),
  ({'size': {'min_pixels': 20, 'max_pixels': 30}}, 'size is .*only shortest_edge'),
  ({'size': {'shortest_edge': 10**9}}, 'size is .*from 1 to 16384'),
  ({'size': {'shortest_edge': '20'}}, 'size is '),
  ({'size': []}, r'size is \[\]'),
  ({'crop_size': 17}, 'crop_size is 17; the model takes 16 x 16'),
  ({'crop_size': {'height': 16, 'width': 18}}, 'crop_size is '),
  ({'do_center_crop': False}, 'do_center_crop is false'),
  ({'do_resize': False, 'do_center_crop': False}, 'do_center_crop is false'),
  ({'do_resize': 'no'}, 'do_resize is "no"; true or false'),
  ({'do_pad': True}, 'do_pad is true'),
  ({'resample': 7}, 'resample is 7'),
  ({'resample': 'bicubic'}, 'resample is "bicubic"'),
  ({'rescale_factor': 0}, 'rescale_factor is 0'),
  ({'image_mean': [0.5, 0.5]}, 'image_mean is .*three numbers'),
  ({'image_std': [0.5, 0, 0.5]}, 'image_std is '),
  ({'image_processor_type': 'SiglipImageProcessor'}, 'image_processor_type is "Siglip'),
  ({'auto_map': {'AutoImageProcessor': 'mine.Processor'}}, 'auto_map is .*code of its own'),
  ({'do_grayscale': True}, 'do_grayscale is a field that this program does not know'),
])
def test_a_field_that_cannot_be_followed_is_named(change, words, tmp_path):
  content = json.loads(str(GOLDEN['plain.json'])) | change
  with pytest.raises(UserError, match=rf'^preprocessor_config\.json: {words}'):
    read(tmp_path, content)
  nested = {'image_processor': content}
  with pytest.raises(UserError, match=rf'^processor_config\.json: image_processor\.{words}'):
    read(tmp_path, nested, 'processor_config.json')
