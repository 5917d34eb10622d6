"""How well do scores rank bad masks, and how well is the noise level estimated?

    python benchmarks/ranking.py run --jobs 2     # trains what has no evidence yet
    python benchmarks/ranking.py scores           # the table of AUROC and Spearman correlation
    python benchmarks/ranking.py levels           # the table of estimated noise levels
    python benchmarks/ranking.py joint            # the default score and its parts, from kept.py

Two classic U-Nets of 12 channels at 64 x 64, trained for 40 epochs (phantoms: 20) at once. The
evidence of each run (a few numbers per sample and epoch) is kept in `benchmarks/evidence/`, which
is not committed; `scores` and `levels` write their results to `benchmarks/results/`.
"""

import argparse
import csv
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
RESULTS = HERE / "results"
EVIDENCE = Path(os.environ.get("COSEG_EVIDENCE", HERE / "evidence"))
DATA = Path(os.environ.get("COSEG_DATA", HERE.parents[1] / "shared" / "data"))
SIDE, CHANNELS, AVERAGED = 64, 12, 5
REAL = ["bubil-masks_crowd1", "bubil-masks_large", "bubil-masks_worst"]
PHANTOMS = ["phantom-type1", "phantom-type2"]
OTHERS = ["bubil-masks_small", "bubil-masks_crowd4", "bubil-type1", "bubil-type2"]
OTHERS += ["usgra-type1", "usgra-type2"]  # one seed each
LEVELS = [0.2, 0.4, 0.6]


def cells() -> list[tuple[str, float, int, str]]:
    """Set, noise level, seed, and training.

    `plain` learns from all samples; `relative` and `eq1` are co-teaching by these selections;
    `flips` is `relative`, judged with the images and their mirror images; `folds` are three plain
    networks, each judging the third that it has not seen.
    """
    found = []
    for seed in range(3):
        for name in [*PHANTOMS, *REAL]:
            found += [(name, 0.5, seed, "plain"), (name, 0.5, seed, "relative")]
    for seed in range(3):
        found.append(("phantom-none", 0.0, seed, "plain"))
        for level in LEVELS:
            found += [(name, level, seed, "plain") for name in PHANTOMS]
    for training in ("flips", "folds", "eq1"):
        found += [(name, 0.5, 0, training) for name in [*PHANTOMS, *REAL]]
    for training in ("relative", "plain"):
        found += [(name, 0.5, 0, training) for name in OTHERS]
    for seed in range(3):
        found.append(("bubil-none", 0.0, seed, "plain"))
        for level in LEVELS:
            found += [(name, level, seed, "plain") for name in REAL]
    return found


def path_of(cell: tuple[str, float, int, str]) -> Path:
    return EVIDENCE / ("_".join(map(str, cell)) + ".npz")


class OfPart:
    """Some samples of a dataset that is indexed by epoch and number."""

    def __init__(self, dataset, indices):
        self.dataset, self.indices = dataset, indices

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, key):
        epoch, number = key
        return self.dataset[epoch, self.indices[number]]


