"""Datasets, and the samples that networks see."""
