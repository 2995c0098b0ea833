"""Evaluation: codes, metrics and protocol of trained runs. It may import training and the rooms above."""
