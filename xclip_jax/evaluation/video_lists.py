"""Annotation lists for evaluation: videos, texts, and which of them belong together."""

import collections
import dataclasses
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from xclip_jax import files
from xclip_jax.data.clips import pipeline
from xclip_jax.data.datasets import annotations, public_formats
from xclip_jax.errors import UserError
from xclip_jax.evaluation.scorer import PathSource, Progress, Scorer, Views
from xclip_jax.evaluation.scores import Scores


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationSet:
  """List of R videos and K texts.

  Fields:
    name: short, for tables.
    kind: of scores.KINDS.
    texts: K class names or captions.
    videos: source of R videos.
    paths: R, relative to the root of the list if they lie in it.
    label: as Scores.label; None: the source knows the class ids, which are read with the videos.
    fingerprint: of paths, labels and texts.
    origin: files and their SHA-256, for results.json.
  """

  name: str
  kind: str
  texts: tuple[str, ...]
  videos: pipeline.Source
  paths: tuple[str, ...]
  label: np.ndarray | None
  fingerprint: str
  origin: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def unique_texts(self) -> tuple[str, ...]:
    """Returns the texts without repeats. Equal captions are scored once, so that they tie."""
    return tuple(dict.fromkeys(self.texts))

  def score(
    self, scorer: Scorer, params: Any, text: jax.Array | np.ndarray, views: Views,
    average: str = 'probabilities', progress: Progress = iter,
  ) -> Scores:
    """Scores every video.

    Args:
      scorer: of the model.
      params: of the model, on the scorer's mesh.
      text: float32 features of `unique_texts`.
      views: of each video; average: how they are averaged, of `metrics.AVERAGES`.
      progress: wraps the batches.
    """
    logits, index, read_label, failed = scorer.score(params, self.videos, text, views, progress)
    unique = self.unique_texts
    if len(unique) < len(self.texts):
      column = {text: n for n, text in enumerate(unique)}
      logits = logits[:, :, [column[text] for text in self.texts]]
    label = self.label
    if label is None:
      label = np.full(len(self.paths), -1, np.int32)
      label[index] = read_label
    return Scores(
      self.kind, self.texts, logits, index, label, self.paths, failed, self.fingerprint, average)


@dataclasses.dataclass(frozen=True)
class _ListFile:
  """Annotation file and the folder that its paths start from."""

  path: Any
  root: Any

  @classmethod
  def open(cls, path: str | os.PathLike, root: str | os.PathLike | None) -> '_ListFile':
    """Chooses the root: the given one, or the folder of the list; videos are local."""
    path = files.as_path(path, 'list')
    if root is not None:
      files.check_scheme(root, '--root', bucket=False)
    elif files.is_remote(path):
      raise UserError(
        f'{path}: a list in a bucket does not say where its videos are mounted; give --root FOLDER')
    return cls(path, path.parent if root is None else root)

  def relative(self, paths: Sequence[str]) -> tuple[str, ...]:
    """Returns paths relative to the root, if they lie in it."""
    start = os.path.join(os.path.abspath(self.root), '')
    return tuple(path.removeprefix(start) for path in paths)

  def origin(self, paths: Sequence[str], fingerprint: str) -> dict[str, Any]:
    """Returns the file, its SHA-256 and the number of videos listed more than once."""
    repeats = sum(n - 1 for n in collections.Counter(paths).values())
    return {'list': str(self.path), 'list_sha256': _sha256(self.path), 'fingerprint': fingerprint,
            'videos_listed_again': repeats}


def labelled(
  name: str, path: str | os.PathLike, root: str | os.PathLike | None = None,
  classes: str | os.PathLike | None = None, several_labels: bool = False,
) -> EvaluationSet:
  """Reads a list of videos and their classes.

  Args:
    name: for tables.
    path: as `annotations.read_annotations` takes it.
    root: folder that paths start from; None: the list's.
    classes: CSV with `id,name`, or JSON with {"name": id}; None: classes.csv beside the list.
    several_labels: whether a video may have several labels, or none, instead of one.

  Raises:
    UserError: a file is missing or wrong, or a video has several labels where it must not.
  """
  listed = _ListFile.open(path, root)
  class_file = (listed.path.parent / 'classes.csv' if classes is None else
                files.as_path(classes, '--classes'))
  if not files.exists(class_file):
    raise UserError(f'{class_file} is not there; name the class list with --classes')
  is_json = class_file.suffix == '.json'
  read = public_formats.read_ssv2_classes if is_json else annotations.read_classes
  known = read(class_file)
  examples = annotations.read_annotations(listed.path, listed.root, known)
  videos = annotations.VideoList(examples, known, listed.root)
  if not videos.is_single_label and not several_labels:
    raise UserError(f'{listed.path}: gives a video several labels; see `xclip eval multi-label`')
  if several_labels:
    label = np.zeros((len(examples), len(known)), bool)
    for row, example in enumerate(examples):
      assert example.label is not None
      label[row, np.atleast_1d(example.label)] = True
  else:
    label = np.array([example.label for example in examples], np.int32)
  paths = tuple(example.path for example in examples)
  origin = listed.origin(paths, videos.fingerprint) | {
    'classes': str(class_file), 'classes_sha256': _sha256(class_file), 'texts': len(known)}
  return EvaluationSet(
    name, 'multi-label' if several_labels else 'single-label', known.names, PathSource(paths),
    listed.relative(paths), label, videos.fingerprint, origin)


def captions(
  path: str | os.PathLike, root: str | os.PathLike | None = None
) -> EvaluationSet:
  """Reads a list of videos and captions; a video with several captions is one video."""
  listed = _ListFile.open(path, root)
  examples = annotations.read_captions(listed.path, listed.root)
  texts = tuple(example.caption for example in examples)
  rows = {video: row for row, video in enumerate(dict.fromkeys(x.path for x in examples))}
  paths, owner = tuple(rows), np.array([rows[example.path] for example in examples], np.int32)
  # For the fingerprint: captions in place of class names, videos in place of labels.
  pairs = [annotations.Example(x.path, rows[x.path]) for x in examples]
  classes = annotations.ClassList(texts, (None,) * len(texts))
  fingerprint = annotations.VideoList(pairs, classes, listed.root).fingerprint
  origin = listed.origin(paths, fingerprint) | {'texts': len(texts)}
  return EvaluationSet(
    listed.path.stem, 'captions', texts, PathSource(paths), listed.relative(paths), owner,
    fingerprint, origin)


def short_names(paths: Sequence[str | os.PathLike]) -> list[str]:
  """Returns a name for each list: its file's, with as many folders as tell the lists apart."""
  absolute = lambda path: path if files.is_remote(path) else os.path.abspath(path)
  parts = [files.as_path(absolute(path), 'list').with_suffix('').parts for path in paths]
  for depth in range(1, max(map(len, parts))):
    names = ['/'.join(x[-depth:]) for x in parts]
    if len(set(names)) == len(names):
      return names
  raise UserError(f'a list is named twice among {", ".join(map(str, paths))}; name each once')


def _sha256(path: str | os.PathLike) -> str:
  return hashlib.sha256(annotations.read_content(path)).hexdigest()
