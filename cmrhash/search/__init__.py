"""Search: a trained run that answers sentences and photos. It may import evaluation and the rooms above."""
