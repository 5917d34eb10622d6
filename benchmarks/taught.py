"""What does a network learn from kept and corrected labels, and how is it taught best?

    python benchmarks/lite0.py lite0.safetensors
    python benchmarks/kept.py --pretrained lite0.safetensors --jobs 2   # the first peers, once
    python benchmarks/taught.py lite0.safetensors bubil-worst 0         # hours on one core
    python benchmarks/taught.py lite0.safetensors bubil-worst 0 --size 64
    python benchmarks/taught.py table

A pretrained EfficientNet-Lite0 U-Net at 128 x 128 (or `--size`, after first peers at 128 x 128),
half of the masks replaced, each image normalised by itself. Each row is a network with averaged
weights; `steps` counts all steps of all networks that it and its labels rest on, after the first
peers'. `test` is the Dice on test images, `labels` that of the labels it learns from to the
original masks, and `auroc` ranks the replaced masks by the peers that corrected them. Rows that are
there already are not trained again. Writes `benchmarks/results/taught.csv`.
"""

import argparse
import copy
import csv
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytorch_lightning as pl
import torch
from kept import Cell, evidence_of, judged, settings
from outline import figures_of
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader
from typing_extensions import override
from votes import Corrections

from coseg_lightning import AveragedWeights, LabelStore, SegmentationModule
from coseg_lightning.app.build import make_data, make_network
from coseg_lightning.app.command import CONF
from coseg_lightning.callbacks.epoch_seeds import EpochSeeds
from coseg_lightning.callbacks.label_correction import resize_probabilities
from coseg_lightning.data.samples import EpochSampler
from coseg_lightning.functional.dice import mask_dice
from coseg_lightning.ranking.scores import mask_scores

RESULTS = Path(__file__).parent / "results" / "taught.csv"
COLUMNS = ("set", "seed", "size", "variant", "steps", "test", "labels", "auroc", "ratio")
COLUMNS += ("precision",)
STEPS = 680  # 40 epochs of 137 samples in batches of 8
NOISE_LEVEL = 0.5
GCE = "generalised_cross_entropy"


class RimsWeighLess(SegmentationModule):
    """Pixels near the outline of their label teach less at first, and like all others at the end.

    A pixel's weight is its distance to the outline by `reach`, at most 1, in both losses. The reach
    falls from 6 pixels to 0 over the epochs, as in GSD-Net (arXiv 2509.02419).
    """

    @override
    def supervised_losses(self, logits: Tensor, masks: Tensor) -> Tensor:
        reach = max(0.5, 6 * (1 - self.current_epoch / self.trainer.max_epochs))
        distances = np.stack([_to_the_outline(mask.numpy() == 1) for mask in masks])
        labelled = masks != self.ignore_index
        weights = torch.from_numpy(distances).div(reach).clamp_max(1) * labelled
        every = weights.sum(dim=(1, 2)).clamp_min(1)
        pixels = functional.cross_entropy(
            logits, masks.long(), reduction="none", ignore_index=self.ignore_index
        )
        if self.pixel_loss == GCE:
            pixels = (1 - (-0.7 * pixels).exp()) / 0.7
        inside, label = logits.softmax(dim=1)[:, 1], (masks == 1).float()
        shared = (weights * inside * label).sum(dim=(1, 2))
        both = (weights * (inside + label)).sum(dim=(1, 2))
        dice = (2 * shared + 1) / (both + 1)
        return (weights * pixels).sum(dim=(1, 2)) / every + self.lambda_1 * (1 - dice)


def _to_the_outline(inside: np.ndarray) -> np.ndarray:
    """The distance of each pixel to the outline, in pixels."""
    padded = [np.pad(part, 1, mode="edge").astype(np.uint8) for part in (inside, ~inside)]
    to_outside, to_inside = (cv2.distanceTransform(p, cv2.DIST_L2, 5) for p in padded)
    return np.where(inside, to_outside[1:-1, 1:-1], to_inside[1:-1, 1:-1]).clip(max=1e3)


