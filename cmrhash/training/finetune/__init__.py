"""Fine-tuning: the training loop with unfrozen encoders, and the tuned encoders it writes."""
