"""Other methods for noisy labels, to compare with: each with its source."""
