"""From a traced JAX function to an ONNX model.

The converters that exist pin other versions of our dependencies, or replace functions of jax.numpy
while they trace. The graphs of this package use few primitives, so that ours stays small.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend import core

from xclip_jax.export.onnx import contractions, elementwise, indexing, layout
from xclip_jax.export.onnx.graph import Graph
from xclip_jax.export.onnx.values import Tensor, Value, is_static
from xclip_jax.parallel import platforms

OPSET = 17              # the first with LayerNormalization; what runtimes on the web and GPUs read
_IR_VERSION = 8         # of ONNX 1.12, which defined this opset
_ONE_FILE = 1_500_000_000                # bytes; a protocol buffer can have 2 GiB
_FOLDED_AT_MOST = 1 << 16                # elements of a constant that conversion computes

_HANDLERS = {**elementwise.HANDLERS, **layout.HANDLERS, **indexing.HANDLERS,
             **contractions.HANDLERS}
_CALLS = ('jaxpr', 'call_jaxpr', 'fun_jaxpr')     # the parameters that hold a function


def to_model(
  function: Callable[..., tuple], inputs: Sequence[Value], outputs: Sequence[str],
  half: str = 'float16', names: Mapping[int, str] | None = None,
) -> onnx.ModelProto:
  """Converts a function of arrays.

  Args:
    function: takes arrays in the order of inputs and returns a tuple; arrays of its closure become
      constants of the model.
    inputs: what it takes; their free sizes stay free.
    outputs: the names of what it returns.
    half: the dtype of what is bfloat16 in JAX, which few runtimes compute in.
    names: names of arrays of the closure, by their id.

  Returns:
    a checked model of opset OPSET.

  Raises:
    NotImplementedError: the function uses a primitive that has no conversion.
  """
  closed, shapes = _trace(function, inputs)
  graph = Graph(half)
  arrays = [graph.input(value, shape) for value, shape in zip(inputs, shapes, strict=True)]
  constants = [graph.constant(x, (names or {}).get(id(x), '')) for x in closed.consts]
  results = _evaluate(graph, closed.jaxpr, constants, arrays)
  results = [graph.expand(result, var.aval.shape)
             for result, var in zip(results, closed.jaxpr.outvars, strict=True)]
  return _model(graph, results, outputs)


def save(model: onnx.ModelProto, path: str | os.PathLike) -> None:
  """Writes a model: one file, and from 1.5 GB on its constants in `PATH.data` beside it.

  The constants of a model of two files are then no longer in memory.
  """
  path = Path(path)
  large = model.ByteSize() >= _ONE_FILE
  onnx.save_model(model, str(path), save_as_external_data=large, location=f'{path.name}.data')


def _trace(function: Callable, inputs: Sequence[Value]) -> tuple[Any, list[tuple]]:
  names = list(dict.fromkeys(
    size for value in inputs for size in value.shape if isinstance(size, str)))
  free = dict(zip(names, jax.export.symbolic_shape(','.join(names)), strict=True)) if names else {}
  shapes = [tuple(free[size] if isinstance(size, str) else size for size in value.shape)
            for value in inputs]
  arguments = [jax.ShapeDtypeStruct(shape, np.dtype(value.dtype))
               for value, shape in zip(inputs, shapes, strict=True)]
  with platforms.portable():
    return jax.make_jaxpr(function)(*arguments), shapes


# --- evaluation ---------------------------------------------------------------------------------
def _evaluate(
  graph: Graph, jaxpr: Any, constants: Sequence[Tensor], arrays: Sequence[Tensor]
) -> list[Tensor]:
  """Adds the equations of a traced function to a graph and returns its results."""
  known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *arrays), strict=True))

  def read(atom: Any) -> Tensor:
    if isinstance(atom, core.Literal):
      return graph.constant(np.asarray(atom.val, atom.aval.dtype))     # pyright: ignore
    return known[atom]

  for eqn in jaxpr.eqns:
    results = _apply(graph, eqn, [read(atom) for atom in eqn.invars])
    known.update(zip(eqn.outvars, results, strict=True))
  return [read(atom) for atom in jaxpr.outvars]


def _apply(graph: Graph, eqn: Any, inputs: list[Tensor]) -> Sequence[Tensor]:
  inner = next((eqn.params[name] for name in _CALLS if name in eqn.params), None)
  if inner is not None:
    constants = [graph.constant(x) for x in getattr(inner, 'consts', ())]
    graph.callers.append(eqn)
    results = _evaluate(graph, getattr(inner, 'jaxpr', inner), constants, inputs)
    graph.callers.pop()
    return results
  folded = _fold(graph, eqn, inputs)
  if folded is not None:
    return folded
  handler = _HANDLERS.get(eqn.primitive.name)
  if handler is None:
    raise NotImplementedError(
      f'{eqn.primitive.name} has no conversion to ONNX; it is used at '
      f'{_line([eqn, *reversed(graph.callers)])}')
  try:
    result = handler(graph, eqn, *inputs)
  except NotImplementedError as error:
    error.add_note(f'It is used at {_line([eqn, *reversed(graph.callers)])}.')
    raise
  return [result] if isinstance(result, Tensor) else result


def _fold(graph: Graph, eqn: Any, inputs: list[Tensor]) -> list[Tensor] | None:
  """Computes an equation of small constants; None for others."""
  avals = [var.aval for var in (*eqn.invars, *eqn.outvars)]
  if (not inputs or any(x.value is None for x in inputs)
      or any('float16' in str(aval.dtype) for aval in avals)
      or not all(is_static(aval.shape) and aval.size <= _FOLDED_AT_MOST for aval in avals)):
    return None
  values = [np.broadcast_to(x.value, aval.shape)             # type: ignore[arg-type]
            for x, aval in zip(inputs, avals, strict=False)]
  results = eqn.primitive.bind(*map(jax.numpy.asarray, values), **eqn.params)
  return [graph.constant(x) for x in (results if eqn.primitive.multiple_results else [results])]


def _line(equations: Sequence[Any]) -> str:
  """Returns the line outside of JAX and Flax that an equation comes from, or a caller of it."""
  foreign = (f'{os.sep}jax{os.sep}', f'{os.sep}flax{os.sep}', os.path.dirname(__file__))
  for eqn in equations:
    for frame in eqn.source_info.traceback.frames if eqn.source_info.traceback else ():
      if not any(name in frame.file_name for name in foreign):
        return f'{frame.file_name}:{frame.line_num}'
  return 'an unknown line'


# --- the model ----------------------------------------------------------------------------------
def _model(graph: Graph, results: list[Tensor], outputs: Sequence[str]) -> onnx.ModelProto:
  make = onnx.helper
  renamed: dict[str, str] = {}
  ends = []
  for result, name in zip(results, outputs, strict=True):
    if not graph.is_computed(result) or result.name in renamed:      # what has a name keeps it
      result = graph.node('Identity', [result], result.shape, result.dtype, output=name)
    renamed[result.name] = name
    ends.append(result)
  used = graph.used(ends)
  called = lambda names: [str(renamed.get(name, name)) for name in names]
  nodes = [make.make_node(
    node.op, called(x.name for x in node.inputs), called(node.outputs),
    **{key: value for key, value in node.attributes.items() if key != 'output'}) for node in used]
  describe = lambda name, x, shape: make.make_tensor_value_info(
    name, make.np_dtype_to_tensor_dtype(x.dtype),
    [size if is_static((size,)) else str(size) for size in shape])
  body = make.make_graph(
    nodes, 'xclip', [describe(value.name, x, value.shape) for x, value in graph.inputs],
    [describe(name, x, x.shape) for x, name in zip(results, outputs, strict=True)])
  model = make.make_model(body, opset_imports=[make.make_opsetid('', OPSET)],
                          producer_name='xclip-jax')
  model.ir_version = _IR_VERSION
  # Constants are added last: each message that contains a large one would be a copy of it.
  stored = {x.name for node in used for x in node.inputs}
  for name in [name for name in graph.constants if name in stored]:
    value = graph.constants.pop(name)
    model.graph.initializer.add(
      name=name, dims=value.shape, data_type=make.np_dtype_to_tensor_dtype(value.dtype),
      raw_data=value.tobytes())
  return model
