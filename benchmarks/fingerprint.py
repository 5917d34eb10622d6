"""Proves that a change of the code's structure changes no result: hashes of what small runs write.

    python benchmarks/fingerprint.py record before.json     # in a checkout of the old commit
    python benchmarks/fingerprint.py record after.json      # in the new one
    python benchmarks/fingerprint.py compare before.json after.json

Every case is a command of the app with a fixed seed and small settings, or a small Lightning
project. Hashed are `scores.csv`, the masks of every label layer, the tensors of the network and of
every stage's checkpoint, and the figures in `summary.json`. `--only NAME` records some cases alone;
`record` keeps what a file already holds. Run it with OMP_NUM_THREADS=1: sums over several threads
differ in the last bit.
"""

import argparse
import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
PHANTOM = ["data.source.train=28", "data.source.val=4", "data.source.test=6"]
PHANTOM += ["data.source.side=64", "data.image_size=32", "data.batch_size=4"]
SMALL = ["model=unet_classic", "model.base_channels=8", "noise=type2", "nol=0.4"]
SMALL += ["trainer.max_epochs=10", "optimizer.lr=0.01", "noise.type2.bias=16", *PHANTOM]
THREE = ["data=folder", "data.classes=3", "data.in_channels=1", "data.image_size=32"]
THREE += ["data.batch_size=4", "model=unet_classic", "model.base_channels=8"]
THREE += ["trainer.max_epochs=10", "optimizer.lr=0.01", "noise=type1", "nol=0.3"]
THREE += ["noise.type1.max_pixels=24"]
RIVALS = ("coteaching", "supervised", "pixel_coteaching", "jocor", "gce", "sce", "filter", "adele")
RIVALS += ("pick_and_learn", "forward_correction", "noise_adaptation", "dimensionality")
# Of the app: its arguments. `{three}` is a folder of images with three classes.
RUNS: dict[str, list[str]] = {
    "main": ["model=unet", "noise=type2", "nol=0.3", "trainer.max_epochs=3", *PHANTOM],
    "small": SMALL,
    "paper": ["experiment=paper", *SMALL[1:], "data.image_size=32"],
    "auto": [*SMALL, "nol=auto", "noise.level=0.4", "data.source.train=44"],
    "auto_epochs_averaged": [
        *[*SMALL, "nol=auto", "noise.level=0.4", "data.source.train=44"],
        *["method.score_epochs=3", "averaging=0"],
    ],
    "bare_vote": [*SMALL, "method.confidence=0", "baselines=true"],
    "cold": [*SMALL, "method.warm_start=false", "method.retraining_loss=cross_entropy"],
    "rounds": [*SMALL, "method.rounds=2", "method.confidence=0.6"],
    "half": [*SMALL, "method.retraining_share=0.5", "method.confidence=0.6"],
    "relative": [*SMALL, "method.selection=relative", "method.confidence=0.6"],
    "eq1_joint": [*SMALL, "method.selection=eq1", "method.step=joint", "method.score=mean"],
    "eq1_joint_constant": [
        *[*SMALL, "method.selection=eq1", "method.step=joint", "method.score=mean"],
        *["method.ramp_epochs=0", "method.confidence=0"],
    ],
    "whole_set_joint": [*SMALL, "method.step=joint", "method.confidence=0"],
    "epochs_averaged": [*SMALL, "method.score_epochs=3", "averaging=0", "method.confidence=0"],
    "classic_loss": [*SMALL, "loss.include_background=false", "loss.lambda_1=0.5"],
    "double_unet": ["model=double_unet", "model.base_channels=4", *SMALL[2:], "optimizer.lr=0.001"],
    "bfloat16": [*SMALL, "trainer.precision=bf16-mixed", "method.confidence=0"],
    "accumulated": [
        *[
            *SMALL,
            "+trainer.accumulate_grad_batches=3",
            "+trainer.gradient_clip_val=0.5",
            "optimizer.lr=0.003",
        ],
        "+optimizer.scheduler={_target_: torch.optim.lr_scheduler.StepLR, step_size: 2}",
    ],
    "three_classes": [*THREE, "data.root={three}"],
    "three_classes_bare": [*THREE, "data.root={three}", "method.confidence=0"],
    "by_class": [*THREE, "data.root={three}", "method.by_class=true", "method.confidence=0"],
    "ddp": [*SMALL, "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"],
    "ddp_joint": [
        *[*SMALL, "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"],
        *["method.step=joint", "method.selection=eq1", "method.confidence=0"],
        "method.ramp_epochs=0",
    ],
    "reweight": [*SMALL, "method=reweight", "data.clean_ids=4"],
    "workers": [*SMALL, "data.num_workers=2"],
    **{name: [*SMALL, f"method={name}"] for name in RIVALS},
    "adele_long": [*SMALL, "method=adele", "trainer.max_epochs=16"],
    "dimensionality_long": [*SMALL, "method=dimensionality", "trainer.max_epochs=16"],
}


