"""A LAM's device side as files for other runtimes, for inference and training: LiteRT and ONNX."""
