"""Supervised training of one network: the baseline, and methods that only change the module."""

from dataclasses import replace

from coseg_lightning.methods.method import Method, Outcome, Run


def supervised_training(run: Run, outcome: Outcome) -> Outcome:
    """Train a single network, whose module may be the method's own."""
    run.train_network("supervised_training")
    return replace(outcome, last_stage="supervised_training", is_pair=False)


METHOD = Method("supervised", (supervised_training,))
