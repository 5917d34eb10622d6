"""What is said of annotators, where the truth on each is known: a simulated crowd on phantoms.

    python benchmarks/annotators.py            # 3 seeds, about ten minutes on one core
    python benchmarks/annotators.py --training none      # by outlines alone
    python benchmarks/annotators.py --training none --seeds 0 --picture docs/images/annotators.svg

Ten persons draw 200 phantoms (`noise=crowd`, a fifth of the masks bad). Each set is judged by two
small networks and the outlines (`peers`), and by outlines alone (`none`), at the same scores with
the right names, without names, and with names that were shuffled five times. Writes
`benchmarks/results/annotators.csv` and prints the means over the seeds:

* `rank_correlation` of the estimated and the true share of the drawn masks, over persons,
* `share_held`, the share of the 90 % intervals that hold the person's own share of bad masks, by
  which the masks are drawn, and `drawn_held`, that of those that hold the share of the masks drawn,
* `displacement_error`, the mean and the largest error over persons, in pixels of 256, where all
  displacements, true and estimated, are beside those of all persons,
* `auroc` of single masks: without names, without steady displacements (`habits`), with the records
  too (`names`), and the mean and the smallest with shuffled names.
"""

import argparse
import csv
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import mannwhitneyu, spearmanr

RESULTS = Path(__file__).parent / "results" / "annotators.csv"
LEVEL = 0.2
SHUFFLES = 5
SETTINGS = ("data=phantom", "noise=crowd", f"nol={LEVEL}", "method=coteaching")
SETTINGS += ("data.source.train=176", "data.source.val=16", "data.source.test=8")
SETTINGS += ("model=unet_classic", "model.base_channels=8", "+trainer.enable_progress_bar=false")


def auroc(score, bad):
    """The probability that a bad mask scores higher than a good one."""
    return mannwhitneyu(score[bad], score[~bad]).statistic / (bad.sum() * (~bad).sum())


def held(records, shares):
    """The share of the persons whose interval holds their share of bad masks."""
    pairs = zip([record.bad_share_interval for record in records], shares, strict=True)
    return np.mean([low <= share <= high for (low, high), share in pairs])


def by_peers(cfg, data, folder):
    """Train two peers, and return a function that scores all masks by them, given who drew them."""
    import pytorch_lightning as pl

    from coseg_lightning import AveragedWeights, CorruptionRanking
    from coseg_lightning.app.build import make_peers, make_trainer
    from coseg_lightning.app.checks import recipe_of
    from coseg_lightning.ranking.displacement import moved_back, outline_ladder
    from coseg_lightning.ranking.outline import outline_evidence
    from coseg_lightning.ranking.people import People
    from coseg_lightning.ranking.scores import mask_scores

    class Kept(CorruptionRanking):
        """Keeps the evidence by which the set is ranked at last."""

        def scores(self, evidence, ids, dataset):
            self.kept = [*getattr(self, "kept", []), evidence][-2:]
            return super().scores(evidence, ids, dataset)

    recipe = recipe_of(cfg)
    ranking = Kept(folder / "scores.csv", score=recipe.score, epochs=recipe.score_epochs)
    callbacks = [ranking]
    if recipe.averaging:
        callbacks.insert(0, AveragedWeights(recipe.averaging))
    pl.seed_everything(cfg.seed, verbose=False)
    trainer = make_trainer(
        cfg, callbacks=callbacks, logger=False, enable_checkpointing=False, default_root_dir=folder
    )
    trainer.fit(make_peers(cfg), datamodule=data)
    samples, ids = data.given_samples(), list(ranking.ranking.ids)
    pairs = [(samples.dataset.image(n), samples.mask(n)) for n in map(list(samples.ids).index, ids)]
    ladders = [outline_ladder(*pair) for pair in pairs]
    given = np.stack([outline_evidence(*pair, classes=2) for pair in pairs])

    def scored(names):
        outline = np.concatenate([given, ranking.kept[0].outline[..., 2:]], axis=2)
        people = None
        if names is not None:
            people = People.of(names)
            outline, _ = moved_back(outline, ladders, people)
        peers = [replace(peer, outline=outline, people=people) for peer in ranking.kept]
        return np.mean([mask_scores(peer, recipe.score) for peer in peers], axis=0)

    return ids, scored, np.stack([ladder.displacement for ladder in ladders])


