"""Models as graphs of tensors, as ONNX wants them, and the files of such graphs."""
