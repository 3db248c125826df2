"""The PyTorch side of benchmarks/speed/step.py: transformers.XCLIPModel, timed on request.

The program builds one training or inference step and prints a line of JSON. For every line `N` on
standard input it then runs the step N times and prints the seconds of each run.
"""

import argparse
import json
import resource
import sys
import time

import torch
import transformers

from xclip_jax.models.config import make_config
from xclip_jax.weights.export import hf_config

HOWS = ('eager', 'compiled', 'onednn')


def main() -> None:
  """Builds the step, and times it for every line of standard input."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--variant', required=True)
  parser.add_argument('--frames', type=int, required=True)
  parser.add_argument('--fields', type=json.loads, default={},
                      help='XCLIPConfig fields that differ from the variant, as JSON')
  parser.add_argument('--batch', type=int, required=True)
  parser.add_argument('--classes', type=int, default=400)
  parser.add_argument('--step', choices=('infer', 'train'), required=True)
  parser.add_argument('--dtype', choices=('float32', 'bfloat16'), required=True)
  parser.add_argument('--how', choices=HOWS, required=True,
                      help='onednn: linear layers with weights packed for oneDNN')
  a = parser.parse_args()
  torch.manual_seed(0)
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  config = make_config(a.variant, num_frames=a.frames, **a.fields)
  model = transformers.XCLIPModel(transformers.XCLIPConfig(**hf_config.make(config))).to(device)
  side = config.image_size
  video = torch.randn(a.batch, a.frames, 3, side, side, device=device)
  text = torch.randn(a.classes, config.embed_dim, device=device)
  start = time.perf_counter()
  step = (infer_step if a.step == 'infer' else train_step)(model, video, text, a)
  value = float(step())
  first = time.perf_counter() - start
  print(json.dumps({
    'ready': True, 'first_seconds': round(first, 2), 'value': value, 'device': device,
    'attention': model.config._attn_implementation,
    'peer': f'transformers {transformers.__version__}, torch {torch.__version__}'}), flush=True)
  for line in sys.stdin:
    seconds = []
    for _ in range(int(line)):
      start = time.perf_counter()
      float(step())
      seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({
      'seconds': seconds, 'peak_mib': round(peak),
      'device_peak_bytes': torch.cuda.max_memory_allocated() if device == 'cuda' else None,
    }), flush=True)


def logits_of(model, video, text):
  """Computes XCLIPModel's logits [B, K] from videos and text features, as our `classify` does."""
  batch, frames = video.shape[:2]
  vision = model.vision_model(pixel_values=video.reshape(-1, *video.shape[2:]))
  features = model.visual_projection(vision[1]).view(batch, frames, -1)
  features = model.mit(features)[1]
  patches = model.prompts_visual_layernorm(vision[0][:, 1:]) @ model.prompts_visual_projection
  patches = patches.view(batch, frames, -1, features.shape[-1]).mean(dim=1)
  text = text.unsqueeze(0).expand(batch, -1, -1)
  text = text + model.prompts_generator(text, patches)
  features = features / features.norm(p=2, dim=-1, keepdim=True)
  text = text / text.norm(p=2, dim=-1, keepdim=True)
  return torch.einsum('bd,bkd->bk', features, model.logit_scale.exp() * text)


def infer_step(model, video, text, a):
  """Returns a function that runs one inference step."""
  model.eval()
  kind = getattr(torch, a.dtype)
  model, video, text = model.to(kind), video.to(kind), text.to(kind)
  if a.how == 'onednn':
    pack_linears(model)
  forward = lambda: logits_of(model, video, text)
  if a.how == 'compiled':
    from torch._inductor import config as inductor
    inductor.freezing = True
    forward = torch.compile(forward)

  def step():
    with torch.no_grad():
      return forward().float().sum()
  return step


def train_step(model, video, text, a):
  """Returns a function that runs one training step with a frozen text tower."""
  model.train()
  for part in (model.text_model, model.text_projection):
    part.requires_grad_(False)
  trained = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(trained, lr=1e-5, betas=(0.9, 0.98), weight_decay=1e-3, fused=True)
  target = torch.softmax(torch.randn(len(video), len(text), device=video.device), dim=-1)

  def forward():
    mixed = a.dtype == 'bfloat16'
    with torch.autocast(video.device.type, torch.bfloat16, enabled=mixed):
      logits = logits_of(model, video, text)
    return torch.nn.functional.cross_entropy(logits.float(), target)

  if a.how == 'compiled':
    forward = torch.compile(forward)

  def step():
    loss = forward()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()
  return step


class PackedLinear(torch.nn.Module):
  """A linear layer with packed weights for oneDNN, which is twice as fast as MKL on some CPUs."""

  def __init__(self, linear):
    super().__init__()
    self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
    self.bias = None if linear.bias is None else linear.bias.detach()

  def forward(self, x):
    return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, 'none', [], '')


def pack_linears(module):
  """Replaces all linear layers inside a module by packed ones."""
  for name, child in module.named_children():
    if isinstance(child, torch.nn.Linear):
      setattr(module, name, PackedLinear(child))
    else:
      pack_linears(child)


if __name__ == '__main__':
  main()
