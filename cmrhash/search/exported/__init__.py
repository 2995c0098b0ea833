"""Exported runs: a folder that encodes without the data set, its model card, and ONNX graphs."""
