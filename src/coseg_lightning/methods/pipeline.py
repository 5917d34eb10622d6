"""The stages of a run in order, and what each leaves in the run's folder."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only
from torch import nn

from coseg_lightning.callbacks.corruption_ranking import CorruptionRanking
from coseg_lightning.callbacks.label_correction import LabelCorrection
from coseg_lightning.callbacks.noise_level_estimation import NoiseLevelEstimation
from coseg_lightning.callbacks.stage_checkpoint import CHECKPOINT
from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.data.wrapped import Data, wrap_datamodule
from coseg_lightning.errors import InputError
from coseg_lightning.files.checkpoints import check_fits, plain_values
from coseg_lightning.functional.losses import PIXEL_LOSSES
from coseg_lightning.methods.registry import stages_of
from coseg_lightning.methods.transition import LabelTransition, TransitionEstimation
from coseg_lightning.modules.coseg import CoSegModule
from coseg_lightning.modules.segmentation import SegmentationModule
from coseg_lightning.ranking.ranking import Ranking
from coseg_lightning.report.page import write_report
from coseg_lightning.runs.folder import RunFolder
from coseg_lightning.runs.runner import StageRunner, retraining_length
from coseg_lightning.runs.summary import test_figures, training_label_dice

log = logging.getLogger(__name__)
tell = rank_zero_only(log.info)


def run_stages(
    data: pl.LightningDataModule,
    folder: str | Path,
    *,
    method: str = "coseg",
    stages: Sequence[str] | None = None,
    peers: Callable[[], CoSegModule] | None = None,
    network: Callable[[], SegmentationModule] | None = None,
    trainer: Callable[..., pl.Trainer],
    seed: int = 0,
    averaging: float = 0.1,
    score: str = "directed",
    score_epochs: int = 1,
    confidence: float | Literal["auto"] = "auto",
    warm_start: bool = True,
    retraining_loss: str = "generalised_cross_entropy",
    retraining_share: float = 1.0,
    rounds: int = 1,
    by_class: bool = False,
    baselines: bool = False,
    config: Mapping[str, Any] | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Run the stages of a method, test its network, and write everything into one folder.

    Args:
        data: The datasets, and the noise if there is to be any: a `CoSegDataModule`, or a
            datamodule of your own, which is not changed. Of its training samples the masks are
            corrected as its dataset gives them, see `coseg_lightning.updated`.
        folder: The run's own folder, without an earlier run in it.
        method: A name in `coseg_lightning.methods.registry`. `coseg`: robust training, correction and
            retraining. `coteaching`: robust training alone, tested by its first peer.
            `supervised`: one network on the labels as they are. The others are rivals. Or any
            other name, with its `stages`.
        stages: Of a method of your own: those of one that there is, such as `robust_training` for
            two peers of which the first is tested, or `supervised_training` for one network.
        peers: Makes the module of stage 1; a method with a single network needs none.
        network: Makes the module of stage 3 and of the baselines, or of a method with a single
            network; `coteaching` and its like need it for baselines alone.
        trainer: Makes a new trainer, given `callbacks`, `logger` and `default_root_dir`, such as
            `partial(pl.Trainer, max_epochs=40)`; callbacks and loggers of such a partial are kept,
            the callbacks as copies in each stage.
        seed: Of the networks' initial weights.
        averaging: The share of an `AveragedWeights`; 0 judges networks as they are at the end.
        score: What the training samples are ranked by: see `coseg_lightning.ranking.scores.mask_scores`.
        score_epochs: How many of the last epochs the scores are averaged over.
        confidence: How sure the peers must be to overrule a label: see `LabelCorrection`.
        warm_start: Whether retraining after correction starts from the first peer; else from new
            weights. If the peers left samples out in vain, since their labels are then left alone,
            it starts from new weights too, and takes the epochs of both stages.
        retraining_loss: The pixel loss of retraining after correction, see
            `coseg_lightning.functional.losses`; a robust one forgives what was not found wrong.
        retraining_share: The share of the epochs of stage 1 that retraining takes if it starts
            from a peer; at least one epoch, and above 1 more than those, but never more than a
            trainer's `max_steps`.
        rounds: How often the peers are trained, and correct what the round before left.
        by_class: Whether each class is ranked and corrected by itself.
        baselines: Whether the network is first trained as it is on the labels as they were given
            and, if the original ones are known, on those, to compare with.
        config: Plain values to keep in `summary.json`, which say what the run is.
        resume: Whether a run of the same `config` that the folder holds goes on where it was
            interrupted; where there is none it begins. It ends with the same results, to the bit on
            a CPU, as one that was never interrupted.

    Returns:
        The content of `summary.json`.

    Raises:
        InputError: If the folder holds another run, or there is no such method.
    """
    stages = stages_of(method, stages)
    makers = {"peers": peers, "network": network}
    peers, network = peers or _not_given("peers", method), network or _not_given("network", method)
    if retraining_loss not in PIXEL_LOSSES:
        raise InputError(f"retraining_loss={retraining_loss} must be {' or '.join(PIXEL_LOSSES)}.")
    if not isinstance(data, CoSegDataModule):
        if "filtering" in stages:
            raise InputError(
                f"method={method} leaves samples out, which a CoSegDataModule can; the data is a "
                f"{type(data).__name__}."
            )
        data = wrap_datamodule(data)
    config = {"method": {"name": method}, "seed": seed, **(config or {})}
    recipe = {
        **{"averaging": averaging, "score": score, "score_epochs": score_epochs},
        **{"confidence": confidence, "warm_start": warm_start, "rounds": rounds},
        **{"retraining_loss": retraining_loss, "retraining_share": retraining_share},
        **{"by_class": by_class, "baselines": baselines},
    }
    by_app = "data" in config
    if not by_app:  # a project's own, as far as it can be told
        config["data"] = {"class": type(data).__name__, **plain_values(dict(data.hparams))}
        for name, make in makers.items():
            if make is None:
                continue
            made = make()
            config[name] = {"class": type(made).__name__, **plain_values(dict(made.hparams))}
        options = getattr(trainer, "keywords", {})
        config["trainer"] = plain_values(
            {key: options[key] for key in options if key not in ("callbacks", "logger")}
        )
    samples = data.identity() if isinstance(data, CoSegDataModule) else {}
    kept = RunFolder(folder, {**config, "recipe": recipe, "samples": samples}, resume=resume)
    if kept.summary is not None:
        return kept.summary
    folder = kept.path
    run = StageRunner(kept, trainer, averaging, seed)
    if "robust_training" not in stages:
        run.built(network).check_data(data)
    corrects, final = "correction" in stages, stages[-1]

    def robust_training(stage: str, suffix: str) -> dict[str, Any]:
        ranking = CorruptionRanking(
            folder / f"scores{suffix}.csv", score=score, epochs=score_epochs, run_id=kept.id
        )
        correction = LabelCorrection(
            folder / f"labels{suffix}", confidence=confidence, by_class=by_class, run_id=kept.id
        )
        module = run.built(peers)
        if corrects and warm_start:
            check_same_kind(module.net_a, run.built(network).net)
        run.fit(
            stage,
            module,
            data,
            [
                *([NoiseLevelEstimation()] if module.estimates_noise else []),  # selected by then
                ranking,
                *([correction] if corrects else []),
            ],
        )
        if ranking.ranking is None:
            raise InputError("Nothing was trained; give the trainer max_epochs of at least 1.")
        return {
            **_facts_of(ranking.ranking),
            "selected": ranking.selected,
            "estimate": module.noise_estimate and module.noise_estimate.as_dict(),
            "layers": [correction.folder.name] if corrects else [],
            "contradiction": correction.label_peer_ratio,
            "left_alone": correction.correction_skipped,
            "kept_vary_more": correction.wrong_half_suspected,
        }

    def estimation(stage: str) -> dict[str, Any]:
        module, callback = run.built(network), TransitionEstimation()
        if not isinstance(module, LabelTransition):
            raise InputError(f"method={method} must train a LabelTransition.")
        if module.known:
            return {"transition": None}
        trainer = run.fit(stage, module, data, [callback])
        if trainer.is_global_zero:
            assert callback.transition is not None
            rows = ["  ".join(f"{p:.3f}" for p in row) for row in callback.transition]
            log.info("How pixels of each class are labelled: %s", " | ".join(rows))
        return {"transition": callback.transition}

    def last_training(stage: str) -> dict[str, Any]:
        module = run.built(network)
        options: dict[str, Any] = {}
        if estimated.get("transition") is not None:
            assert isinstance(module, LabelTransition)
            module.set_transition(estimated["transition"])
            if module.learnt:  # they go on from the plain network
                module.net.load_state_dict(run.weights("estimation", of="net."))
        if corrects:
            module.pixel_loss = module.hparams["pixel_loss"] = retraining_loss
            if warm_start and ranked.get("selected") and not corrected:
                # The peer is no good start: it has learnt from fewer samples, to no avail.
                tell("The peers left samples out in vain: retraining starts from new weights.")
                options = retraining_length(recipe, ranked["epochs"], anew=True)
            elif warm_start:
                start = run.weights("robust_training", of="net_a.")
                check_fits(start, module.net, folder / "robust_training" / CHECKPOINT)
                module.net.load_state_dict(start)
                options = retraining_length(recipe, ranked["epochs"])
        if "filtering" in stages:
            # As many steps as with all samples.
            share = 1 - len(ranked["noisy"]) / ranked["samples"]
            options["max_epochs"] = round(ranked["epochs"] / share)
        run.fit(stage, module, data, **options)
        return {}

    def baseline(stage: str, given: Data) -> dict[str, Any]:
        module = run.built(network)
        if "robust_training" not in stages:  # it is the method's own module
            module = plain(module)
        run.fit(stage, module, given)
        return {"test": test_figures(run.tester(), module, given, seed)}

    tested: dict[str, Any] = {}
    if baselines:
        of = {} if method == "supervised" else {"noisy": data}
        if isinstance(data, CoSegDataModule) and data.noise is not None:
            of["clean"] = data.with_original_masks()
        for name, given in of.items():
            found = run.stage(f"{name}_baseline", partial(baseline, given=given))
            tested[name] = found["test"]

    estimated = run.stage("estimation", estimation) if "estimation" in stages else {}
    ranked: dict[str, Any] = {}
    changed: set[int] = set()
    corrected = False
    if "robust_training" in stages:
        for number in range(1, rounds + 1):
            # The last round has the plain names; its labels lie over those of the others.
            suffix = "" if number == rounds else f"_{number}"
            ranked = run.stage(
                f"robust_training{suffix}",
                partial(robust_training, suffix=suffix),
                makes=(f"scores{suffix}.csv", f"labels{suffix}"),
            )
            _lay(data, folder, ranked["layers"])
            changed |= set(ranked["changed"])
            corrected |= bool(ranked["layers"]) and not ranked["left_alone"]
    if "filtering" in stages:
        assert isinstance(data, CoSegDataModule)
        data.exclude(ranked["noisy"])
    if final == "early_learning":
        found = run.stage(
            final,
            lambda _: run.early_learning(run.built(network), data),
            makes=[
                f"{name}{part}"
                for name in ("labels", "early_learning")
                for part in ("", *(f"_{number}" for number in range(2, 256)))
            ],
        )
        _lay(data, folder, found["layers"])
        changed |= set(found["changed"])
        final = found["last"]
    elif final != "robust_training":
        run.stage(final, last_training)

    # From the disk, so that a run that goes on here ends with the same.
    module: CoSegModule | SegmentationModule
    module = run.built(peers) if final == "robust_training" else run.built(network)
    module = run.restored(module, final)
    transitions: dict[str, Any] = {}
    if isinstance(module, LabelTransition):
        found = {"estimated": estimated.get("transition"), "final": module.transition.tolist()}
        transitions = {"transition": found}
    of_ranking = ("noise_level", "estimate", "bias", "auroc")
    summary = run.finish(
        module,
        data,
        config,
        **({"baselines": tested} if tested else {}),
        **transitions,
        ranking={name: ranked.get(name) for name in of_ranking},
        correction={
            "corrected": len(changed),
            "contradiction": ranked.get("contradiction"),
            "left_alone": "correction" in stages and not corrected,
            "kept_vary_more": ranked.get("kept_vary_more", False),
            "layers": [layer.name for layer in data.label_layers],
            "left_out": len(data.excluded) if isinstance(data, CoSegDataModule) else 0,
            **training_label_dice(data),
        },
    )
    if not by_app:
        write_report(folder, data if isinstance(data, CoSegDataModule) else None)
    return summary


