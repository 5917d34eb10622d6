"""Finds suspicious labels: evidence, scores, ranking, noise level and correction guard."""
