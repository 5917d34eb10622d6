r"""The cost of a training step of each kind, against a plain step of one network.

    python benchmarks/step.py                     # ResNet-18 U-Net, 96 x 96, batches of 8, CPU
    python benchmarks/step.py --size 256 --batch 16 --rounds 1   # where activations are the memory
    python benchmarks/step.py --accelerator gpu --precision bf16-mixed --size 256 --batch 32 \
        --channels-last --compile

Every kind has a process of its own, and all take turns: in each round each trains one epoch of
eight batches, while the others wait. A figure is the median over the rounds of its epoch's time
over that of the plain step in the same round. Results are appended to
`benchmarks/results/step.csv`.

Memory is what the process (or torch, on a GPU) held at most, less what it held before the networks
were made.
"""

import argparse
import csv
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "step.csv"
BATCHES = 8
KINDS = {  # and its cost by the model: forward passes of one network over the batch, over 3
    "plain": "1",
    "plain, bare loop": "1",
    "SegmentationModule": "1",
    "joint": "2",
    "joint, bare loop": "2",
    "score, then train": "2 (1 + 3 alpha) / 3",
    "score, then train, bare loop": "2 (1 + 3 alpha) / 3",
    "score bank": "2 alpha",
    "score bank, bare loop": "2 alpha",
    "two optimizers, as usual": "2",
    "co-teaching of pixels": "2",
}
COLUMNS = ["kind", "model", "ratio", "lowest", "highest", "milliseconds", "mebibytes", "memory"]
COLUMNS += ["accelerator", "precision", "size", "batch", "alpha", "options", "rounds", "machine"]


