"""Search: trained runs that sentences and photos query. It may import evaluation and the rooms above."""
