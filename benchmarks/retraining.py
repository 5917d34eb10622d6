"""How does the final network go on from the first peer? Test Dice of several retrainings.

    python benchmarks/lite0.py lite0.safetensors
    COSEG_WEIGHTS=lite0.safetensors python benchmarks/retraining.py run maj7:0 "worst told:0"
    python benchmarks/retraining.py table

Networks and images are those of `grid.py`'s grid `real`. The sets are a crowd's masks as they are
(`one` for each image, `maj7`: the majority of seven, see `several.py`), and two where half of the
experts' masks were replaced (`worst`, `large`). `told` means `nol=0.5`, else `nol=auto`, which
cannot tell the noise level of these sets: the peers then learn from all masks, and the vote
corrects few or none. Of one pair of peers, the final network is retrained in several ways:

- `repeated`: from the first peer, by the same order and augmentation of the same epochs that the
  peer had, as all versions up to 0.2 did; weights are averaged over a tenth of these epochs.
- `other images`: the epochs are numbered after the peer's.
- `averaged`: the average covers a tenth of the epochs of both stages.
- `default`: both.
- `rims weigh less`: the default, and pixels near the outline of their label teach less at first.
- `new weights`: from the encoder's weights, for the epochs of both stages.

All by generalised cross-entropy (Zhang and Sabuncu 2018), or by the cross-entropy. The peers are
kept in `benchmarks/evidence/retraining`, and finished retrainings are not repeated. Writes
`results/retraining.csv`, one row a network.
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import grid
import several
from taught import RimsWeighLess, as_kind

from coseg_lightning.callbacks.label_correction import LabelCorrection
from coseg_lightning.files.checkpoints import load_plain
from coseg_lightning.methods.coteaching import robust_training
from coseg_lightning.methods.method import Method, Outcome, Run

RESULTS = grid.RESULTS / "retraining.csv"
EVIDENCE = Path(__file__).parent / "evidence" / "retraining"
KEYS = ("set", "seed", "retraining")
CROWD = {"one": (1, "one"), "maj7": (7, "majority")}
SETS = (*CROWD, "worst", "large", *(f"{n} told" for n in ("worst", "large", "crowd1", "type2")))


class Retraining(NamedTuple):
    """One way to retrain.

    Attributes:
        is_new: Whether from new weights, for the epochs of both stages.
        goes_on: Whether epochs are numbered after the peer's.
        averaging: The share of the epochs over which weights are averaged.
        loss: The pixel loss.
        rims: Whether pixels near the outline of their label teach less at first.
    """

    is_new: bool = False
    goes_on: bool = False
    averaging: float = 0.1
    loss: str = "generalised_cross_entropy"
    rims: bool = False


RETRAININGS = {
    "default": Retraining(goes_on=True, averaging=0.2),
    "rims weigh less": Retraining(goes_on=True, averaging=0.2, rims=True),
    "repeated": Retraining(),
    "other images": Retraining(goes_on=True),
    "averaged": Retraining(averaging=0.2),
    "averaged more": Retraining(averaging=0.4),
    "repeated, cross-entropy": Retraining(loss="cross_entropy"),
    "new weights": Retraining(is_new=True),
    "new weights, cross-entropy": Retraining(is_new=True, loss="cross_entropy"),
}


def retrained(run: Run, outcome: Outcome) -> Outcome:
    """Retrain and test the final network in all ways that are asked for."""
    assert outcome.peers is not None
    epochs, found, stage = outcome.peers.epochs, {}, ""
    for name in os.environ["RETRAININGS"].split(";"):
        way = RETRAININGS[name]
        stage = f"retraining_{name.replace(', ', '_').replace(' ', '_')}"
        module = run.network()
        if way.rims:
            module = as_kind(module, RimsWeighLess)
        module.use_pixel_loss(way.loss)
        if not way.is_new:
            load_plain(module.net, run.runner.weights("robust_training", of="net_a."))
        run.runner.fit(
            stage,
            module,
            run.data,
            max_epochs=epochs * (2 if way.is_new else 1),
            first_epoch=epochs if way.goes_on else 0,
            averaging=way.averaging,
        )
        (tested,) = run.runner.tester().test(module, datamodule=run.data, verbose=False)
        found[name] = {"dice": float(tested["test/dice"])}
    return replace(outcome, last_stage=stage, is_pair=False, summary={"retrainings": found})


METHOD = Method("coseg", (robust_training, retrained), correction=LabelCorrection)


def measure(name: str, seed: int) -> list[dict[str, object]]:
    """Train one pair of peers, unless it is there, and the final network in several ways."""
    from hydra import compose, initialize_config_dir

    from coseg_lightning.app.command import CONF
    from coseg_lightning.run import run

    folder = EVIDENCE / f"{name.replace(' ', '-')}-{seed}"
    masks, _, told = name.partition(" ")
    if name in CROWD:
        count, label = CROWD[name]
        root = folder / "data"
        if not root.exists():
            root.mkdir(parents=True)
            several.write_dataset(root, count, seed)
        settings = [f"data.root={root}", "data=folder", *grid.REAL, f"seed={seed}"]
        settings += [f"data.label={label}"] if count > 1 else []
        settings += [f"model.encoder_weights={grid.WEIGHTS}", "+trainer.enable_progress_bar=false"]
    else:
        settings = grid.overrides((f"bubil-{masks}", 0.5, "coseg", seed), False, real=True)
    settings = [one for one in settings if not one.startswith("nol=")]
    settings += ["nol=0.5" if told else "nol=auto", "rehearse=false"]
    settings += ["+method.object=retraining.METHOD"]
    (folder / "run" / "summary.json").unlink(missing_ok=True)  # for other retrainings
    if (folder / "run").exists():
        settings.append(f"resume={folder / 'run'}")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        summary = run(compose("config", settings), folder / "run")
    correction = summary["correction"]
    return [
        {
            **dict(zip(KEYS, (name, seed, way), strict=True)),
            "dice": round(found["dice"], 5),
            "corrected": correction["corrected"],
            "label_dice_before": correction["label_dice_before"],
            "label_dice_after": correction["label_dice_after"],
        }
        for way, found in summary["retrainings"].items()
    ]


def table() -> None:
    """Print mean and standard deviation over seeds, and the gain over `repeated` in pairs."""
    print(
        "| masks | retraining | test Dice | seeds: each | ahead of `repeated` |\n"
        + "|---" * 5
        + "|"
    )
    dice = {
        tuple(row[key] for key in KEYS): 100 * float(row["dice"]) for row in several.done(RESULTS)
    }
    for name in SETS:
        for way in RETRAININGS:
            seeds = sorted(seed for one, seed, other in dice if (one, other) == (name, way))
            if not seeds:
                continue
            found = [dice[name, seed, way] for seed in seeds]
            spread = f" ± {np.std(found, ddof=1):.1f}" if len(found) > 1 else ""
            each = ", ".join(f"{seed}: {dice[name, seed, way]:.1f}" for seed in seeds)
            pairs = [
                dice[name, seed, way] - dice[name, seed, "repeated"]
                for seed in seeds
                if (name, seed, "repeated") in dice and way != "repeated"
            ]
            ahead = ", ".join(f"{gain:+.1f}" for gain in pairs)
            print(f"| {name} | {way} | {np.mean(found):.1f}{spread} | {each} | {ahead} |")


def main() -> None:
    """Measure what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("cells", nargs="*", help="SET:SEED")
    parser.add_argument("--retrainings", nargs="+", default=["repeated", "default"])
    options = parser.parse_args()
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    if options.what == "table":
        return table()
    for cell in options.cells:
        name, _, seed = cell.partition(":")
        there = {
            row["retraining"]
            for row in several.done(RESULTS)
            if (row["set"], row["seed"]) == (name, seed)
        }
        wanted = [one for one in options.retrainings if one not in there]
        if wanted:
            os.environ["RETRAININGS"] = ";".join(wanted)
            for row in measure(name, int(seed)):
                grid.append(RESULTS, row)
                print(row, flush=True)
    return None


if __name__ == "__main__":
    main()
