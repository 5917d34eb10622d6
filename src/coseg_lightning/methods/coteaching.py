"""Robust training: two peers select for each other (section 2.1; Han et al. 2018, 1804.06872)."""

from dataclasses import replace
from functools import partial

from pytorch_lightning.callbacks import Callback
from torch import nn

from coseg_lightning.callbacks.noise_level_estimation import NoiseLevelEstimation
from coseg_lightning.errors import InputError
from coseg_lightning.files.checkpoints import plain_names
from coseg_lightning.methods.method import Method, Outcome, Run, TrainedPeers


def robust_training(run: Run, outcome: Outcome) -> Outcome:
    """Train two peers that select samples for each other.

    Section 2.1: "two segmentation networks simultaneously".

    If the method corrects labels, the peers vote on the noisy labels at the end (section 2.2). The
    corrected masks then replace those of the training set. Of several rounds, the last one has the
    names without a number, and its labels take precedence over those of earlier rounds.
    """
    later = run.runner.later_stages
    for number in range(1, run.recipe.rounds + 1):
        run.runner.expect(later + run.recipe.rounds - number)
        suffix = "" if number == run.recipe.rounds else f"_{number}"
        peers = run.runner.stage(
            f"robust_training{suffix}",
            partial(train_peers, run, suffix),
            makes=(
                f"scores{suffix}.csv",
                *(f"{name}{suffix}" for name in ("labels", "uncertainty", "proposals")),
            ),
            returns=TrainedPeers,
        )
        run.runner.add_label_layers(run.data, peers.layers)
        outcome = replace(
            outcome,
            last_stage=f"robust_training{suffix}",
            is_pair=True,
            peers=peers,
            changed=outcome.changed | set(peers.changed),
            corrected=outcome.corrected or bool(peers.layers and not peers.correction_skipped),
        )
    return outcome


def train_peers(run: Run, suffix: str) -> TrainedPeers:
    """Train the peers, rank the training set, and correct it if the method corrects labels."""
    folder, recipe = run.runner.folder, run.recipe
    module = run.peers()
    ranking_callback = run.method.ranking(
        folder.path / f"scores{suffix}.csv",
        score=recipe.score,
        epochs=recipe.score_epochs,
        by_class=recipe.by_class,
        run_id=folder.id,
    )
    callbacks: list[Callback] = [ranking_callback]
    if module.noise.is_estimated:  # before the ranking, which uses the estimate
        callbacks.insert(0, NoiseLevelEstimation())
    correction = None
    if run.method.correction is not None:
        if recipe.warm_start:
            check_same_architecture(module.net_a, run.network().net)
        correction = run.method.correction(
            folder.path / f"labels{suffix}",
            confidence=recipe.confidence,
            by_class=recipe.by_class,
            run_id=folder.id,
        )
        correction.show_in(folder.path / f"uncertainty{suffix}", folder.path / f"proposals{suffix}")
        callbacks.append(correction)
    run.runner.fit(f"robust_training{suffix}", module, run.data, callbacks)
    ranking = ranking_callback.ranking
    if ranking is None:
        raise InputError("Nothing was trained; give the trainer max_epochs of at least 1.")
    estimate = module.noise.estimate
    return TrainedPeers(
        samples=len(ranking.ids),
        noisy=[ranking.ids[index] for index in ranking.noisy],
        changed=sorted(index for index, pixels in ranking.changed_pixels.items() if pixels),
        noise_level=ranking.noise_level,
        bias=ranking.bias,
        auroc=ranking.auroc,
        excluded=ranking_callback.selected,
        estimate=None if estimate is None else estimate.as_dict(),
        layers=[] if correction is None else [correction.folder.name],
        label_peer_ratio=None if correction is None else correction.label_peer_ratio,
        correction_skipped=correction is not None and correction.correction_skipped,
        wrong_half_suspected=correction is not None and correction.wrong_half_suspected,
    )


def check_same_architecture(peer: nn.Module, network: nn.Module) -> None:
    """Raise an `InputError` if a network cannot start from a peer's weights."""
    shapes = [
        {name: value.shape for name, value in plain_names(part.state_dict()).items()}
        for part in (peer, network)
    ]
    if shapes[0] != shapes[1]:
        both = shapes[0].keys() & shapes[1].keys()
        others = sorted(name for name in both if shapes[0][name] != shapes[1][name])
        why = f" with another {others[0]}" if others else ""
        raise InputError(
            f"Retraining starts from the weights of the first peer, a {type(peer).__name__}, but "
            f"its network is a {type(network).__name__}{why}; give a network of the same kind, or "
            "warm_start=False."
        )


METHOD = Method("coteaching", (robust_training,))
