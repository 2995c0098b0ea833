"""Readers: one file per published layout of a data set, each returning an ImageTextDataset."""
