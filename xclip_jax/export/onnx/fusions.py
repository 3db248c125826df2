"""Operators that ONNX has as one and JAX traces as several: mean, softmax, layer normalisation.

Each function looks at the arrays of an addition or a division that is about to be added to the
graph, and returns the one operator that computes the same, or None. The nodes that led there stay
where something else needs them, and are dropped otherwise.
"""

import numpy as np

from xclip_jax.export.onnx.graph import Graph, Node, reduced_axes
from xclip_jax.export.onnx.values import Tensor, is_static


def mean(graph: Graph, total: Tensor, count: Tensor) -> Tensor | None:
  """Recognises a sum over axes that is divided by the product of their sizes."""
  node = graph.producer(total, 'ReduceSum')
  if node is None or count.scalar is None or not np.issubdtype(total.dtype, np.floating):
    return None
  axes = reduced_axes(node)
  sizes = tuple(node.inputs[0].shape[axis] for axis in axes)
  if not is_static(sizes) or float(count.scalar) != float(np.prod(sizes)):
    return None
  return graph.node('ReduceMean', [node.inputs[0]], total.shape, total.dtype, axes=axes,
                    keepdims=node.attributes['keepdims'])


def softmax(graph: Graph, numerator: Tensor, denominator: Tensor) -> Tensor | None:
  """Recognises exp(x - max x) / sum exp(x - max x) over one axis."""
  exponential, total = graph.producer(numerator, 'Exp'), graph.producer(denominator, 'ReduceSum')
  if not exponential or not total or total.inputs[0].name != numerator.name:
    return None
  shifted = graph.producer(exponential.inputs[0], 'Sub')
  highest = shifted and graph.producer(shifted.inputs[1], 'ReduceMax')
  axes = reduced_axes(total)
  if not shifted or not highest or highest.inputs[0].name != shifted.inputs[0].name or (
      len(axes) != 1 or axes != reduced_axes(highest) or not _keeps_axes(total, highest)):
    return None
  return graph.node('Softmax', [shifted.inputs[0]], numerator.shape, numerator.dtype, axis=axes[0])


def layer_norm(graph: Graph, x: Tensor, y: Tensor) -> Tensor | None:
  """Recognises (x - mean x) * (rsqrt(var x + eps) * scale) + bias over the last axis."""
  for scaled, bias in ((x, y), (y, x)):
    product = graph.producer(scaled, 'Mul')
    if product is None or not _is_last_axis(bias, scaled):
      continue
    for centred, factor in (product.inputs, product.inputs[::-1]):
      result = _layer_norm(graph, centred, factor, bias)
      if result is not None:
        return result
  return None


def _layer_norm(graph: Graph, centred: Tensor, factor: Tensor, bias: Tensor) -> Tensor | None:
  difference, product = graph.producer(centred, 'Sub'), graph.producer(factor, 'Mul')
  if difference is None or product is None:
    return None
  x = difference.inputs[0]
  inverse, scale = product.inputs if product.inputs[1].value is not None else product.inputs[::-1]
  root = graph.producer(inverse, 'Reciprocal')
  root = root and graph.producer(root.inputs[0], 'Sqrt')
  shifted = root and graph.producer(root.inputs[0], 'Add')
  if not shifted or not _is_last_axis(scale, x) or not _is_mean(graph, difference.inputs[1], x):
    return None
  variance, epsilon = shifted.inputs
  if epsilon.scalar is None or not _is_variance(graph, variance, centred, x):
    return None
  size = x.shape[-1]
  vectors = [graph.reshape(vector, (size,)) for vector in (scale, bias)]
  return graph.node('LayerNormalization', [x, *vectors], x.shape, x.dtype, axis=-1,
                    epsilon=float(epsilon.scalar))


def _is_variance(graph: Graph, variance: Tensor, centred: Tensor, x: Tensor) -> bool:
  """Tells whether an array is the mean square of x - mean x over the last axis."""
  node = graph.producer(variance, 'ReduceMean')
  square = node and graph.producer(node.inputs[0], 'Mul')
  return bool(node and square and _keeps_axes(node) and _reduces_last(node)
              and all(factor.name == centred.name for factor in square.inputs))


def _is_mean(graph: Graph, tensor: Tensor, x: Tensor) -> bool:
  node = graph.producer(tensor, 'ReduceMean')
  return bool(node and node.inputs[0].name == x.name and _keeps_axes(node) and _reduces_last(node))


def _reduces_last(node: Node) -> bool:
  return reduced_axes(node) == (len(node.inputs[0].shape) - 1,)


def _keeps_axes(*nodes: Node) -> bool:
  return all(node.attributes['keepdims'] for node in nodes)


def _is_last_axis(vector: Tensor, x: Tensor) -> bool:
  """Tells whether a constant has one value for each position of x's last axis."""
  return (vector.value is not None and bool(x.shape) and is_static(x.shape[-1:])
          and vector.value.size == x.shape[-1] == (vector.shape[-1] if vector.shape else 1))