def by_outlines(data):
    """Return a function that scores all masks by their outlines, given who drew them."""
    from coseg_lightning.app.unaided import judge_masks
    from coseg_lightning.ranking.unaided import misplaced_first

    samples = data.given_samples()
    ids = list(samples.ids)
    found = {}

    def scored(names):
        drawn_by = None if names is None else dict(zip(ids, names, strict=True))
        opinion, blunders = judge_masks(samples.dataset, processes=1, annotators=drawn_by)
        found.setdefault("displacement", opinion.displacement)
        return misplaced_first(opinion.score, blunders)

    names = [samples.annotators[i] for i in ids]
    scored(names)
    return ids, scored, found["displacement"]


def measure(seed, training, picture=None):
    """One row: a seed, judged with training or without; the picture is that of the page."""
    from hydra import compose, initialize_config_dir

    from coseg_lightning.app.build import make_data
    from coseg_lightning.app.command import CONF
    from coseg_lightning.noise import Crowd
    from coseg_lightning.ranking.annotators import annotator_report, with_record
    from coseg_lightning.ranking.displacement import beside_all
    from coseg_lightning.ranking.people import People

    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [*SETTINGS, f"seed={seed}"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = make_data(cfg, folder, everything=True)
        data.prepare_data()
        judged = by_peers(cfg, data, folder) if training == "peers" else by_outlines(data)
        ids, scored, displacement = judged
        samples = data.given_samples()
        names = [samples.annotators[i] for i in ids]
        bad = np.array([i in samples.replaced for i in ids])
        side = samples.mask(0).shape[0]
        own = scored(names)
        shuffled = []
        for number in range(SHUFFLES):
            wrong = np.random.default_rng([seed, number]).permutation(names).tolist()
            shuffled.append(auroc(with_record(scored(wrong), wrong, noise_level=LEVEL), bad))
        without = auroc(scored(None), bad)
    people = {person.name: person for person in Crowd().people(LEVEL, seed)}
    moved = beside_all(displacement, People.of(names))
    records = annotator_report(names, own, noise_level=LEVEL, displacement=moved)
    true_moves = {name: people[name].displacement * side / 256 for name in people}
    shared = np.mean([true_moves[name] for name in names])
    true = [bad[np.array(names) == record.annotator].mean() for record in records]
    own_shares = [people[record.annotator].bad_share for record in records]
    errors = [
        abs(record.displacement - true_moves[record.annotator] + shared) * 256 / side
        for record in records
    ]
    if picture is not None:
        from coseg_lightning.report.annotators import annotators_figure

        figure = annotators_figure(records)
        by_name = dict(zip([record.annotator for record in records], true, strict=True))
        left, right = figure.axes
        left.plot([100 * share for share in by_name.values()], range(len(by_name)), "kx")
        drawn = [true_moves[name] - shared for name in by_name]
        right.plot(drawn, range(len(drawn)), "kx", label="the truth")
        right.legend()
        figure.savefig(picture)
    figures = {
        "rank_correlation": spearmanr([r.bad_share for r in records], true).statistic,
        "share_held": held(records, own_shares),
        "drawn_held": held(records, true),
        "displacement_error": np.mean(errors),
        "displacement_error_largest": max(errors),
        "auroc_without_names": without,
        "auroc_habits": auroc(own, bad),
        "auroc_names": auroc(with_record(own, names, noise_level=LEVEL), bad),
        "auroc_shuffled": np.mean(shuffled),
        "auroc_shuffled_smallest": min(shuffled),
    }
    return {"training": training, "seed": seed} | {k: f"{v:.4f}" for k, v in figures.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--training", nargs="+", default=["none", "peers"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, help="draw the persons of the first seed there")
    args = parser.parse_args()
    rows = []
    for training in args.training:
        for seed in args.seeds:
            rows.append(measure(seed, training, None if rows else args.picture))
            print(rows[-1], flush=True)
        of_training = [row for row in rows if row["training"] == training]
        for name in list(rows[0])[2:]:
            print(f"{training:<6} {name:<28} {np.mean([float(r[name]) for r in of_training]):.3f}")
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
