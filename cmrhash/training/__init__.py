"""Training: features to hash heads, with methods and losses. It may import features and the rooms above."""
