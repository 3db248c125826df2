"""How does a model run where this package is not? Graphs of StableHLO and ONNX, with proof."""