def train(name: str, level: float, seed: int, training: str) -> None:
    """Train two peers and keep the evidence of the epochs before half and before the end."""
    warnings.filterwarnings("ignore")
    import pytorch_lightning as pl
    import torch
    from torch.utils.data import DataLoader, Subset

    from coseg_lightning import CoSegDataModule, CoSegModule, SegmentationModule
    from coseg_lightning.data.folder import folder_splits
    from coseg_lightning.data.phantom import phantom_splits
    from coseg_lightning.data.samples import EpochSampler
    from coseg_lightning.functional.dice import mask_dice
    from coseg_lightning.networks.build import build_network
    from coseg_lightning.noise import BiasedAnnotator, BoundaryNoise
    from coseg_lightning.noise.models import Annotator
    from coseg_lightning.ranking.evidence import compute_evidence

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    dataset, noise_name = name.split("-")
    classes = 3 if dataset == "usgra" else 2
    if dataset == "phantom":
        splits, epochs = phantom_splits(120, 0, 0), 20
    else:
        splits, epochs = folder_splits(DATA / dataset, classes=classes), 40
    if noise_name in ("type1", "none"):
        noise = BoundaryNoise()
    elif noise_name == "type2":
        noise = BiasedAnnotator()
    else:
        noise = Annotator(noise_name, root=DATA / dataset, classes=classes)

    with tempfile.TemporaryDirectory() as folder:
        data = CoSegDataModule(
            *(splits.train, None, None),
            image_size=SIDE,
            in_channels=1,
            seed=seed,
            noise=noise,
            noise_level=level,
            noise_folder=Path(folder) / "noise",
        )
        data.prepare_data()
        samples = data.given_samples()
        plain = samples.plain()
        kept: dict[int, np.ndarray] = {}

        class Collect(pl.Callback):
            """The evidence of some samples, before half and before the end of training."""

            def __init__(self, indices: list[int]) -> None:
                self.indices = indices

            def on_train_epoch_end(self, trainer, module):
                epoch = trainer.current_epoch + 1
                if not (epochs // 2 - AVERAGED < epoch <= epochs // 2 or epoch > epochs - AVERAGED):
                    return
                module.eval()
                tables = []
                with torch.no_grad():
                    for batch in DataLoader(Subset(plain, self.indices), batch_size=32):
                        logits = module(batch["image"])
                        peers = (logits, logits) if isinstance(logits, torch.Tensor) else logits
                        table = torch.stack([compute_evidence(x, batch["mask"]) for x in peers])
                        if training == "flips":
                            mirrored = [x.flip(-1) for x in module(batch["image"].flip(-1))]
                            again = [compute_evidence(x, batch["mask"]) for x in mirrored]
                            table = (table + torch.stack(again)) / 2
                        tables.append(table)
                found = torch.cat(tables, dim=1).numpy()
                empty = np.zeros((2, len(plain), found.shape[2]))
                kept.setdefault(epoch, empty)[:, self.indices] = found
                module.train()

        def network() -> torch.nn.Module:
            return build_network(
                "unet_classic", in_channels=1, classes=classes, base_channels=CHANNELS
            )

        def fit(module: pl.LightningModule, indices: list[int], **loader) -> None:
            trainer = pl.Trainer(
                max_epochs=epochs,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                callbacks=[Collect(indices)],
            )
            trainer.fit(module, **loader)

        everyone = list(range(len(samples)))
        pl.seed_everything(seed, verbose=False)
        if training == "folds":  # each third is judged by a network that never saw it
            order = np.random.default_rng(seed).permutation(len(samples))
            for fold in range(3):
                judged = sorted(order[fold::3].tolist())
                learned = OfPart(samples, sorted(set(everyone) - set(judged)))
                module = SegmentationModule(network(), classes=classes)
                sampler = EpochSampler(learned, num_replicas=1, rank=0, seed=seed)
                loader = DataLoader(learned, 8, sampler=sampler, drop_last=True)
                fit(module, judged, train_dataloaders=loader)
        else:
            module = CoSegModule(
                network(),
                network(),
                classes=classes,
                noise_level=0.0 if training == "plain" else level,
                selection="eq1" if training == "eq1" else "relative",
            )
            fit(module, everyone, datamodule=data)
        truth = samples.truth
        dice = [mask_dice(plain.mask(i), truth.mask(i)) for i in range(len(plain))]
        EVIDENCE.mkdir(exist_ok=True, parents=True)
        np.savez_compressed(
            path_of((name, level, seed, training)),
            epochs=sorted(kept),
            tables=np.stack([kept[e] for e in sorted(kept)]),
            replaced=np.array([name in samples.replaced for name in samples.ids]),
            dice=dice,
        )


def run(jobs: int) -> None:
    left = [cell for cell in cells() if not path_of(cell).exists()]

    def one(cell: tuple[str, float, int, str]) -> None:
        command = [sys.executable, __file__, "train", *map(str, cell)]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        print(" ".join(map(str, cell)), flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, left))


def peers_of(cell: tuple[str, float, int, str], last: int = AVERAGED, at_half: bool = False):
    """Both peers' evidence, averaged over the last epochs of training or of its first half."""
    from coseg_lightning.ranking.evidence import Evidence

    with np.load(path_of(cell)) as file:
        tables, replaced, dice = file["tables"], file["replaced"], file["dice"]
    tables = tables[:AVERAGED] if at_half else tables[AVERAGED:]
    peers = tables[-last:].mean(axis=0)
    return [Evidence.from_table(peer) for peer in peers], replaced, dice


