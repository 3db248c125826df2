"""Makes the model and the clips that the package brings along, from a finished demo run.

  python train.py --config configs/demo.py --workdir runs/demo
  python benchmarks/toy.py --run runs/demo

It stores the run's weights in float16 with the names of all 32 classes, evaluates what was stored
on the demo's videos, draws the sample clips, and writes the numbers into about.json. The same run
gives the same files.
"""

import argparse
import csv
import dataclasses
import json
import pathlib

import numpy as np

from xclip_jax import files
from xclip_jax.assets import bundled
from xclip_jax.data.datasets import synthetic, synthetic_scenes
from xclip_jax.data.video.decode import VideoError
from xclip_jax.inference import classifier
from xclip_jax.parallel import tree_names
from xclip_jax.weights import native, opening

# One composition of a shape and a motion for each shape; the triangle's was never trained on.
SAMPLES = (('ring', 'circling clockwise'), ('square', 'growing'), ('triangle', 'moving up'))
SAMPLE_SEED = 2026            # the sets of the demo are drawn from other seeds
SAMPLE_SIZE = 64              # pixels, as in the demo's sets


def class_names(split: str) -> list[str]:
  """Lists the class names of a split, by label."""
  return [f'a {shape} {motion}' for shape, motion in synthetic_scenes.compositions(split)]


def read_rows(root: pathlib.Path, split: str) -> tuple[list[str], list[str]]:
  """Reads the paths of a split's videos, and the class name of each."""
  names = class_names(split)
  with (root / f'{split}.csv').open() as file:
    rows = list(csv.DictReader(file))
  return [str(root / row['path']) for row in rows], [names[int(row['label'])] for row in rows]


def measure_top1(model: classifier.Classifier, split: str, labels: list[str]) -> float:
  """Measures the share of a split's videos whose most probable label is their class."""
  paths, names = read_rows(synthetic.prepare(), split)
  answers = zip(model.classify_each(paths, labels), names, strict=True)
  return float(np.mean([best_labels(answer)[0][0] == name for answer, name in answers]))


def best_labels(answer: classifier.Answer | VideoError, count: int = 1) -> list[tuple[str, float]]:
  """Returns the most probable labels of one video; raises the error of one that cannot be read."""
  if isinstance(answer, VideoError):
    raise answer
  return answer.top(count)


def draw_samples(folder: pathlib.Path) -> dict[str, dict[str, object]]:
  """Writes the sample clips; returns what each shows."""
  folder.mkdir(parents=True, exist_ok=True)
  facts = {}
  for number, (shape, motion) in enumerate(SAMPLES):
    rng = np.random.default_rng((SAMPLE_SEED, number))
    scene = synthetic_scenes.draw_scene(rng, shape, motion, frames=16)
    video = synthetic.encode(
      synthetic_scenes.render(scene, SAMPLE_SIZE), f'xclip-jax: {scene.caption}')
    files.write_bytes(folder / f'{shape}.mp4', video)
    facts[f'sample:{shape}'] = {
      'label': f'a {shape} {motion}', 'caption': scene.caption, 'seed': [SAMPLE_SEED, number],
      'composition_in_training': not synthetic_scenes.is_held_out(shape, motion),
    }
  return facts


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--run', required=True, help='workdir of the demo')
  run = pathlib.Path(parser.parse_args().run)
  report = json.loads((run / 'results.json').read_bytes())
  seen, unseen = class_names('train'), class_names('zero_shot')
  weights = dataclasses.replace(
    opening.open_weights(run), source='the demo of xclip-jax (configs/demo.py, seed 0)',
    licence='Apache-2.0', labels=(*seen, *unseen))
  native.save(bundled.TOY_FOLDER, weights, overwrite=True, half=True)
  model = classifier.load(bundled.TOY)
  samples = draw_samples(bundled.SAMPLES_FOLDER)
  for row, answer in zip(samples.values(), model.classify_each(list(samples)), strict=True):
    row['answer'] = [[label, round(p, 3)] for label, p in best_labels(answer, 2)]
  facts = {
    'shows': 'moving shapes of the synthetic set, see docs/demo.md',
    'made_by': [
      'python train.py --config configs/demo.py --workdir runs/demo',
      'python benchmarks/toy.py --run runs/demo',
    ],
    'parameters': sum(x.size for x in tree_names.flatten(weights.params).values()),
    'stored_as': 'float16',
    'top1_of_this_file': {
      'val, 24 classes': measure_top1(model, 'val', seen),
      'val, among all 32': measure_top1(model, 'val', seen + unseen),
      'zero_shot, 8 classes': measure_top1(model, 'zero_shot', unseen),
      'zero_shot, among all 32': measure_top1(model, 'zero_shot', seen + unseen),
    },
    'report_of_the_run': {
      name: value for name, value in report.items() if name.endswith(('top1', 'against_reversed'))
    },
    'samples': samples,
  }
  files.write_text(bundled.TOY_FOLDER / 'about.json', json.dumps(facts, indent=1) + '\n')
  print(json.dumps(facts, indent=1))


if __name__ == '__main__':
  main()
