"""Finds bad masks in a dataset: python -m coseg_lightning.audit data.root=DIR."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from coseg_lightning.app.checks import check_count, recipe_of
from coseg_lightning.app.command import command
from coseg_lightning.app.judging import ASKED, FILES, judge, write_review
from coseg_lightning.errors import InputError

if TYPE_CHECKING:
    from coseg_lightning.data.datamodule import CoSegDataModule
    from coseg_lightning.ranking.noise_level import NoiseLevelEstimate
    from coseg_lightning.ranking.ranking import Ranking


@command("audit")
def main(cfg: DictConfig) -> None:
    """Compose, check and audit, and show the results; or read what a person says of an audit."""
    if cfg.review is not None:
        judge(cfg.review, HydraConfig.get().overrides.task)
        return
    audit(cfg, Path(HydraConfig.get().runtime.output_dir))


def audit(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Rank all masks of a dataset, with peers that are trained on them or with given predictions.

    Validation and test samples are used for training, too, so that their masks are also ranked.

    Returns:
        The content of `summary.json`. It is written into the folder, with `scores.csv`, the
        contact sheet `worst.png`, and the masks that a person should judge.
    """
    from coseg_lightning.app.build import make_data
    from coseg_lightning.app.checks import check, quiet
    from coseg_lightning.files.atomic import write_text

    check(cfg, also=("predictions", "worst"))
    check_count(cfg, "worst", 1)
    if cfg.method.name != "coteaching":
        raise InputError(f"method={cfg.method.name}: an audit trains two peers; leave it out.")
    quiet()
    _check_free(folder)
    data = make_data(cfg, folder, everything=True)
    rank = _by_training if cfg.predictions is None else _by_predictions
    ranking, estimate, proposals, is_global_zero = rank(cfg, folder, data)
    summary = {
        "config": OmegaConf.to_container(cfg, resolve=True),
        "ranking": {
            "noise_level": ranking.noise_level,
            "estimate": None if estimate is None else estimate.as_dict(),
            "bias": ranking.bias,
            "auroc": ranking.auroc,
        },
    }
    if is_global_zero:
        write_text(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False))
        _draw(folder / "worst.png", data, ranking, proposals)
        write_review(folder, data.given_samples(), ranking)
        _show(folder, ranking, estimate)
    return summary


def _check_free(folder: Path) -> None:
    """Raise an `InputError` if the folder holds another audit."""
    for name in ("summary.json", "scores.csv", "worst.png", *FILES, "training", "noise"):
        if (folder / name).exists():
            raise InputError(
                f"{folder} holds another audit ({name}), and nothing is ever overwritten; choose "
                "another folder (hydra.run.dir=...)."
            )


# The ranking, the estimated noise level, the proposed masks by index, and whether to write files.
Result = tuple["Ranking", "NoiseLevelEstimate | None", dict[int, NDArray[Any]], bool]


def _by_training(cfg: DictConfig, folder: Path, data: "CoSegDataModule") -> Result:
    """Train two peers by co-teaching, and rank by their evidence."""
    import pytorch_lightning as pl
    from pytorch_lightning.loggers import CSVLogger

    from coseg_lightning.app.build import make_peers, make_trainer
    from coseg_lightning.callbacks.averaged_weights import AveragedWeights
    from coseg_lightning.callbacks.corruption_ranking import CorruptionRanking
    from coseg_lightning.callbacks.noise_level_estimation import NoiseLevelEstimation
    from coseg_lightning.callbacks.proposals import Proposals

    recipe = recipe_of(cfg)
    ranking = CorruptionRanking(
        folder / "scores.csv", score=recipe.score, epochs=recipe.score_epochs
    )
    proposals = Proposals(cfg.worst)
    callbacks: list[pl.Callback] = [ranking, proposals]
    if cfg.nol == "auto":
        callbacks.insert(0, NoiseLevelEstimation())  # before the ranking, which uses the estimate
    if recipe.averaging:
        callbacks.insert(0, AveragedWeights(recipe.averaging))
    pl.seed_everything(cfg.seed, verbose=False)
    module = make_peers(cfg)
    trainer = make_trainer(
        cfg,
        callbacks=callbacks,
        logger=CSVLogger(folder / "training", name="", version=""),
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=data)
    if ranking.ranking is None:
        raise KeyboardInterrupt
    return ranking.ranking, module.noise.estimate, proposals.masks, trainer.is_global_zero


