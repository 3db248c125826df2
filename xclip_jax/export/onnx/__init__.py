"""How does a traced function become an ONNX model? Primitive by primitive."""