def command(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the package, as a user does."""
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", f"coseg_lightning.{module}", *arguments],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )


def app(folder: Path, *arguments: str, **environment: str) -> None:
    """A run of the app that must succeed."""
    done = command("run", *arguments, f"hydra.run.dir={folder}", **environment)
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-3000:])


def make_three_classes(root: Path) -> Path:
    """Discs and squares of two classes on a noisy ground."""
    import cv2

    for number in range(20):
        rng = np.random.default_rng(number)
        mask = np.zeros((48, 56), np.uint8)
        cv2.circle(mask, (int(rng.integers(12, 20)), int(rng.integers(14, 34))), 9, 1, -1)
        top, left = (int(value) for value in rng.integers((8, 32), (26, 40)))
        mask[top : top + 12, left : left + 12] = 2
        noise = rng.normal(0, 12, mask.shape)
        image = np.clip(60 + 50.0 * mask + noise, 0, 255).astype(np.uint8)
        for name, picture in (("images", image), ("masks", mask)):
            (root / name).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / name / f"p{number:02d}.png"), picture)
    return root


def digest(*parts: bytes) -> str:
    """A short hash."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "big") + part)
    return found.hexdigest()[:16]


def of_tensors(state: dict[str, Any]) -> str:
    """Of tensors by name, to the bit."""
    parts = []
    for name, value in sorted(state.items()):
        array = value.detach().cpu().contiguous()
        parts += [name.encode(), str((array.dtype, tuple(array.shape))).encode()]
        parts.append(array.flatten().view(-1).numpy().tobytes())
    return digest(*parts)


def of_folder(folder: Path) -> dict[str, Any]:
    """What a run left, as hashes by name."""
    import torch
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for path in sorted(folder.glob("scores*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{k: v for k, v in row.items() if k != "run"} for row in csv.DictReader(file)]
        found[path.name] = digest(json.dumps(rows).encode())
    for layer in sorted({path.parent for path in folder.glob("*/manifest.json")}):
        masks = sorted(layer.glob("*.png"))
        found[layer.name] = digest(
            *(part for p in masks for part in (p.name.encode(), p.read_bytes()))
        )
    for path in sorted(folder.glob("*/last.ckpt")):
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        found[f"{path.parent.name}/last.ckpt"] = of_tensors(state)
    for path in sorted(folder.glob("model/*.safetensors")):
        found[f"model/{path.name}"] = of_tensors(load_file(path))
    if (folder / "summary.json").is_file():
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        for name in ("test", "baselines", "ranking", "correction", "transition"):
            if name in summary:
                found[f"summary.json {name}"] = summary[name]
        stages = summary.get("stages", {})
        found["summary.json epochs"] = {name: stage["epochs"] for name, stage in stages.items()}
    return found


def killed_and_resumed(place: Path) -> dict[str, Any]:
    """Killed before and after the first ranking within training, and gone on with each time."""
    setting = [*SMALL, "method.module=fingerprint.Killed", f"resume={place}"]
    for epoch in ("3", "7"):
        done = command("run", *setting, f"hydra.run.dir={place}", FINGERPRINT_KILL=epoch)
        if done.returncode != -signal.SIGKILL:
            raise RuntimeError(f"It was not killed: {done.returncode} {done.stderr[-3000:]}")
    app(place, *setting)
    return of_folder(place)


def reviewed(place: Path) -> dict[str, Any]:
    """Retraining by a review."""
    app(place, *SMALL, "method.confidence=0")
    with (place / "scores.csv").open(newline="", encoding="utf-8") as file:
        ids = [row["id"] for row in csv.DictReader(file) if int(row["changed_pixels"] or 0)]
    decisions = dict(zip(ids, ["keep", "reject", "redraw"] * len(ids), strict=False))
    lines = [f"{sample_id},{decision}\n" for sample_id, decision in sorted(decisions.items())]
    (place / "review.csv").write_text("id,decision\n" + "".join(lines), encoding="utf-8")
    review = ["stages=[retraining]", f"resume={place}", f"review={place / 'review.csv'}"]
    done = command("run", *review)
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-3000:])
    return of_folder(place / "reviewed")


def audited(place: Path) -> dict[str, Any]:
    """An audit by training."""
    settings = ["data=phantom", *SMALL, "nol=auto", "noise.level=0.4", "data.source.train=32"]
    done = command("audit", *settings, f"hydra.run.dir={place}")
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-3000:])
    return of_folder(place)


def audited_by_predictions(place: Path) -> dict[str, Any]:
    """An audit of somebody's probabilities."""
    root = make_three_classes(place / "data")
    import cv2

    (place / "p").mkdir()
    for path in sorted((root / "masks").iterdir()):
        rng = np.random.default_rng(len(path.stem) + int(path.stem[1:]))
        mask = np.roll(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), int(rng.integers(4)), axis=0)
        p = 0.1 + 0.7 * (np.arange(3)[:, None, None] == mask)
        np.save(place / "p" / f"{path.stem}.npy", (p / p.sum(axis=0)).astype(np.float32))
    data = [f"data.root={root}", "data.classes=3", f"predictions={place / 'p'}", "nol=0.3"]
    done = command("audit", *data, f"hydra.run.dir={place / 'audit'}")
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-3000:])
    return of_folder(place / "audit")


