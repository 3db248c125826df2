"""Videos in folders: the endings of their names, and a walk that ends although links form loops."""

import dataclasses
import glob
import os
from collections.abc import Iterable, Iterator

SUFFIXES = tuple((  # of video files, for every command
  '.264 .265 .3g2 .3gp .amv .apng .asf .av1 .avi .dav .divx .dv .dvr-ms .evo .f4v .flc .fli .flv '
  '.gif .gxf .h261 .h263 .h264 .h265 .hevc .insv .ismv .ivf .lrv .m1v .m2p .m2t .m2ts .m2v .m4v '
  '.mjpeg .mjpg .mk3d .mkv .mod .mov .mp2v .mp4 .mp4v .mpe .mpeg .mpg .mpv .mqv .mts .mxf .nsv '
  '.nut .nuv .obu .ogm .ogv .qt .rm .rmvb .tod .tp .trp .ts .vc1 .vob .vro .webm .wmv .wtv .xvid '
  '.y4m').split())

# Files that lie beside videos and of which nothing has to be said: texts, pictures, sound, numbers.
_OTHERS = tuple((
  '.txt .csv .tsv .json .jsonl .xml .yaml .yml .md .html .pdf .doc .docx .srt .vtt .ass .ssa .sub '
  '.idx .nfo .log .py .sh .ipynb .jpg .jpeg .png .bmp .tif .tiff .heic .svg .thm .xmp .aae .mp3 '
  '.wav .flac .aac .m4a .ogg .opus .wma .ini .db .lnk .url .npy .npz .pt .pkl .parquet .md5 '
  '.sha256').split())

_MOST_NAMED = 3            # files left out that are named in one line


@dataclasses.dataclass(frozen=True)
class Found:
  """Holds the videos of a folder, and what in it may be a video but is not taken for one.

  Fields:
    videos: paths, sorted.
    left_out: paths of files with an unknown ending or none, and of folders that cannot be read.
  """

  videos: list[str]
  left_out: list[str]


def find_videos(folder: str | os.PathLike) -> Found:
  """Finds the videos at any depth of a folder by their suffix.

  Hidden files and folders are ignored. Links to folders are followed, but no folder is walked
  twice, and none that holds `folder`. What is not a regular file is found, too, so that reading it
  says what is wrong.
  """
  videos, left_out = [], []
  for place, entries in _walk(folder):
    if entries is None:
      left_out.append(place)
      continue
    for entry in entries:
      if has_suffix(entry.name):
        videos.append(entry.path)
      elif not entry.name.lower().endswith(_OTHERS):
        left_out.append(entry.path)
  return Found(sorted(videos), sorted(left_out))


def match(pattern: str) -> list[str]:
  """Returns the files and folders that a pattern names, sorted; `**` walks links as `find_videos`.

  `glob.glob` would follow links that form loops until the path is too long.
  """
  parts = pattern.split(os.sep)
  if '**' not in parts:
    return sorted(glob.glob(pattern))
  depth = parts.index('**')
  begin, rest = os.sep.join(parts[:depth]), os.sep.join(parts[depth + 1:])
  starts = sorted(glob.glob(begin)) if begin else [os.sep if pattern.startswith(os.sep) else '']
  found = []
  for start in filter(lambda start: os.path.isdir(start or '.'), starts):
    for place, entries in _walk(start or '.'):
      shown = place if start else os.path.relpath(place).removeprefix('.')
      found += match(os.path.join(glob.escape(shown), rest)) if rest else [
        os.path.join(shown, entry.name) for entry in entries or ()]
  return sorted(set(found))


def _walk(folder: str | os.PathLike) -> Iterator[tuple[str, list[os.DirEntry] | None]]:
  """Yields each folder and what is in it but folders and hidden files; None if it is unreadable."""
  walked: set[tuple[int, int]] = set()
  waiting, links = [os.fspath(folder)], []      # links come last: a file keeps its own path
  above = _identities_above(folder)
  while waiting or links:
    place = waiting.pop() if waiting else links.pop(0)
    try:
      identity = _identity(place)
      if identity in walked or identity in above:
        continue
      walked.add(identity)
      with os.scandir(place) as found:
        entries = sorted((x for x in found if not x.name.startswith('.')), key=lambda x: x.name)
    except OSError:
      yield place, None
      continue
    inner = [entry for entry in entries if _is_folder(entry)]
    for entry in inner:
      (links if entry.is_symlink() else waiting).append(entry.path)
    yield place, [entry for entry in entries if entry not in inner]


def _is_folder(entry: os.DirEntry) -> bool:
  try:
    return entry.is_dir()
  except OSError:            # a link to itself
    return False


def has_suffix(name: str) -> bool:
  """Returns whether the name of a file ends as that of a video."""
  return name.lower().endswith(SUFFIXES)


def is_above(folder: str | os.PathLike, inner: str | os.PathLike) -> bool:
  """Returns whether a folder is, perhaps by a link, `inner` itself or holds it."""
  return _identity(folder) in {_identity(inner), *_identities_above(inner)}


def describe_left_out(paths: Iterable[str]) -> str:
  """Returns one line about files left out; '' if there are none."""
  paths = list(paths)
  if not paths:
    return ''
  count = '1 file whose name does' if len(paths) == 1 else f'{len(paths)} files whose names do'
  more = ', ...' if len(paths) > _MOST_NAMED else ''
  return (f'left out {count} not end as those of videos: {", ".join(paths[:_MOST_NAMED])}{more}')


def _identity(path: str | os.PathLike) -> tuple[int, int]:
  status = os.stat(path)
  return status.st_dev, status.st_ino


def _identities_above(folder: str | os.PathLike) -> set[tuple[int, int]]:
  """Returns the identities of all folders that hold a folder."""
  above, place = set(), os.path.realpath(folder)
  while (parent := os.path.dirname(place)) != place:
    place = parent
    above.add(_identity(place))
  return above
