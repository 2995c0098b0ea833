"""Evaluation: trained runs to codes, mAP and its protocol. It may import training and the rooms above."""
