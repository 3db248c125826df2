"""Batches of a test, opened with flat options: the records that hold them are made here."""

import dataclasses

from xclip_jax.data.clips import pipeline, sampling


def open_training(source, transform, **options):
  """Opens training batches; options are fields of the four records of `train_batches`."""
  kinds = sampling.ClipSampler, pipeline.HostShare, pipeline.TrainStream, pipeline.Reading
  return pipeline.train_batches(source, transform, *_records(kinds, options))


def open_evaluation(source, transform, clips=1, **options):
  """Opens evaluation batches; options are fields of the three records of `eval_batches`."""
  kinds = sampling.ClipSampler, pipeline.HostShare, pipeline.Reading
  return pipeline.eval_batches(source, transform, *_records(kinds, options), clips=clips)


def _records(kinds, options):
  records = []
  for kind in kinds:
    names = {field.name for field in dataclasses.fields(kind)} & options.keys()
    records.append(kind(**{name: options[name] for name in names}))
    options = {name: value for name, value in options.items() if name not in names}
  assert not options, f'no field is named {", ".join(options)}'
  return records
