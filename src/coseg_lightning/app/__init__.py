"""The app: everything that uses Hydra."""
