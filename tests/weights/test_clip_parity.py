"""A CLIP that PyTorch saved as OpenAI does arrives here with the same text features."""

import collections

import numpy as np
import pytest

import xclip_jax

pytestmark = pytest.mark.parity

VISION, TEXT, EMBED, LAYERS, PATCH, GRID, CONTEXT, VOCAB = 128, 192, 64, 3, 14, 3, 20, 300


def make_clip():
  """CLIP's modules under CLIP's names, random, in half precision but for what OpenAI keeps."""
  torch = pytest.importorskip('torch')
  nn = torch.nn

  class QuickGELU(nn.Module):
    def forward(self, x):
      return x * torch.sigmoid(1.702 * x)

  class Block(nn.Module):
    def __init__(self, width: int, causal: bool):
      super().__init__()
      self.attn = nn.MultiheadAttention(width, width // 64)
      self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
      self.mlp = nn.Sequential(collections.OrderedDict([
        ('c_fc', nn.Linear(width, 4 * width)), ('gelu', QuickGELU()),
        ('c_proj', nn.Linear(4 * width, width))]))
      self.causal = causal

    def forward(self, x):
      L = x.shape[0]
      mask = torch.full((L, L), float('-inf'), dtype=x.dtype).triu_(1) if self.causal else None
      y = self.ln_1(x)
      x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
      return x + self.mlp(self.ln_2(x))

  class Transformer(nn.Module):
    def __init__(self, width: int, causal: bool):
      super().__init__()
      self.resblocks = nn.Sequential(*[Block(width, causal) for _ in range(LAYERS)])

    def forward(self, x):
      return self.resblocks(x)

  class Vision(nn.Module):
    def __init__(self):
      super().__init__()
      self.conv1 = nn.Conv2d(3, VISION, PATCH, PATCH, bias=False)
      self.class_embedding = nn.Parameter(torch.randn(VISION))
      self.positional_embedding = nn.Parameter(torch.randn(GRID**2 + 1, VISION))
      self.ln_pre, self.ln_post = nn.LayerNorm(VISION), nn.LayerNorm(VISION)
      self.transformer = Transformer(VISION, False)
      self.proj = nn.Parameter(torch.randn(VISION, EMBED))

    def forward(self, image):
      return self.conv1(image)

  class CLIP(nn.Module):
    def __init__(self):
      super().__init__()
      self.visual, self.transformer = Vision(), Transformer(TEXT, True)
      self.token_embedding = nn.Embedding(VOCAB, TEXT)
      self.positional_embedding = nn.Parameter(torch.randn(CONTEXT, TEXT))
      self.ln_final = nn.LayerNorm(TEXT)
      self.text_projection = nn.Parameter(torch.randn(TEXT, EMBED))
      self.logit_scale = nn.Parameter(torch.tensor(2.5))
      for name, value in (('input_resolution', PATCH * GRID), ('context_length', CONTEXT),
                          ('vocab_size', VOCAB)):
        self.register_buffer(name, torch.tensor(value))

    def forward(self, text):
      x = self.token_embedding(text) + self.positional_embedding
      x = self.ln_final(self.transformer(x.permute(1, 0, 2)).permute(1, 0, 2))
      return x[torch.arange(len(text)), text.argmax(-1)] @ self.text_projection

  torch.manual_seed(0)
  model = CLIP().half().eval()
  for module in model.modules():
    if isinstance(module, nn.LayerNorm):
      module.float()
  return torch, model


@pytest.mark.parametrize('kind', ['torchscript', 'state dict', 'legacy'])
def test_openai_archives_of_any_size_give_clip_s_text_features(tmp_path, kind):
  torch, model = make_clip()
  text = torch.randint(1, VOCAB - 1, (4, CONTEXT))
  for row, end in enumerate((3, 7, 12, CONTEXT - 1)):
    text[row, end], text[row, end + 1:] = VOCAB - 1, 0
  path = tmp_path / 'ViT-odd.pt'
  if kind == 'torchscript':
    scripted = torch.jit.trace(model.float(), text)
    scripted.half()
    torch.jit.save(scripted, str(path))
  else:
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=kind != 'legacy')
  with torch.no_grad():
    want = model.half().float()(text).numpy()
  loaded = xclip_jax.load(path)
  c = loaded.config
  assert (c.image_size, c.patch_size, c.vision_heads, c.text_heads) == (
    PATCH * GRID, PATCH, VISION // 64, TEXT // 64)
  got = loaded.model.apply({'params': loaded.params}, text.numpy(), method='encode_text')
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())
  kernel = loaded.params['vision']['patch_embed']['kernel']
  weight = model.visual.conv1.weight.detach().float().numpy()
  np.testing.assert_array_equal(np.asarray(kernel), weight.transpose(2, 3, 1, 0))
