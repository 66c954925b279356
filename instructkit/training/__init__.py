"""Training: what a step reads, the DeepSpeed engine, checkpoints, the log."""
