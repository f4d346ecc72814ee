"""NVIDIA's checkpoints to ours and back; ONNX."""
