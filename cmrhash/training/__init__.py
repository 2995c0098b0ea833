"""Training: cached features to hash heads, with losses and methods. It may import features and the rooms above."""
