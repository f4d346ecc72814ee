"""Models as graphs of tensors, as ONNX and AOTInductor want them, and the files of such graphs."""