class WithTheRest(SegmentationModule):
    """Learns from kept labels, and from teachers' predictions of the rejected masks' images.

    Each step has as many images of the rest as of those kept. Their loss counts more and more in
    the first 40 % of training.
    """

    rest: Callable[[], Iterator[Any]]
    teachers: Callable[[Tensor], Tensor] | None = None  # without: the network's own average
    strong = True
    surely = 0.95  # where teachers are less sure, a pixel teaches nothing

    @override
    def on_train_start(self) -> None:
        self.batches = self.rest()
        self.average = [copy.deepcopy(self.net).eval()]  # a list, so that it is no part of self

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        images = next(self.batches)["image"]
        with torch.no_grad():
            teach = self.teachers or (lambda x: self.average[0](x).softmax(dim=1))
            probabilities = teach(images)
            if self.strong:
                images, probabilities = _strong_view(images, probabilities)
            sure = (probabilities.amax(dim=1) >= self.surely).float()
        pixels = functional.cross_entropy(self.net(images), probabilities, reduction="none")
        share = self.trainer.global_step / self.trainer.estimated_stepping_batches
        return loss + min(1.0, share / 0.4) * (sure * pixels).mean()

    @override
    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        decay = min(0.99, self.trainer.global_step / (self.trainer.global_step + 10))
        for mine, new in zip(
            self.average[0].state_dict().values(), self.net.state_dict().values(), strict=True
        ):
            mine.copy_(mine.lerp(new, 1 - decay) if mine.is_floating_point() else new)


