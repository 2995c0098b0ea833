"""Exported runs: a folder that hashes without the data set, its model card, and ONNX graphs."""
