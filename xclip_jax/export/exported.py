"""An exported model as `xclip classify` uses it: its StableHLO graphs instead of the network."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from xclip_jax.data.video.decode import VideoError
from xclip_jax.errors import UserError
from xclip_jax.export import manifest, runtimes
from xclip_jax.inference.classifier import Answer
from xclip_jax.inference.clips import FrameReader, Video
from xclip_jax.text import prompts, tokenizer

_AHEAD = 4       # videos decoded before they are needed, at their own size


class ExportedModel:
  """A folder of `xclip export` that takes video files and labels, as a `Classifier` does.

  Frames go in at their own size. Each new size of the frames is compiled, so a folder of videos of
  many sizes is slower than with the weights themselves.

  Fields:
    template: texts around every label; of several the features are averaged.
  """

  def __init__(self, folder: Path, template: str | None = None):
    """Opens an export; UserError as `runtimes.StableHlo`."""
    self._file, self._manifest = folder / manifest.FILE, manifest.read(folder)
    self._call = runtimes.StableHlo(folder)
    self.template = (template,) if template else tuple(self._manifest['template'])

  @property
  def labels(self) -> tuple[str, ...]:
    """Returns the labels of the export; perhaps none."""
    return tuple(self._manifest['labels'])

  def classify_each(
    self, videos: Iterable[Video], labels: Sequence[str], truncate: bool = False
  ) -> Iterator[Answer | VideoError]:
    """Yields for each video in turn its Answer, or the error that names the video.

    Args:
      videos: paths, or uint8 frames [F, H, W, 3] in RGB.
      labels: what the videos may show.
      truncate: cut labels that are too long, instead of a UserError.
    """
    content = self._manifest
    text = self._text_features(tuple(labels), truncate)
    reader = FrameReader(
      content['num_frames'], content['image_size'],
      manifest.preprocess_of(content, self._file))
    return self._answers(reader, videos, tuple(labels), text)

  def _text_features(self, labels: tuple[str, ...], truncate: bool) -> np.ndarray:
    write = tokenizer.Tokenizer(self._manifest['context_length'])    # rows of all S, as the graph
    with tokenizer.advise('shorten it, or cut it with --truncate'):
      by_template = [
        self._call('text', write([template.replace('{}', x) for x in labels], truncate))[0]
        for template in self.template]
    if len(by_template) == 1:
      return by_template[0]
    return np.asarray(prompts.average(jnp.stack(by_template, axis=1)))

  def _answers(
    self, reader: FrameReader, videos: Iterable[Video], labels: tuple[str, ...], text: np.ndarray
  ) -> Iterator[Answer | VideoError]:
    with contextlib.ExitStack() as stack:
      for frames in stack.enter_context(reader.read_each(videos, _AHEAD)):
        if isinstance(frames, VideoError):
          yield frames
          continue
        video = self._call('video', frames[None])
        yield Answer(labels, self._call('score', *video, text)[0][0])


def load(folder: str | Path, template: str | None = None, **options: Any) -> ExportedModel:
  """Opens an export.

  Raises:
    UserError: the folder is damaged, holds no StableHLO, or an option was given that was settled
      when the model was exported.
  """
  if options:
    raise UserError(
      f'{folder} is an export, which was written with its own {", ".join(sorted(options))}; leave '
      'the option out, or export the weights again with it')
  return ExportedModel(Path(folder), template)
