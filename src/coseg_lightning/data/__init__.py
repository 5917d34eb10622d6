"""Datasets, and the samples that networks train and are tested on."""
