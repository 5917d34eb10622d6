"""The house rules of the package: rooms, one-way imports, and one file for private names."""

import ast
from pathlib import Path

import pytest

import coseg_lightning

PACKAGE = Path(coseg_lightning.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
COMMANDS = {"demo", "run", "check", "audit", "corrupt", "predict", "apply", "exchange", "export"}
COMMANDS |= {"table"}
# Each room may import from those before it.
ROOMS = ("errors", "seeding", "functional", "files", "ranking", "labels", "exchanged", "noise")
ROOMS += ("data", "networks", "modules", "callbacks", "report", "runs", "methods", "app")


def name_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imports_of(path):
    """What a file imports of this package, and of others."""
    own, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            others |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            if not node.module.startswith("coseg_lightning"):
                others.add(node.module)
                continue
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                own.add(whole if whole in MODULES else node.module)
    return own, others


def room_of(name):
    return name.split(".")[1] if "." in name else ""


def test_files_at_the_root_are_commands():
    at_root = {path.stem for path in PACKAGE.glob("*.py")}
    assert at_root == {"__init__", "__main__", "errors", "seeding"} | COMMANDS
    for name in COMMANDS:
        assert '__name__ == "__main__"' in (PACKAGE / f"{name}.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_run_one_way(path):
    name = name_of(path)
    room = room_of(name)
    own, _ = imports_of(path)
    own -= {"coseg_lightning"}  # its version, which is no room
    assert not any(room_of(other) in COMMANDS for other in own)
    if room in ("", *COMMANDS) or path.name == "__main__.py":  # the public names, and commands
        return
    allowed = ROOMS[: ROOMS.index(room) + 1]
    wrong = sorted(other for other in own if room_of(other) not in allowed)
    assert not wrong, f"{name} imports {wrong}"


def test_imports_have_no_circles():
    edges = {
        name: imports_of(path)[0] - {name, "coseg_lightning"} for name, path in MODULES.items()
    }
    done: set[str] = set()
    while len(done) < len(edges):
        free = {name for name, needs in edges.items() if name not in done and needs <= done}
        assert free, f"circles among {sorted(set(edges) - done)}"
        done |= free


def test_each_room_knows_only_its_own_libraries():
    forbidden = {
        "functional": ("pytorch_lightning", "hydra", "omegaconf", "cv2", "PIL"),
        "files": ("pytorch_lightning", "hydra", "omegaconf"),
        "ranking": ("pytorch_lightning", "hydra", "omegaconf", "PIL"),  # outlines need cv2
        "labels": ("pytorch_lightning", "hydra", "omegaconf"),
        "exchanged": ("torch", "pytorch_lightning", "hydra", "omegaconf"),
        "noise": ("pytorch_lightning", "hydra", "omegaconf"),
    }
    below_app = {room: ("hydra", "omegaconf") for room in ROOMS if room != "app"} | forbidden
    for path in FILES:
        _, others = imports_of(path)
        for library in below_app.get(room_of(name_of(path)), ()):
            known = sorted(o for o in others if o == library or o.startswith(f"{library}."))
            assert not known or path.name == "jobs.py", f"{path} imports {known}"


def test_private_names_of_others_lie_in_one_file():
    """An attribute with an underscore is read of an object's own class alone."""
    for path in FILES:
        if path.name == "compat.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        own |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        own |= {n.attr for n in ast.walk(tree) if _is_of_self(n)}
        foreign = [
            f"{path.name}:{node.lineno} {ast.unparse(node)}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and node.attr.startswith("_")
            and not node.attr.startswith("__")
            and not _is_of_self(node)
            and node.attr not in own
        ]
        private_imports = [
            f"{path.name}:{node.lineno} {alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
            if alias.name.startswith("_") and not alias.name.startswith("__")
        ]
        assert not foreign + private_imports


# An attribute of another object that is meant to be set, or of a copy of one's own class.
MAY_BE_SET = {
    "trainer.should_stop",  # Lightning's way to end a fit
    "weight.grad",  # torch's way to leave a parameter out of a step
    "cfg.data.root",
    "cfg.data.annotators",
    "cfg.data.clean_ids",
    "cfg.data.kinds",
    "cfg.data.augmentation",
    "cfg.data.trusted_ids",
    "cfg.data.images",
    "cfg.data.image_size",  # that of tiles
    "cfg.data.masks",
    "cfg.data.colours",
    "cfg.data.normalization",
    "cfg.data.nodata",  # as text, if it is no finite number
    "cfg.method.retraining_loss",
    "copied.__class__",
    "copied.label_layers",
    "copied.own_train_dataloader",
    "copied.most_batches",
    "copied.sizes",
    "copied.is_set_up_anew",
    "other._datasets",
    "other._caches",
    "other.clean_ids",
    "other.excluded",
    "other.most_batches",
    "other.noise",
    "other.noise_folder",
    "other.label_layers",
    "parser.StartDoctypeDeclHandler",  # expat's way to be told of something
    "part.training",
    "module.training",
    "cfg.resume",
    "copied.has_own_masks",
    "layer.training",
}


def test_nobody_sets_attributes_on_anybody_elses_object():
    for path in FILES:
        if path.name == "compat.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        targets = [
            target
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            for target in (target.elts if isinstance(target, ast.Tuple) else [target])
        ]
        foreign = {
            ast.unparse(target)
            for target in targets
            if isinstance(target, ast.Attribute) and not _is_of_self(target)
        }
        assert foreign <= MAY_BE_SET, f"{path} sets {foreign - MAY_BE_SET}"


def _is_of_self(node):
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("self", "cls")
    )


def test_the_step_fits_on_one_screen():
    tree = ast.parse((PACKAGE / "modules" / "coseg.py").read_text(encoding="utf-8"))
    (module,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "CoSegModule")
    assert module.end_lineno - module.lineno < 300
    lines = {
        n.name: n.end_lineno - n.lineno + 1 for n in module.body if isinstance(n, ast.FunctionDef)
    }
    on_the_way = ("training_step", "learn_from_picks", "exchange", "peer_loss")
    assert sum(lines[name] for name in on_the_way) < 60
