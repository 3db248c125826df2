"""The weights of a folder, and the JSON that describes them, are found by no name alone."""

import json

import pytest

from xclip_jax.errors import UserError
from xclip_jax.weights.configs import beside

HF, OPEN_CLIP = '{"model_type": "xclip"}', '{"model_cfg": {}}'


@pytest.mark.parametrize('names, chosen', [
  (['model.safetensors', 'model.fp16.safetensors', 'pytorch_model.bin'], 'model.safetensors'),
  (['model.fp16.safetensors', 'config.json'], 'model.fp16.safetensors'),
  (['pytorch_model.bf16.bin', 'model.bf16.safetensors'], 'model.bf16.safetensors'),
  (['model.safetensors.index.fp16.json', 'model.fp16-00001-of-00002.safetensors',
    'model.fp16-00002-of-00002.safetensors'], 'model.safetensors.index.fp16.json'),
  (['epoch_32.pt', 'open_clip_config.json', 'params.txt'], 'epoch_32.pt'),
  (['best.pth', 'optimizer.pt', 'scheduler.pt', 'rng_state.pth', 'training_args.bin'], 'best.pth'),
  (['adapter_model.safetensors', 'adapter_config.json'], None),
  (['README.md', 'vocab.json'], None),
])
def test_the_weights_of_a_folder_are_chosen(names, chosen):
  assert beside.choose_weights(names) == chosen


@pytest.mark.parametrize('names', [
  ['model.fp16.safetensors', 'model.bf16.safetensors'], ['epoch_1.pt', 'epoch_2.pt']])
def test_of_several_weights_none_is_guessed(names, tmp_path):
  for name in names:
    (tmp_path / name).touch()
  with pytest.raises(UserError, match=rf'holds several .*name one of them: .*{names[1]}'):
    beside.find_weights(tmp_path)


@pytest.mark.parametrize('weights, dialect, files, chosen', [
  ('model.fp16.safetensors', 'huggingface', {'config.json': HF}, 'config.json'),
  ('mine.pth', 'huggingface_clip', {'config.json': HF, 'open_clip_config.json': OPEN_CLIP},
   'config.json'),
  ('model.safetensors', 'openai', {'config.json': HF, 'open_clip_config.json': OPEN_CLIP},
   'open_clip_config.json'),
  ('open_clip_model.safetensors', 'openai', {'open_clip_config.json': OPEN_CLIP},
   'open_clip_config.json'),
  ('epoch_32.pt', 'open_clip', {'open_clip_config.json': OPEN_CLIP}, 'open_clip_config.json'),
  ('epoch_32.pt', 'openai', {'config.json': HF}, 'config.json'),
  ('k400.pth', 'official', {}, None),
  ('model.safetensors', 'huggingface', {'config.json': '{}'}, 'config.json'),
])
def test_the_config_beside_any_file_is_found(weights, dialect, files, chosen, tmp_path):
  for name, content in files.items():
    (tmp_path / name).write_text(content)
  found, notes = beside.find_config(tmp_path / weights, dialect)
  assert (found and found.name, notes) == (chosen, [])


def test_a_config_of_another_program_is_no_description_and_it_is_said(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps({'model': {}, 'data': {}}))     # a run's
  found, [note] = beside.find_config(tmp_path / 'k400.pth', 'official')
  assert found is None and note.startswith('config.json beside the weights is not')
