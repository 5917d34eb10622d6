"""Every Python block of README and docs compiles, and runs where it brings all that it uses.

The blocks of one page are run one after the other, in one namespace, as a reader would. Epochs
and networks are made small. What a reader brings is taken from `BROUGHT`, by its name.
"""

import ast
import builtins
import contextlib
import importlib.util
import re
import symtable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import coseg_lightning
from coseg_lightning.functional import equations
from coseg_lightning.networks import build_network
from pages import MANUAL, blocks, name_of

BLOCKS = [block for page in MANUAL for block in blocks(page, "python", "py")]
PAGES = [page for page in MANUAL if blocks(page, "python", "py")]


class Samples(Dataset):
    """Colour images with a bright right half, as a project of the reader's may have them."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        image = 0.2 * torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(index))
        image[..., 16:] += 2
        mask = torch.zeros(32, 32, dtype=torch.long)
        mask[:, 16:] = 1
        return image, mask, f"s{index}"


class YourDataModule(pl.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(Samples(), batch_size=4, shuffle=True)

    def test_dataloader(self):
        return DataLoader(Samples(), batch_size=4)


def layer_of_one():
    """Write `labels`, a finished layer with one mask, where the page expects it."""
    from support import layer_of

    with contextlib.suppress(FileExistsError):
        layer_of(Path("labels"), {"s0": np.ones((32, 32), np.uint8)}, {"s0": Samples()[0][1]})


def peers():
    network = {"base_channels": 2, "in_channels": 3, "classes": 2}
    return coseg_lightning.CoSegModule("unet_classic", noise_level=0.3, **network)


def masks():
    mask = np.zeros((64, 64), np.uint8)
    mask[16:40, 16:40] = 1
    return [np.roll(mask, shift, axis=0) for shift in range(12)]


# What a reader brings, by the name that the pages give it.
BROUGHT = {
    "YourDataModule": lambda: YourDataModule,
    "YourModule": lambda: coseg_lightning.SegmentationModule,
    "YourNetwork": lambda: partial(build_network, "unet_classic", base_channels=2),
    "dataset": lambda: layer_of_one() or Samples(),
    "data": YourDataModule,
    "peers": peers,
    "yours": list,
    "masks": masks,
    "images": lambda: [np.random.default_rng(0).normal(100 * mask, 9) for mask in masks()],
    "names": lambda: ["anna", "ben"] * 20,
    "scores": lambda: np.random.default_rng(0).random(40),
    "pixels": lambda: np.random.default_rng(0).normal(size=40),
    "scanners": lambda: ["a"] * 40,
}
# What pages use without importing it again.
USUAL = {"pl": pl, "np": np, "torch": torch, "nn": nn, "partial": partial}
USUAL |= {"DataLoader": DataLoader, "Dataset": Dataset}


def wanted_names(code):
    """Return the names that a block uses and does not define."""

    def of(table):
        for symbol in table.get_symbols():
            is_top = table.get_type() == "module"
            if symbol.is_referenced() and (is_top or symbol.is_global()):
                yield symbol.get_name()
        for child in table.get_children():
            yield from of(child)

    top = symtable.symtable(code, "block", "exec")
    own = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}
    own |= {s.get_name() for s in top.get_symbols() if s.is_namespace()}
    return set(of(top)) - own - set(dir(builtins))


def found(name):
    """Return what a name means that a page uses, or None if a reader must bring it."""
    if name in BROUGHT:
        return BROUGHT[name]()
    if name in USUAL:
        return USUAL[name]
    if name in coseg_lightning.__all__:
        return getattr(coseg_lightning, name)
    return getattr(equations, name, None)


def foreign_modules(code):
    """Return the modules that a block imports and that the tests do not install."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return {name for name in names if importlib.util.find_spec(name.partition(".")[0]) is None}


def tiny(code):
    """Return the code with one epoch and a small network."""
    code = re.sub(r"max_epochs=\d+", "max_epochs=1", code).replace('"unet"', '"unet_classic"')
    code = re.sub(r'encoder_name="\w+"', "base_channels=2", code)
    return re.sub(r'"encoder_name": "\w+"', '"base_channels": 2', code)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_compiles_and_its_imports_exist(block):
    compile(block.text, str(block), "exec")
    foreign = foreign_modules(block.text)
    for node in ast.parse(block.text).body:
        is_import = isinstance(node, ast.Import | ast.ImportFrom)
        if is_import and not any(name in ast.unparse(node) for name in foreign):
            exec(compile(ast.unparse(node), str(block), "exec"), {})


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace, left = {"__name__": name_of(page)}, []
    for block in blocks(page, "python", "py"):
        foreign = foreign_modules(block.text)
        missing = {name for name in wanted_names(block.text) if name not in namespace}
        ready = {name: found(name) for name in sorted(missing)} if not foreign else {}
        brought = foreign or {name for name, value in ready.items() if value is None}
        if brought:
            left.append(f"{block} needs {', '.join(sorted(brought))}")
            continue
        exec(compile(tiny(block.text), str(block), "exec"), namespace | ready, namespace)
    if left and len(left) == len(blocks(page, "python", "py")):
        pytest.skip(f"a reader brings what is used here: {'; '.join(left)}")