def batches_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Noise as images, on the device, and masks that are no noise."""
    import torch

    device = device_of(options)
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(BATCHES):
        shape = (options.batch, 3, options.size, options.size)
        images = torch.randn(shape, generator=generator)
        if options.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        masks = torch.zeros((options.batch, options.size, options.size), dtype=torch.long)
        masks[:, options.size // 4 : options.size // 2, options.size // 3 :] = 1
        ids = [f"{number}-{place}" for place in range(options.batch)]
        made.append({"image": images.to(device), "mask": masks.to(device), "id": ids})
    return made


def doubted(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """What each peer leaves out: a share of all samples, at random, so varying by batch."""
    import random

    rng = random.Random(0)
    ids = [f"{number}-{place}" for number in range(BATCHES) for place in range(options.batch)]
    count = round((1 - options.alpha) * len(ids))
    return rng.sample(ids, count), rng.sample(ids, count)


def network(options: argparse.Namespace):  # -> nn.Module
    """A U-Net of segmentation-models-pytorch."""
    import segmentation_models_pytorch as smp
    import torch

    made = smp.create_model("unet", options.encoder, encoder_weights=None, classes=2)
    if options.channels_last:
        made = made.to(memory_format=torch.channels_last)
    return torch.compile(made) if options.compile else made


def device_of(options: argparse.Namespace) -> str:
    """Where everything is computed."""
    return "cuda" if options.accelerator == "gpu" else "cpu"


def bare(kind: str, options: argparse.Namespace, batches: list[dict[str, Any]]) -> Iterator[None]:
    """The same operations in a loop by hand; stops after every epoch."""
    import torch

    from coseg_lightning.functional.equations import segmentation_loss
    from coseg_lightning.ranking.evidence import relative_score

    device = device_of(options)
    nets = [network(options).to(device) for _ in range(1 if kind == "plain" else 2)]
    weights = [weight for net in nets for weight in net.parameters()]
    # As the modules' own on a CPU; the plain Lightning step has the Adam that anybody would write.
    optimizer = torch.optim.Adam(weights, weight_decay=2e-5, fused=device == "cpu" or None)
    left_out = [set(part) for part in doubted(options)]
    half = torch.bfloat16 if options.precision == "bf16-mixed" else None
    autocast = torch.autocast(device, half, enabled=half is not None)
    k = round(options.alpha * options.batch)

    def loss_of(net: Any, batch: dict[str, Any], picks: Any = None) -> Any:
        images, masks = batch["image"], batch["mask"]
        if picks is not None:
            images, masks = images[picks], masks[picks]
        return segmentation_loss(net(images), masks).mean()

    while True:
        yield
        for batch in batches:
            optimizer.zero_grad()
            with autocast:
                if kind == "plain":
                    loss_of(nets[0], batch).backward()
                elif kind == "joint":
                    logits = [net(batch["image"]) for net in nets]
                    losses = [segmentation_loss(part, batch["mask"]) for part in logits]
                    picks = [part.detach().topk(k, largest=False).indices for part in losses]
                    (losses[0][picks[1]].mean() + losses[1][picks[0]].mean()).backward()
                else:
                    if kind == "score bank":
                        picks = [
                            torch.tensor(
                                [n for n, name in enumerate(batch["id"]) if name not in part]
                            )
                            for part in left_out
                        ]
                    else:
                        with torch.no_grad():
                            picks = [
                                relative_score(net.eval()(batch["image"]), batch["mask"])
                                .topk(k, largest=False)
                                .indices
                                for net in nets
                            ]
                        torch.clear_autocast_cache()  # of casts without gradients
                    for net, other in zip(nets, reversed(picks), strict=True):
                        loss_of(net.train(), batch, other.to(device)).backward()
            optimizer.step()


def modules(kind: str, options: argparse.Namespace):  # -> pl.LightningModule
    """The LightningModule of a kind."""
    import pytorch_lightning as pl
    import torch

    from coseg_lightning import CoSegModule, SegmentationModule
    from coseg_lightning.functional.equations import segmentation_loss
    from coseg_lightning.methods.pixel_coteaching import PixelCoTeaching

    class Plain(pl.LightningModule):
        """What anybody would write for one network."""

        def __init__(self) -> None:
            super().__init__()
            self.net = network(options)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = segmentation_loss(self.net(batch["image"]), batch["mask"]).mean()
            self.log("loss", loss, on_step=False, on_epoch=True, batch_size=options.batch)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), weight_decay=2e-5)

    class AsUsual(pl.LightningModule):
        """Co-teaching as it is usually written: two optimizers, the whole batch through both."""

        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.nets = torch.nn.ModuleList(network(options) for _ in range(2))

        def training_step(self, batch: Any, batch_idx: int) -> None:
            k = round(options.alpha * options.batch)
            losses = [segmentation_loss(net(batch["image"]), batch["mask"]) for net in self.nets]
            picks = [part.argsort()[:k] for part in losses]
            for optimizer, loss, other in zip(
                self.optimizers(), losses, reversed(picks), strict=True
            ):
                optimizer.zero_grad()
                self.manual_backward(loss[other].mean())
                optimizer.step()
            self.log("loss", losses[0].mean(), on_step=False, on_epoch=True, batch_size=k)

        def configure_optimizers(self) -> Any:
            return [torch.optim.Adam(net.parameters(), weight_decay=2e-5) for net in self.nets]

    if kind == "plain":
        return Plain()
    if kind == "two optimizers, as usual":
        return AsUsual()
    if kind == "SegmentationModule":
        return SegmentationModule(network(options))
    nets = network(options), network(options)
    level = 1 - options.alpha
    if kind == "co-teaching of pixels":
        return PixelCoTeaching(*nets, select_ratio=options.alpha, ramp_epochs=0)
    if kind == "joint":
        return CoSegModule(*nets, noise_level=level, ramp_epochs=0, selection="eq1", step="joint")
    if kind == "score, then train":
        return CoSegModule(*nets, noise_level=level, ramp_epochs=0, selection="relative")
    return CoSegModule(*nets, noise_level=level)


def held(options: argparse.Namespace) -> int:
    """The most bytes that were held so far."""
    import torch

    if options.accelerator == "gpu":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def train(kind: str, options: argparse.Namespace, turns: Connection) -> None:
    """A process: trains an epoch at each of its turns, and says how long it took."""
    import logging
    import warnings

    import pytorch_lightning as pl
    import torch
    from torch.utils.data import DataLoader

    import coseg_lightning  # noqa: F401  (before memory is measured)

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    batches = batches_of(options)
    synchronise: Callable[[], Any] = lambda: None  # noqa: E731
    if options.accelerator == "gpu":
        synchronise = torch.cuda.synchronize
    before = held(options)
    if kind.endswith(", bare loop"):
        epochs = bare(kind.removesuffix(", bare loop"), options, batches)
        next(epochs)
        while turns.recv():
            start = time.perf_counter()
            next(epochs)
            synchronise()
            turns.send((time.perf_counter() - start, held(options) - before))
        return

    class Turns(pl.Callback):
        """Waits for a turn before every epoch, and says at its end how long it took."""

        start = 0.0

        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            if not turns.recv():
                trainer.should_stop = True
            elif kind == "score bank":
                pl_module.selection.exclude(*doubted(options))
            self.start = time.perf_counter()

        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            synchronise()
            if not trainer.should_stop:
                turns.send((time.perf_counter() - self.start, held(options) - before))

    pl.Trainer(
        max_epochs=-1,
        accelerator=options.accelerator,
        devices=1,
        precision=options.precision,
        logger=False,
        callbacks=[Turns()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(modules(kind, options), DataLoader(batches, batch_size=None))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--alpha", type=float, default=0.5, help="the share that is kept")
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true", help="torch.compile the networks")
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # those who wait do not spin
    kinds = list(dict.fromkeys(["plain", *options.kinds]))
    context = multiprocessing.get_context("spawn")
    turns: dict[str, Any] = {}
    for kind in kinds:
        turns[kind], theirs = context.Pipe()
        context.Process(target=train, args=(kind, options, theirs), daemon=True).start()
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    memory = dict.fromkeys(kinds, 0)
    for number in range(options.rounds + 1):
        # Each begins once; the first round only warms up.
        for kind in kinds[number % len(kinds) :] + kinds[: number % len(kinds)]:
            turns[kind].send(True)
            took, memory[kind] = turns[kind].recv()
            if number:
                seconds[kind].append(took)
    for kind in kinds:
        turns[kind].send(False)

    cpu = platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), cpu)
    machine = f"{options.threads} threads of {cpu}"
    if options.accelerator == "gpu":
        import torch

        machine = torch.cuda.get_device_name()
    new = not options.results.is_file()
    told = [n for n in ("channels_last", "compile") if getattr(options, n)]
    with options.results.open("a", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            table.writeheader()
        for kind in kinds:
            ratios = [
                mine / plain for mine, plain in zip(seconds[kind], seconds["plain"], strict=True)
            ]
            row = {
                "kind": kind,
                "model": KINDS[kind],
                "ratio": f"{statistics.median(ratios):.3f}",
                "lowest": f"{min(ratios):.3f}",
                "highest": f"{max(ratios):.3f}",
                "milliseconds": f"{1000 * statistics.median(seconds[kind]) / BATCHES:.2f}",
                "mebibytes": f"{memory[kind] / 2**20:.0f}",
                "memory": f"{memory[kind] / memory['plain']:.2f}",
                **{n: getattr(options, n) for n in ("accelerator", "precision", "size", "batch")},
                "alpha": options.alpha,
                "options": " ".join([options.encoder, *told]),
                "rounds": options.rounds,
                "machine": machine,
            }
            table.writerow(row)
            print("  ".join(str(row[name]) for name in COLUMNS[:8]), flush=True)


if __name__ == "__main__":
    main()