def _not_given(what: str, method: str) -> Callable[[], Any]:
    def make() -> Any:
        raise InputError(f"method={method} needs {what}; give run_stages a function that makes it.")

    return make


def plain(module: SegmentationModule) -> SegmentationModule:
    """A plain supervised module of the network and settings of another one."""
    return SegmentationModule(
        module.net,
        classes=module.classes,
        lambda_1=module.lambda_1,
        lambda_2=module.lambda_2,
        include_background=module.include_background,
        lr=module.lr,
        optimizer=module.optimizer_factory,
        scheduler=module.scheduler_factory,
        ignore_index=module.ignore_index,
    )


def _facts_of(ranking: Ranking) -> dict[str, Any]:
    """What later stages and the summary need of a ranking."""
    return {
        "samples": len(ranking.ids),
        "noisy": [ranking.ids[index] for index in ranking.noisy],
        "changed": sorted(index for index, pixels in ranking.changed_pixels.items() if pixels),
        "noise_level": ranking.noise_level,
        "bias": ranking.bias,
        "auroc": ranking.auroc,
    }


def _lay(data: Data, folder: Path, layers: list[str]) -> None:
    """Lay the label layers that a stage made over the training masks, if it did not itself."""
    for name in layers:
        if folder / name not in data.label_layers:
            data.add_label_layer(folder / name)


def check_same_kind(first: nn.Module, second: nn.Module) -> None:
    """Raise an `InputError` if a network cannot go on with another one's weights."""
    shapes = [
        {name: value.shape for name, value in network.state_dict().items()}
        for network in (first, second)
    ]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"Retraining starts from the first peer, a {type(first).__name__}, but its network is "
            f"another one, a {type(second).__name__}; give the same kind, or warm_start=False."
        )