def _strong_view(images: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Change contrast, brightness and noise of each image, and put a part of the next one in."""
    n, _, height, width = images.shape
    spread = images.std(dim=(1, 2, 3), keepdim=True)
    contrast = 1 + 0.5 * (2 * torch.rand(n, 1, 1, 1) - 1)
    images = images * contrast + spread * (torch.rand(n, 1, 1, 1) - 0.5)
    images = images + 0.2 * spread * torch.randn_like(images)
    top, left = (int(torch.randint(side // 2, ())) for side in (height, width))
    part = (..., slice(top, top + height // 2), slice(left, left + width // 2))
    images, probabilities = images.clone(), probabilities.clone()
    images[part] = images.roll(1, dims=0)[part]
    probabilities[part] = probabilities.roll(1, dims=0)[part]
    return images, probabilities


def as_kind(module: SegmentationModule, kind: type[SegmentationModule]) -> SegmentationModule:
    """The same network, trained by another module."""
    settings = ("lr", "lambda_1", "lambda_2", "include_background", "classes")
    given = {name: getattr(module, name) for name in settings}
    return kind(module.net, optimizer=module.optimizer_factory, **given)


class School:
    """Trains networks on the training set of a cell, after its first peers.

    Args:
        cell: The cell, whose first peers' predictions are kept.
        weights: The encoder's weights.
        size: Height and width of the images that the networks get.
        precision: The trainer's.
    """

    def __init__(self, cell: Cell, weights: str, size: int, precision: str) -> None:
        from hydra import compose, initialize_config_dir

        self.cell, self.seed, self.precision = cell, cell[2], precision
        with initialize_config_dir(str(CONF), version_base="1.3"):
            made = [*settings(cell, weights), f"data.image_size={size}"]
            self.cfg = compose("config", made)
        self.first = judged(cell)
        self.folder = tempfile.TemporaryDirectory()

    def data(self, kept: np.ndarray | None = None, masks: Mapping[int, Any] | None = None) -> Any:
        """The given labels; of some samples alone, or with other masks."""
        folder = Path(tempfile.mkdtemp(dir=self.folder.name))
        data = make_data(self.cfg, folder)
        data.prepare_data()
        if kept is not None:
            data.exclude([self.first.ids[n] for n in np.flatnonzero(~kept)])
        if masks:
            layer = folder / "labels"
            writer = LabelStore.create(layer)
            for n, mask in masks.items():
                writer.write(self.first.ids[n], mask)
            writer.finish({self.first.ids[n]: {} for n in masks})
            data.add_label_layer(layer)
        return data

    def trained(
        self,
        data: Any,
        steps: int,
        *,
        seed: int = 0,
        start: Any = None,
        loss: str = "cross_entropy",
        kind: type[SegmentationModule] = SegmentationModule,
        **attributes: Any,
    ) -> Any:
        """Train a network, from the encoder's weights or another network's.

        Args:
            data: What it learns from.
            steps: For how many steps.
            seed: Of the initial weights, order and augmentation.
            start: The network that it goes on from.
            loss: Its loss for each pixel.
            kind: Its module.
            **attributes: What the module has.
        """
        pl.seed_everything(1000 * self.seed + seed, verbose=False)
        module = make_network(self.cfg)
        if kind is not SegmentationModule:
            module = as_kind(module, kind)
            for name, value in attributes.items():
                setattr(module, name, value)
        module.use_pixel_loss(loss)
        if start is not None:
            module.net.load_state_dict(start.net.state_dict())
        samples = data.samples("train")
        samples.seed = 1000 * self.seed + seed  # of the augmentation
        sampler = EpochSampler(samples, num_replicas=1, rank=0, seed=samples.seed)
        loader = DataLoader(samples, data.batch_size, sampler=sampler, drop_last=True)
        trainer = pl.Trainer(
            max_epochs=round(steps / len(loader)),
            accelerator="cpu",
            precision=self.precision,  # type: ignore[arg-type]
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            callbacks=[AveragedWeights(), EpochSeeds(samples.seed)],
        )
        trainer.fit(module, loader)
        return module.eval()

    def rest(self) -> Iterator[Any]:
        """Batches of the rejected masks' images, without end."""
        data = self.data(~self.first_kept)
        samples = data.samples("train")
        samples.seed = 1000 * self.seed + 7
        epoch = 0
        while True:
            sampler = EpochSampler(samples, num_replicas=1, rank=0, seed=samples.seed)
            sampler.set_epoch(epoch)
            yield from DataLoader(samples, data.batch_size, sampler=sampler, drop_last=True)
            epoch += 1

    def tested(self, module: Any) -> float:
        """Dice on the test images."""
        trainer = pl.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
        )
        (found,) = trainer.test(module, datamodule=self.data(), verbose=False)
        return float(found["test/dice"])

    @torch.no_grad()
    def looked_at(self, *modules: Any) -> Any:
        """What a pair says of all training images, as what the first peers said."""
        samples = self.data().given_samples().plain()
        parts, labels = [], []
        for batch in DataLoader(samples, 16):
            parts.append(torch.stack([m(batch["image"]).softmax(dim=1) for m in modules], dim=1))
            labels.append(batch["mask"])
        peers, given = torch.cat(parts).float().clamp(1e-6, 1), torch.cat(labels)
        c = self.first
        evidence = evidence_of(c.images, c.masks, given, peers)
        return replace(c, peers=evidence, labels=given, probabilities=peers)

    def auroc(self, cell: Any) -> float:
        """How well a pair ranks the replaced masks."""
        scores = np.mean([mask_scores(peer, "joint") for peer in cell.peers], axis=0)
        return float(figures_of(scores, cell.replaced, 1 - cell.dice)[0])

    def corrected(self, cell: Any, noisy: np.ndarray | None = None) -> tuple[dict[int, Any], Any]:
        """The vote's masks of the samples that count as noisy, and the guard."""
        corrections = Corrections(cell)
        if noisy is not None:  # whatever this pair thinks of them
            others = np.setdiff1d(np.arange(len(cell.ids)), noisy)
            corrections.worst_first = np.concatenate([noisy, others])
        found, guard = corrections.guard(NOISE_LEVEL)
        if not guard.peers_know_better:
            return {}, guard
        confidence = guard.confidence
        return {
            n: corrections.corrected(n, c) for n, c in zip(found, confidence, strict=True)
        }, guard

    def kept(self, cell: Any, noise_level: float = NOISE_LEVEL) -> np.ndarray:
        """`(N,)` whether a mask counts as right."""
        order = Corrections(cell).worst_first
        result = np.ones(len(order), bool)
        result[order[: round(noise_level * len(order))]] = False
        return result

    def predicted(self, surely: float = 0.0) -> dict[int, Any]:
        """What the first peers predict of the rejected; 255 where they are less sure than this."""
        c, masks = self.first, {}
        for n in np.flatnonzero(~self.first_kept):
            label = torch.from_numpy(c.masks[n].astype(np.int64))
            pair = [resize_probabilities(p[None], label)[0] for p in c.probabilities[n]]
            probability, mask = torch.stack(pair).mean(dim=0).max(dim=0)
            masks[n] = torch.where(probability >= surely, mask, 255).numpy().astype(np.uint8)
        return masks

    def label_dice(self, masks: Mapping[int, Any], kept: np.ndarray | None = None) -> float:
        """The mean Dice of the labels that are learnt from."""
        dice = self.first.dice.copy()
        for n, mask in masks.items():
            dice[n] = mask_dice(mask, self.first.truth[n])
        return float(dice.mean() if kept is None else dice[kept].mean())

    @cached_property
    def first_kept(self) -> np.ndarray:
        """What the first peers keep."""
        return self.kept(self.first)

    @cached_property
    def first_masks(self) -> dict[int, Any]:
        """The first peers' corrections."""
        return self.corrected(self.first)[0]

    @cached_property
    def fresh(self) -> tuple[Any, Any]:
        """A pair from the encoder's weights that saw only what is kept, for half of the steps."""
        data = self.data(self.first_kept)
        return tuple(self.trained(data, STEPS // 2, seed=n) for n in (1, 2))  # type: ignore

    @cached_property
    def second(self) -> Any:
        """What the fresh pair says."""
        return self.looked_at(*self.fresh)

    @cached_property
    def second_masks(self) -> tuple[dict[int, Any], Any]:
        """The fresh pair's corrections of what the first peers rejected."""
        return self.corrected(self.second, np.flatnonzero(~self.first_kept))


Row = dict[str, Any]


def clean(s: School) -> Row:
    data = s.data().with_original_masks()
    return {"test": s.tested(s.trained(data, STEPS)), "labels": 1, "steps": STEPS}


def noisy(s: School) -> Row:
    return {
        "test": s.tested(s.trained(s.data(), STEPS)),
        "labels": s.label_dice({}),
        "steps": STEPS,
    }


def noisy_gce(s: School) -> Row:
    module = s.trained(s.data(), STEPS, loss=GCE)
    return {"test": s.tested(module), "labels": s.label_dice({}), "steps": STEPS}


def by_labels(s: School, masks: dict[int, Any], loss: str = "cross_entropy") -> Row:
    """New weights, on what the first peers kept and other masks of the rest."""
    module = s.trained(s.data(masks=masks), STEPS, loss=loss)
    return {"test": s.tested(module), "steps": STEPS}


def clean_half(s: School) -> Row:
    right = ~s.first.replaced
    return {"test": s.tested(s.trained(s.data(right), STEPS)), "labels": 1, "steps": STEPS}


def best_alone(s: School, rejected: float) -> Row:
    """Only what the first peers rank best, without the given share."""
    kept = s.kept(s.first, rejected)
    module = s.trained(s.data(kept), STEPS)
    return {"test": s.tested(module), "labels": s.label_dice({}, kept), "steps": STEPS}


def kept_third(s: School) -> Row:
    return best_alone(s, 0.65)


def kept_most(s: School) -> Row:
    return best_alone(s, 0.25)


def kept_by_gce(s: School) -> Row:
    module = s.trained(s.data(s.first_kept), STEPS, loss=GCE)
    return {"test": s.tested(module), "labels": s.label_dice({}, s.first_kept), "steps": STEPS}


def sure_pixels(s: School) -> Row:
    return by_labels(s, s.predicted(surely=0.95))


def all_predicted(s: School) -> Row:
    masks = s.predicted()
    return by_labels(s, masks) | {"labels": s.label_dice(masks)}


def first_vote_by_cross_entropy(s: School) -> Row:
    return by_labels(s, s.first_masks) | {"labels": s.label_dice(s.first_masks)}


def kept_alone(s: School) -> Row:
    module = s.trained(s.data(s.first_kept), STEPS)
    dice = s.label_dice({}, s.first_kept)
    return {"test": s.tested(module), "labels": dice, "auroc": s.auroc(s.first), "steps": STEPS}


def fresh_peer(s: School) -> Row:
    a, _ = s.fresh
    row = {"test": s.tested(a), "labels": s.label_dice({}, s.first_kept)}
    return row | {"auroc": s.auroc(s.second), "steps": STEPS // 2}


def first_vote(s: School) -> Row:
    """New weights, on what the first peers kept and corrected."""
    module = s.trained(s.data(masks=s.first_masks), STEPS, loss=GCE)
    row = {"test": s.tested(module), "labels": s.label_dice(s.first_masks)}
    return row | {"auroc": s.auroc(s.first), "steps": STEPS}


def fresh_vote(s: School) -> Row:
    """From a peer of the fresh pair, on what was kept and what the fresh pair corrected."""
    masks, guard = s.second_masks
    module = s.trained(s.data(masks=masks), STEPS // 2, seed=3, start=s.fresh[0], loss=GCE)
    row = {"test": s.tested(module), "labels": s.label_dice(masks), "auroc": s.auroc(s.second)}
    return row | {"steps": STEPS // 2 * 3, "ratio": guard.label_peer_ratio}


def fresh_vote_from_new(s: School) -> Row:
    """The same labels, from the encoder's weights."""
    masks, _ = s.second_masks
    module = s.trained(s.data(masks=masks), STEPS, seed=3, loss=GCE)
    row = {"test": s.tested(module), "labels": s.label_dice(masks), "auroc": s.auroc(s.second)}
    return row | {"steps": 2 * STEPS}


def fresh_ranking(s: School) -> Row:
    """As `fresh_vote`, where the fresh pair ranks anew before it corrects."""
    masks, guard = s.corrected(s.second)
    module = s.trained(s.data(masks=masks), STEPS // 2, seed=3, start=s.fresh[0], loss=GCE)
    row = {"test": s.tested(module), "labels": s.label_dice(masks), "auroc": s.auroc(s.second)}
    return row | {"steps": STEPS // 2 * 3, "ratio": guard.label_peer_ratio}


def strong_views(s: School) -> Row:
    """The rest teaches by what an average of the network says, under strong views."""
    kept = s.data(s.first_kept)
    module = s.trained(kept, STEPS, kind=WithTheRest, rest=lambda: s.rest())
    return {"test": s.tested(module), "labels": s.label_dice({}, s.first_kept), "steps": STEPS}


def taught_by_fresh(s: School) -> Row:
    """The rest teaches by the mean of the fresh pair, softly."""
    pair = [module.net.eval() for module in s.fresh]

    def mean(images: Tensor) -> Tensor:
        return torch.stack([net(images).softmax(dim=1) for net in pair]).mean(dim=0)

    options: dict[str, Any] = {
        "teachers": mean,
        "surely": 0.0,
        "strong": True,
        "rest": lambda: s.rest(),
    }
    module = s.trained(s.data(s.first_kept), STEPS, kind=WithTheRest, seed=3, **options)
    row = {"test": s.tested(module), "labels": s.label_dice({}, s.first_kept)}
    return row | {"steps": 2 * STEPS}


def rims_weigh_less(s: School) -> Row:
    module = s.trained(s.data(masks=s.first_masks), STEPS, kind=RimsWeighLess)
    return {"test": s.tested(module), "labels": s.label_dice(s.first_masks), "steps": STEPS}


def noisy_rims_weigh_less(s: School) -> Row:
    module = s.trained(s.data(), STEPS, kind=RimsWeighLess)
    return {"test": s.tested(module), "labels": s.label_dice({}), "steps": STEPS}


def mean_weights(s: School) -> Row:
    """The mean of the weights of two networks that were one for the first half of their steps."""
    data = s.data(s.first_kept)
    parent = s.fresh[0]
    a, b = (s.trained(data, STEPS // 2, seed=seed, start=parent) for seed in (3, 4))
    other = b.net.state_dict()
    mean = {
        k: v.lerp(other[k], 0.5) if v.is_floating_point() else v
        for k, v in a.net.state_dict().items()
    }
    a.net.load_state_dict(mean)
    row = {"test": s.tested(a), "labels": s.label_dice({}, s.first_kept)}
    return row | {"steps": STEPS // 2 * 3}


VARIANTS: dict[str, Callable[[School], Row]] = {
    "noisy": noisy,
    "clean": clean,
    "the kept half": kept_alone,
    "a fresh peer": fresh_peer,
    "fresh pair's vote": fresh_vote,
    "fresh pair's ranking and vote": fresh_ranking,
    "first peers' vote, new weights": first_vote,
    "noisy, GCE": noisy_gce,
    "the clean half": clean_half,
    "the 35 % ranked best": kept_third,
    "the 75 % ranked best": kept_most,
    "the kept half, GCE": kept_by_gce,
    "kept, and sure pixels of the rest": sure_pixels,
    "kept, and predictions of the rest": all_predicted,
    "first peers' vote, new weights, cross-entropy": first_vote_by_cross_entropy,
    "fresh pair's vote, new weights": fresh_vote_from_new,
    "kept, and the rest under strong views": strong_views,
    "kept, and the rest softly by a fresh pair": taught_by_fresh,
    "first peers' vote, rims weigh less": rims_weigh_less,
    "noisy, rims weigh less": noisy_rims_weigh_less,
    "the kept half, mean of two networks' weights": mean_weights,
}


def read() -> list[Row]:
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def note(row: Row) -> None:
    is_new = not RESULTS.exists()
    with RESULTS.open("a", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n", restval="")
        if is_new:
            table.writeheader()
        table.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()})


def run(weights: str, name: str, seed: int, size: int, precision: str, variants: list[str]) -> None:
    columns = ("set", "seed", "size", "precision", "variant")
    done = {tuple(row[column] for column in columns) for row in read()}
    made = (name, str(seed), str(size), precision)
    wanted = [v for v in variants or VARIANTS if (*made, v) not in done]
    if not wanted:
        return
    school = School(("pretrained", name, seed), weights, size, precision)
    for variant in wanted:
        row = {"set": name, "seed": seed, "size": size, "variant": variant}
        row |= {"precision": precision}
        row |= VARIANTS[variant](school)
        note(row)
        print(row, flush=True)


def table(size: int, precision: str) -> None:
    rows = [row for row in read() if (row["size"], row["precision"]) == (str(size), precision)]
    sets = list(dict.fromkeys(row["set"] for row in rows))
    columns = [f"{name}: {part}" for name in sets for part in ("test", "labels", "AUROC")]
    print(f"| learnt from | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for variant in VARIANTS:
        cells = []
        for name in sets:
            of = [row for row in rows if (row["set"], row["variant"]) == (name, variant)]
            for part in ("test", "labels", "auroc"):
                values = [100 * float(row[part]) for row in of if row[part]]
                many = len(values) > 1
                spread = f" ± {np.std(values, ddof=1):.1f} ({len(values)})" if many else ""
                cells.append(f"{np.mean(values):.1f}{spread}" if values else "-")
        if any(cell != "-" for cell in cells):
            print(f"| {variant} | {' | '.join(cells)} |")


def main() -> None:
    """Train what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("weights", help="the encoder's weights; or table")
    parser.add_argument("set", nargs="?")
    parser.add_argument("seed", nargs="?", type=int, default=0)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=[])
    given = parser.parse_args()
    if given.weights == "table":
        table(given.size, given.precision)
        return
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    weights = str(Path(given.weights).absolute())
    run(weights, given.set, given.seed, given.size, given.precision, given.variants)


if __name__ == "__main__":
    main()
