"""The baselines of a run: plain networks to compare with."""

from functools import partial
from typing import Any

from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.methods.method import Run
from coseg_lightning.modules.segmentation import SegmentationModule
from coseg_lightning.runs.summary import images_tested, test_figures
from coseg_lightning.runs.wrapped import Data


def train_baselines(run: Run) -> dict[str, Any]:
    """Train a plain network on the given labels and, if known, one on the original labels.

    Returns:
        Test figures by `noisy` and `clean`.
    """
    datasets: dict[str, Data] = {}
    if run.method.name != "supervised":  # which equals the noisy baseline
        datasets["noisy"] = run.data
    if isinstance(run.data, CoSegDataModule) and run.data.noise is not None:
        datasets["clean"] = run.data.with_original_masks()
    figures: dict[str, Any] = {}
    for number, (name, data) in enumerate(datasets.items(), start=1):
        run.runner.expect(len(datasets) - number + len(run.method.stages))
        stage = f"{name}_baseline"
        figures[name] = run.runner.stage(stage, partial(_train, run, stage, data))["test"]
    return figures


def _train(run: Run, stage: str, data: Data) -> dict[str, Any]:
    module = run.network()
    if not run.method.trains_peers:  # the method may have its own module
        module = plain(module)
    run.runner.fit(stage, module, data)
    tester, folder = run.runner.tester(), run.runner.folder.path / stage
    test = test_figures(tester, module, data, run.runner.seed)
    return {"test": test | images_tested(tester, module, data, folder)}


def plain(module: SegmentationModule) -> SegmentationModule:
    """Make a plain supervised module with the network and settings of another module."""
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
