"""The parts of extraction: one feature file of photos, of captions or of ready-made features, whole or in shards."""