def project(place: Path) -> dict[str, Any]:
    """A Lightning project with the public names alone: samples without ids, and with them."""
    import pytorch_lightning as pl
    import torch
    from torch.utils.data import DataLoader

    import coseg_lightning as coseg

    found = {}
    for name, options in (
        ("numbered", {}),
        ("numbered_averaged", {"averaging": True}),
        ("ids", {"ids": True}),
        ("ids_averaged", {"ids": True, "averaging": True}),
        ("eq1", {"ids": True, "selection": "eq1", "ramp_epochs": 2}),
        ("sigmoid", {"ids": True, "classes": 1}),
    ):
        with_ids, averaging = options.pop("ids", False), options.pop("averaging", False)
        samples = []
        for number in range(14):
            generator = torch.Generator().manual_seed(number)
            mask = torch.zeros(24, 24, dtype=torch.long)
            mask[4 + number // 2 : 14 + number // 2, 5:15] = 1
            image = mask[None] + 0.3 * torch.randn(1, 24, 24, generator=generator)
            sample = (image, mask.roll(4, 1) if number % 3 == 0 else mask)
            samples.append((*sample, f"s{number}") if with_ids else sample)
        pl.seed_everything(0, verbose=False)
        peers = coseg.CoSegModule(
            *("unet_classic",), in_channels=1, base_channels=4, noise_level=0.3, **options
        )
        folder = place / name
        callbacks = [
            *([coseg.AveragedWeights()] if averaging else []),
            coseg.CorruptionRanking(folder / "scores.csv", epochs=1 if averaging else 2),
            coseg.LabelCorrection(folder / "labels", confidence=0.55),
        ]
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        pl.Trainer(max_epochs=6, accelerator="cpu", callbacks=callbacks, **quiet).fit(
            peers, DataLoader(samples, batch_size=4, shuffle=True)
        )
        for file, value in of_folder(folder).items():
            found[f"{name}/{file}"] = value
        found[f"{name}/weights"] = of_tensors(peers.state_dict())
        relabelled = coseg.updated(samples, folder / "labels")
        masks = torch.stack([relabelled[n][1] for n in range(len(relabelled))])
        found[f"{name}/updated"] = of_tensors({"masks": masks})
    return found


def run_case(arguments: list[str]) -> Callable[[Path], dict[str, Any]]:
    """A case that is one run of the app."""

    def do(place: Path) -> dict[str, Any]:
        three = make_three_classes(place.parent / "three") if "{three}" in str(arguments) else place
        app(place, *(argument.replace("{three}", str(three)) for argument in arguments))
        return of_folder(place)

    return do


CASES: dict[str, Callable[[Path], dict[str, Any]]] = {
    **{name: run_case(arguments) for name, arguments in RUNS.items()},
    "killed_and_resumed": killed_and_resumed,
    "reviewed": reviewed,
    "audit": audited,
    "audit_by_predictions": audited_by_predictions,
    "project": project,
}


def __getattr__(name: str) -> Any:
    """The module that kills its own process, made only where the app asks for it."""
    if name != "Killed":
        raise AttributeError(name)
    from coseg_lightning import CoSegModule

    class Killed(CoSegModule):
        def on_train_epoch_start(self) -> None:
            if str(self.current_epoch) == os.environ.get("FINGERPRINT_KILL"):
                os.kill(os.getpid(), signal.SIGKILL)

    return Killed


def record(file: Path, only: list[str], keep: Path | None) -> None:
    """Do the cases that the file does not hold yet, and write it after each."""
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for name in only or CASES:
        if name in found:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            place = Path(temporary) / "run"
            place.mkdir() if name in ("audit_by_predictions", "project") else None
            try:
                found[name] = CASES[name](place)
            except RuntimeError as error:
                print(f"{name} failed: {error}", flush=True)
                continue
            if keep is not None:
                shutil.copytree(place, keep / name)
        file.write_text(json.dumps(found, indent=1, sort_keys=True), encoding="utf-8")
        print(f"{name}: {len(found[name])} hashes and figures", flush=True)


def compare(before: Path, after: Path) -> int:
    """Print what differs; how much does."""
    one, other = (json.loads(path.read_text(encoding="utf-8")) for path in (before, after))
    same = differs = 0
    for name in sorted({*one, *other}):
        if name not in one or name not in other:
            print(f"{name}: only in {before if name in one else after}")
            differs += 1
            continue
        for key in sorted({*one[name], *other[name]}):
            if one[name].get(key) == other[name].get(key):
                same += 1
            else:
                print(f"{name}: {key} was {one[name].get(key)}, is {other[name].get(key)}")
                differs += 1
    print(f"{same} hashes and figures of {len(one)} cases are equal, {differs} differ.")
    return differs


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("do", choices=["record", "compare"])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--keep", type=Path, help="a folder to keep the runs in")
    given = parser.parse_args()
    if given.do == "record":
        record(given.files[0], given.only, given.keep)
    else:
        sys.exit(bool(compare(*given.files)))


if __name__ == "__main__":
    main()
