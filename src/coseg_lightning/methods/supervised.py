"""One plain network on the labels as they are: the baselines, and all methods that are a module."""

from dataclasses import replace

from coseg_lightning.methods.method import Method, Outcome, Run


def supervised_training(run: Run, outcome: Outcome) -> Outcome:
    """Train a single network, whose module may be a method's own."""
    run.train_network("supervised_training")
    return replace(outcome, last_stage="supervised_training")


METHOD = Method("supervised", (supervised_training,))
