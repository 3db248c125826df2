"""Lists of videos as evaluation needs them: what is shown, what is asked, and what is right."""

import collections
import dataclasses
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from xclip_jax import files
from xclip_jax.data.datasets import annotations, public_formats
from xclip_jax.errors import UserError
from xclip_jax.evaluation import scores


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationSet:
  """R videos of a list, K texts, and which of them are right."""

  name: str                  # short, for tables
  kind: str                  # of scores.KINDS
  texts: tuple[str, ...]     # K
  paths: tuple[str, ...]     # R, absolute
  shown: tuple[str, ...]     # R, as the list says if they lie in its root
  label: np.ndarray          # as scores.Scores.label
  fingerprint: str
  about: dict[str, Any]      # where it comes from, for results.json

  def score(
    self, scorer: Any, templates: Sequence[str], views: Any, average: str, clip_seconds: float,
    progress: Any, truncate: bool = False,
  ) -> scores.Scores:
    """Shows every video to a `Scorer`; arguments as there."""
    # Captions that are written twice are scored once: they tie exactly.
    unique = tuple(dict.fromkeys(self.texts))
    column = {text: n for n, text in enumerate(unique)}
    features = scorer.encode_texts(unique, templates, truncate)
    logits, index, failed = scorer.score(self.paths, features, views, clip_seconds, progress)
    if len(unique) < len(self.texts):
      logits = logits[:, :, [column[text] for text in self.texts]]
    return scores.Scores(
      self.kind, self.texts, logits, index, self.label, self.shown, failed, self.fingerprint,
      average)


def labelled(
  name: str, path: str | os.PathLike, root: str | os.PathLike | None = None,
  classes: str | os.PathLike | None = None, several_labels: bool = False,
) -> EvaluationSet:
  """Reads a list of videos and their classes.

  Args:
    name: for tables.
    path: as `data.source.read_annotations` takes it.
    root: folder that paths start from; None: the list's.
    classes: CSV with `id,name`, or JSON with {"name": id}; None: classes.csv beside the list.
    several_labels: whether a video may have several, or none other than one.

  Raises:
    ValueError: a file is missing or wrong, or a video has several labels where it must not.
  """
  path, root = _place(path, root)
  classes = path.parent / 'classes.csv' if classes is None else files.as_path(classes, '--classes')
  if not files.exists(classes):
    raise UserError(f'{classes} is not there; name the class list with --classes')
  read = public_formats.read_ssv2_classes if classes.suffix == '.json' else annotations.read_classes
  known = read(classes)
  examples = annotations.read_annotations(path, root, known)
  videos = annotations.VideoList(examples, known, root)
  if not videos.is_single_label and not several_labels:
    raise UserError(f'{path}: gives a video several labels; see `xclip eval multi-label`')
  if several_labels:
    label = np.zeros((len(examples), len(known)), bool)
    for row, example in enumerate(examples):
      label[row, list(np.atleast_1d(example.label))] = True
  else:
    label = np.array([example.label for example in examples], np.int32)
  kind = 'multi-label' if several_labels else 'single-label'
  paths = tuple(example.path for example in examples)
  about = {'classes': str(classes), 'classes_sha256': _sha256(classes), 'texts': len(known)}
  return _set(name, kind, known.names, paths, path, root, label, videos.fingerprint, about)


def captions(
  path: str | os.PathLike, root: str | os.PathLike | None = None
) -> EvaluationSet:
  """Reads a list of videos and captions; a video with several captions is one video."""
  path, root = _place(path, root)
  examples = annotations.read_captions(path, root)
  texts = tuple(example.caption for example in examples)
  rows = {video: row for row, video in enumerate(dict.fromkeys(x.path for x in examples))}
  owner = np.array([rows[example.path] for example in examples], np.int32)
  listed = [annotations.Example(x.path, row) for x, row in zip(examples, owner.tolist(), strict=True)]
  none = (None,) * len(texts)
  fingerprint = annotations.VideoList(listed, annotations.ClassList(texts, none), root).fingerprint
  return _set(path.stem, 'captions', texts, tuple(rows), path, root, owner, fingerprint,
              {'texts': len(texts)})


def short_names(paths: Sequence[str | os.PathLike]) -> list[str]:
  """Returns a name for each list: that of its file, with as many folders as tell them apart."""
  absolute = lambda path: path if files.is_remote(path) else os.path.abspath(path)
  parts = [files.as_path(absolute(path), 'list').with_suffix('').parts for path in paths]
  for depth in range(1, max(map(len, parts))):
    names = ['/'.join(x[-depth:]) for x in parts]
    if len(set(names)) == len(names):
      return names
  raise UserError('a list is named twice')


def _set(
  name: str, kind: str, texts: tuple[str, ...], paths: tuple[str, ...], file: str | os.PathLike,
  root: str | os.PathLike, label: np.ndarray, fingerprint: str, about: dict[str, Any],
) -> EvaluationSet:
  start = os.path.join(os.path.abspath(root), '')
  shown = tuple(path.removeprefix(start) for path in paths)
  repeats = sum(n - 1 for n in collections.Counter(paths).values())
  about = {'list': str(file), 'list_sha256': _sha256(file), 'fingerprint': fingerprint,
           'videos_listed_again': repeats} | about
  return EvaluationSet(name, kind, texts, paths, shown, label, fingerprint, about)


def _sha256(path: str | os.PathLike) -> str:
  return hashlib.sha256(annotations.read_content(path)).hexdigest()


def _place(path: str | os.PathLike, root: str | os.PathLike | None) -> tuple[Any, Any]:
  """Returns the path of a list, and the folder that its paths start from; videos are local."""
  path = files.as_path(path, 'list')
  if root is not None:
    files.check_scheme(root, '--root', bucket=False)
  elif files.is_remote(path):
    raise UserError(
      f'{path}: a list in a bucket does not say where its videos are mounted; give --root FOLDER')
  return path, path.parent if root is None else root