def write(name: str, rows: list[dict]) -> None:
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def figure(values: list[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{spread}"


def scores() -> None:
    """AUROC against replaced labels, and Spearman correlation with their Dice, at NoL 0.5."""
    from scipy.stats import mannwhitneyu, spearmanr

    from coseg_lightning.ranking import scores as all_scores
    from coseg_lightning.ranking.scores import mask_scores

    # `joint` needs the images too: see `joint` below.
    names = [name for name in all_scores.SCORES if name != "joint"]

    rows = []
    for cell in cells():
        name, level, seed, training = cell
        if level != 0.5 or not path_of(cell).exists():
            continue
        for last in (1, AVERAGED):
            peers, replaced, dice = peers_of(cell, last)
            for score in names:
                values = np.mean([mask_scores(peer, score) for peer in peers], axis=0)
                u = mannwhitneyu(values[replaced], values[~replaced]).statistic
                auroc = u / (replaced.sum() * (~replaced).sum())
                row = {"set": name, "seed": seed, "training": training, "epochs": last}
                row |= {"score": score, "auroc": f"{auroc:.4f}"}
                rows.append(row | {"spearman": f"{spearmanr(values, -dice).statistic:.4f}"})
    write("scores", rows)

    def cell_of(column: str, **wanted) -> str:
        found = [float(r[column]) for r in rows if all(r[k] == v for k, v in wanted.items())]
        return figure(found)

    sets = [*PHANTOMS, *REAL, *OTHERS]
    heads = " | ".join(name.replace("bubil-", "").replace("masks_", "") for name in sets)
    for column, title in (("auroc", "AUROC"), ("spearman", "Spearman correlation")):
        for training in ("relative", "plain"):
            print(f"\n{title}, training {training}, mean of {AVERAGED} epochs\n")
            print(f"| score | {heads} |\n|---|{'---|' * len(sets)}")
            for score in names:
                wanted = {"training": training, "epochs": AVERAGED, "score": score}
                found = " | ".join(cell_of(column, set=name, **wanted) for name in sets)
                print(f"| {score} | {found} |")
    sets = [*PHANTOMS, *REAL]
    heads = " | ".join(name.replace("bubil-", "").replace("masks_", "") for name in sets)
    print(f"\nAUROC by training and averaging\n\n| training | epochs | score | {heads} |")
    print("|---|---|---|" + "---|" * len(sets))
    for training in ("relative", "flips", "plain", "eq1", "folds"):
        for last in (AVERAGED, 1):
            for score in ("directed", "mean", "softmin"):
                wanted = {"training": training, "epochs": last, "score": score}
                found = " | ".join(cell_of("auroc", set=name, **wanted) for name in sets)
                print(f"| {training} | {last} | {score} | {found} |")


def fixed(weight: float):
    """`joint` with a fixed weight of the outlines, and hard images as they are."""

    def score(e):
        from coseg_lightning.ranking.outline import outline_misfit
        from coseg_lightning.ranking.scores import directed, standardised

        label, prediction = e.outline[..., :2], e.outline[..., 2:]
        misfits = [outline_misfit(label), outline_misfit(label - prediction)]
        return standardised(directed(e), e) + weight * np.nan_to_num(misfits).sum(axis=0)

    return score


def without_difficulty(e):
    """`joint` with hard images as they are."""
    from coseg_lightning.ranking.outline import outline_misfit
    from coseg_lightning.ranking.scores import agreement, directed, standardised

    label, prediction = e.outline[..., :2], e.outline[..., 2:]
    misfits = [outline_misfit(label), outline_misfit(label - prediction)]
    weight = agreement(*misfits)
    return standardised(directed(e), e) + weight * np.nan_to_num(misfits).sum(axis=0)


def outlines(*, less_predictions: bool):
    """The misfit of the label's outline, or of its difference to the prediction's."""

    def score(e):
        from coseg_lightning.ranking.outline import outline_misfit

        label, prediction = e.outline[..., :2], e.outline[..., 2:]
        return np.nan_to_num(outline_misfit(label - prediction if less_predictions else label))

    return score


def clustered(images):
    """Kinds of images by k-means on what they look like; one where no clusters stand apart."""
    from kept import traits
    from scipy.cluster.vq import kmeans2
    from scipy.spatial.distance import cdist

    found = np.stack([traits(image) for image in images])
    points = (found - found.mean(axis=0)) / (found.std(axis=0) + 1e-9)
    distances, best, kinds = cdist(points, points), 0.25, np.zeros(len(points), int)
    for count in range(2, 7):
        _, found = kmeans2(points, count, minit="++", seed=0)
        sizes = np.bincount(found, minlength=count)
        if sizes.min() < 2:
            continue
        sums = np.stack([distances[:, found == c].sum(axis=1) for c in range(count)], axis=1)
        own = sums[np.arange(len(points)), found] / (sizes[found] - 1)
        means = sums / sizes
        means[np.arange(len(points)), found] = np.inf
        other = means.min(axis=1)
        silhouette = ((other - own) / np.maximum(other, own)).mean()
        if silhouette > best:
            best, kinds = silhouette, found
    return kinds


def mean_over_classes(e, values):
    return np.where(e.concerns, values, 0).sum(axis=1) / e.concerns.sum(axis=1).clip(1)


def joint() -> None:
    """AUROC, correlations and precision of `joint`, its parts, and what lost against it."""
    from dataclasses import replace

    from kept import REGIMES, SEEN, UNSEEN, judged, path_of
    from outline import FIGURES, figures_of

    from coseg_lightning.ranking.scores import mask_scores

    def named(name):
        return lambda e: mask_scores(e, name)

    def by_class(score):
        return lambda e: mean_over_classes(e, score(e))

    variants = {
        "`joint`": named("joint"),
        "`directed`: networks alone": named("directed"),
        "label's outline alone": by_class(outlines(less_predictions=False)),
        "label's less prediction's outline": by_class(outlines(less_predictions=True)),
        "outlines weigh 1/2": by_class(fixed(0.5)),
        "outlines weigh 3/4": by_class(fixed(0.75)),
        "outlines weigh 1": by_class(fixed(1)),
        "hard images as they are": by_class(without_difficulty),
        "kinds given (D1 to D5)": None,
        "kinds by clustering": None,
        "`softmin` (cleanlab's)": named("softmin"),
        "`mean` (Eq. (1))": named("mean"),
    }
    path = RESULTS / "joint.csv"  # remove it to measure all cells again, as after a changed score
    before = list(csv.DictReader(path.open(newline=""))) if path.is_file() else []
    rows = []
    for regime in REGIMES:
        for name in [*SEEN, *UNSEEN]:
            for seed in range(3):
                which = (regime, name, str(seed))
                known = [r for r in before if (r["regime"], r["set"], r["seed"]) == which]
                if known or not path_of((regime, name, seed)).exists():
                    rows += known
                    continue
                cell = judged((regime, name, seed))
                starts = [sample_id.partition("_")[0] for sample_id in cell.ids]
                is_bubil = name.startswith("bubil")
                given = np.unique(starts, return_inverse=True)[1] if is_bubil else None
                kinds = {"kinds given": given, "kinds by": clustered(cell.images)}
                for variant, score in variants.items():
                    of_kind = [kinds[start] for start in kinds if variant.startswith(start)]
                    peers = [replace(p, kinds=of_kind[0]) for p in cell.peers if of_kind]
                    found = [(score or named("joint"))(p) for p in peers or cell.peers]
                    figures = figures_of(np.mean(found, axis=0), cell.replaced, 1 - cell.dice)
                    row: dict = {
                        "regime": regime,
                        "set": name,
                        "seen": str(int(name in SEEN)),
                        "seed": seed,
                    }
                    row |= {"score": variant.replace("`", "")}
                    rows.append(
                        row | dict(zip(FIGURES, [f"{f:.4f}" for f in figures], strict=True))
                    )
                print(regime, name, seed, rows[-len(variants)]["auroc"], flush=True)
    write("joint", rows)
    for regime in REGIMES:
        for is_seen, column in [(s, c) for s in (1, 0) for c in FIGURES]:
            chosen = [r for r in rows if (r["regime"], r["seen"]) == (regime, str(is_seen))]
            sets = list(dict.fromkeys(r["set"] for r in chosen))
            if not chosen or (column != "auroc" and not is_seen):
                continue
            print(f"\n{regime}, sets that were {'seen' if is_seen else 'not seen'}: {column}\n")
            print(f"| score | {' | '.join(sets)} | mean |\n|---|{'---|' * len(sets)}---|")
            for variant in variants:
                plain = variant.replace("`", "")
                of_sets = [
                    [float(r[column]) for r in chosen if (r["set"], r["score"]) == (name, plain)]
                    for name in sets
                ]
                cells = " | ".join(map(figure, of_sets))
                print(
                    f"| {variant} | {cells} | {100 * np.mean([np.mean(v) for v in of_sets]):.1f} |"
                )


def levels() -> None:
    """The estimate after half of the training or at its end, against what is known."""
    from scipy.stats import beta

    from coseg_lightning.ranking.noise_level import estimate_noise_level

    rows = []
    for cell in cells():
        name, level, seed, training = cell
        if training != "plain" or not path_of(cell).exists():
            continue
        peers, replaced, _ = peers_of(cell, at_half=True)
        estimate = estimate_noise_level(*peers)
        if not estimate.separable:  # nothing was selected then, and it is tried again at the end
            peers, replaced, _ = peers_of(cell)
            estimate = estimate_noise_level(*peers)
        interval = [
            "" if end is None else f"{end:.4f}" for end in estimate.interval or (None, None)
        ]
        # Stochastic co-teaching (de Vos et al. 2023) rejects a sample whose probability is below
        # a number drawn from Beta(32, 4); the share rejected is its idea of the noise level.
        probability = np.exp(-np.mean([peer.eq1 for peer in peers], axis=0))
        row = {"set": name, "nol": f"{replaced.mean():.4f}", "seed": seed}
        row |= {"estimate": f"{estimate.noise_level:.4f}", "separable": int(estimate.separable)}
        row |= {"low": interval[0], "high": interval[1], "distance": f"{estimate.distance:.2f}"}
        row |= {f"mixture_{score}": f"{share:.4f}" for score, share in estimate.shares.items()}
        rejected = (1 - beta.cdf(probability, 32, 4)).mean()
        rows.append(row | {"rejection_rate": f"{rejected:.4f}"})
    write("levels", rows)

    print("\n| set | NoL | estimates (? where the tool says that it cannot tell) |\n|---|---|---|")
    groups = sorted({(row["set"], round(float(row["nol"]), 1)) for row in rows})
    for name, level in groups:
        found = [r for r in rows if (r["set"], round(float(r["nol"]), 1)) == (name, level)]
        told = [f"{float(r['estimate']):.2f}{'' if int(r['separable']) else '?'}" for r in found]
        print(f"| {name} | {level} | {', '.join(told)} |")
    kinds = ["estimate", *[key for key in rows[0] if key.startswith("mixture_")], "rejection_rate"]
    print("\n| sets | runs | told | " + " | ".join(f"error of {kind}" for kind in kinds), "|")
    print("|---|---|---|" + "---|" * len(kinds))
    for kind, names in (("phantoms", "phantom"), ("real masks", "bubil")):
        for told in (None, 1):
            found = [
                r for r in rows if r["set"].startswith(names) and told in (None, r["separable"])
            ]
            errors = [
                np.mean([abs(float(r[key]) - float(r["nol"])) for r in found] or [np.nan])
                for key in kinds
            ]
            what = "all" if told is None else "without the warning"
            print(
                f"| {kind}, {what} | {len(found)} | "
                f"{sum(r['separable'] for r in found)} | "
                + " | ".join("-" if np.isnan(error) else f"{error:.3f}" for error in errors)
                + " |"
            )
    sure = [abs(float(r["estimate"]) - float(r["nol"])) for r in rows if r["separable"]]
    print(f"\nLargest error without the warning: {max(sure, default=0):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "train", "scores", "levels", "joint"])
    parser.add_argument("cell", nargs="*")
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    if given.what == "run":
        run(given.jobs)
    elif given.what == "train":
        name, level, seed, training = given.cell
        train(name, float(level), int(seed), training)
    elif given.what == "scores":
        scores()
    elif given.what == "joint":
        joint()
    else:
        levels()


if __name__ == "__main__":
    main()
