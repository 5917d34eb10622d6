"""The plain networks that a run may be compared with."""

from functools import partial
from typing import Any

from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.data.wrapped import Data
from coseg_lightning.methods.method import Run
from coseg_lightning.modules.segmentation import SegmentationModule
from coseg_lightning.runs.summary import test_figures


def train_baselines(run: Run) -> dict[str, Any]:
    """Train the network as it is on the labels as given and, if they are known, on clean ones.

    Returns:
        Test figures by `noisy` and `clean`.
    """
    data_of: dict[str, Data] = {}
    if run.method.name != "supervised":  # which is the noisy one itself
        data_of["noisy"] = run.data
    if isinstance(run.data, CoSegDataModule) and run.data.noise is not None:
        data_of["clean"] = run.data.with_original_masks()
    return {
        name: run.runner.stage(f"{name}_baseline", partial(_train, run, f"{name}_baseline", data))[
            "test"
        ]
        for name, data in data_of.items()
    }


def _train(run: Run, stage: str, data: Data) -> dict[str, Any]:
    module = run.network()
    if not run.method.trains_peers:  # it is the method's own module
        module = plain(module)
    run.runner.fit(stage, module, data)
    return {"test": test_figures(run.runner.tester(), module, data, run.runner.seed)}


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
