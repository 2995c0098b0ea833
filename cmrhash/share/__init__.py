"""A run for others: a folder that encodes without the data set, its card, ONNX, and how it is opened again."""
