"""Fine-tuning: the training loop with the encoders unfrozen, and the encoders that it leaves behind."""
