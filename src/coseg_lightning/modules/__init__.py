"""The LightningModules and the parts that they share."""
