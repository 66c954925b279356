"""Zero-shot evaluation: from a benchmark's protocol to scores."""
