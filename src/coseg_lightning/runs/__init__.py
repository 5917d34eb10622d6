"""Runs: their folders, stages, summaries and resumption."""
