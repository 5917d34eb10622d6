"""The LightningModules, and what they share."""