def _by_predictions(cfg: DictConfig, folder: Path, data: "CoSegDataModule") -> Result:
    """Rank by given class probabilities, without training."""
    import torch

    from coseg_lightning.data.predictions import PredictionFolder
    from coseg_lightning.data.samples import label_dice
    from coseg_lightning.ranking.evidence import Evidence, compute_evidence
    from coseg_lightning.ranking.noise_level import estimate_noise_level
    from coseg_lightning.ranking.outline import outline_evidence
    from coseg_lightning.ranking.ranking import Ranking
    from coseg_lightning.ranking.scores import mask_scores

    data.prepare_data()
    samples = data.given_samples()
    predictions = PredictionFolder(cfg.predictions, classes=cfg.data.classes)
    rows, outlines, score = [], [], recipe_of(cfg).score
    for index, sample_id in enumerate(samples.ids):
        mask = torch.from_numpy(samples.mask(index).astype(np.int64))
        probabilities = predictions.read(sample_id, mask.shape)
        if score == "joint":
            image, classes = samples.dataset.image(index), cfg.data.classes
            of_label = outline_evidence(image, mask.numpy(), classes=classes)
            of_prediction = outline_evidence(image, probabilities.argmax(axis=0), classes=classes)
            outlines.append(np.concatenate([of_label, of_prediction], axis=1))
        logits = torch.from_numpy(probabilities).log()
        rows.append(compute_evidence(logits[None], mask[None])[0].numpy())
    evidence = Evidence.from_table(np.array(rows))
    if outlines:
        evidence = replace(evidence, outline=np.stack(outlines))
    estimate = estimate_noise_level(evidence, evidence) if cfg.nol == "auto" else None
    scores = mask_scores(evidence, score)
    ranking = Ranking.of_evidence(
        list(samples.ids),
        (evidence, evidence),
        (scores, scores),
        cfg.nol if estimate is None else estimate.noise_level,
        score=score,
        replaced=samples.replaced,
        label_dice=label_dice(samples),
    )
    ranking.write(folder / "scores.csv")
    proposals = {
        index: predictions.read(samples.ids[index], samples.mask(index).shape).argmax(axis=0)
        for index in ranking.worst_first[: cfg.worst]
    }
    return ranking, estimate, proposals, True


def _draw(
    path: Path, data: "CoSegDataModule", ranking: "Ranking", proposals: dict[int, NDArray[Any]]
) -> None:
    from coseg_lightning.files.atomic import replacing
    from coseg_lightning.report.figures import contact_sheet

    worst = [index for index in ranking.worst_first if index in proposals]
    figure = contact_sheet(data.given_samples(), ranking, worst, proposals)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100)


def _show(folder: Path, ranking: "Ranking", estimate: "NoiseLevelEstimate | None") -> None:
    """Print the worst masks, the noise level, and the written files."""
    print(f"\n  The worst of {len(ranking.ids)} masks:")
    for rank, index in enumerate(ranking.worst_first[:10], start=1):
        print(f"    {rank:>3}  {ranking.ids[index]:<24}  {ranking.score[index]:8.3f}")
    if estimate is not None:
        print(f"\n  Noise level: {estimate}")
    if ranking.bias is not None:
        print(f"  {ranking.bias}")
    if ranking.auroc is not None:
        print(f"  AUROC of the ranking: {ranking.auroc:.4f}")
    print(f"\n  In {folder}:")
    for name, content in (
        ("scores.csv", "all masks, worst first"),
        ("worst.png", "the worst masks, with the proposal over them"),
        ("summary.json", "the noise level, and the settings"),
        *FILES.items(),
    ):
        print(f"    {name:<12}  {content}")
    print(ASKED.format(folder=folder))


if __name__ == "__main__":
    main()
