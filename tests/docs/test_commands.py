"""Every command line of README and docs names what there is, and the fast ones are run."""

import csv
import inspect
import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from pytorch_lightning import Trainer

from coseg_lightning.app.command import arguments, with_folder, with_settings
from coseg_lightning.app.commands import COMMANDS
from coseg_lightning.app.help import CONF
from coseg_lightning.app.settings import SETTINGS
from pages import MANUAL, all_calls, inline_code
from support import CLASSIC, PHANTOM, ROOT, SHORT, Squares, command

OURS = [call for call in all_calls() if call.command is not None]
DIFFERENT = {(call.command, call.arguments, call.folder): call for call in reversed(OURS)}.values()
OTHERS = [call for call in all_calls() if call.command is None]
# Plugins of Hydra that the tests do not install, and what only the plugin knows.
PLUGINS = ("hydra/launcher", "hydra/sweeper", "hydra.launcher", "hydra.sweeper", "hydra.sweep.")
HELP = {"--help", "-h", "--help-all"}


def is_placeholder(word):
    """Whether a word stands for something: `NAME`, `...`, `[key=value ...]`."""
    return bool(re.fullmatch(r"[A-Z_]+|\[?key=value|\.\.\.\]?|", word))


def overrides(call):
    """Return the arguments of a composed command as settings, one of each sweep."""
    given, options = [], []
    words = list(call.arguments)
    while words:
        word = words.pop(0)
        if word in ("--config-dir", "--config-name"):
            options.append(words.pop(0))
        elif word not in ("-m", "--multirun", *HELP) and not word.startswith(PLUGINS):
            given.append(word)
    given = with_settings(given, COMMANDS[call.command])
    keys = {word.partition("=")[0] for word in given}
    if not call.block.language and not keys & {"data", "data.root", "resume", "noise"}:
        given.insert(0, "data.root=DIR")  # a sentence may leave it out
    given = with_folder(given) if call.command == "run" else given
    result = []
    for word in given:
        key, _, value = word.partition("=")
        choices = sorted(path.stem for path in (CONF / key).glob("*.yaml"))
        if choices and is_placeholder(value):
            value = choices[0]
        parsed = OverridesParser.create().parse_override(f"{key}={value}")
        if parsed.is_choice_sweep():
            value = next(iter(parsed.sweep_string_iterator()))
        elif parsed.is_sweep_override():
            value = "0"
        result.append(f"{key}={value}")
    folders = [ROOT / call.folder / folder for folder in options]
    if any(not folder.is_dir() for folder in folders):  # the reader's own, with choices of his own
        result = [word for word in result if not (CONF / word.partition("=")[0]).is_dir()]
    elif folders:
        result.append(f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in folders)}]")
    return result


@pytest.mark.parametrize("call", DIFFERENT, ids=str)
def test_every_command_line_names_what_there_is(call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    name = call.command
    if is_placeholder(name) or name in ("--help", "--version", "completion"):
        return
    assert name in COMMANDS
    if HELP & set(call.arguments) or not call.arguments:  # a command's name in a sentence
        return
    if COMMANDS[name].config is None:
        words = [word for word in call.arguments if not is_placeholder(word) or word.isupper()]
        monkeypatch.setattr(sys, "argv", [name, *words])
        arguments(name)
    else:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            compose(COMMANDS[name].config, overrides=overrides(call), return_hydra_config=True)


def flattened(node, prefix):
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{key}"
        yield from flattened(value, f"{prefix}{key}.")


def known_settings():
    known = {f"{group}.{key}".lstrip(".") for group, keys in SETTINGS.items() for key in keys}
    for path in CONF.rglob("*.yaml"):
        folder = path.parent.name if path.parent != CONF else ""
        node = yaml.safe_load(path.read_text(encoding="utf-8"))
        known |= set(flattened(node, f"{folder}." if folder else ""))
    known |= {f"trainer.{name}" for name in inspect.signature(Trainer).parameters}
    return known | {key for spec in COMMANDS.values() for key in spec.options}


@pytest.mark.parametrize("page", MANUAL, ids=lambda page: page.name)
def test_every_setting_in_a_sentence_exists(page):
    """Settings of these groups; others are arguments of whatever class is chosen."""
    known, wrong = known_settings(), []
    for code in inline_code(page):
        for word in code.text.split():
            found = re.fullmatch(r"\+*((data|method|noise|trainer)\.[a-z_.]+[a-z_])(=.*)?", word)
            if word.startswith("trainer.") and "=" not in word:
                continue  # an attribute of Lightning's trainer
            if found and not found[1].startswith(("method.options.", "data._target_")):
                wrong += [f"{code}: {word}"] if found[1] not in known else []
    assert not wrong


# Other programs


def sessions():
    return set(re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(), re.M))


@pytest.mark.parametrize("call", OTHERS, ids=str)
def test_scripts_sessions_and_extras_exist(call):
    words = list(call.words)
    own = words[: words.index("--")] if "--" in words else words
    if "-s" in own and own[0].endswith("nox"):
        asked = [word.partition("-")[0] for word in own[own.index("-s") + 1 :]]
        assert asked
        assert set(asked) <= sessions()
    scripts = words[1:2] if Path(words[0]).name.startswith("python") else []
    for script in (word for word in scripts if word.endswith(".py")):
        source = (ROOT / call.folder / script).read_text(encoding="utf-8")
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert not [option for option in options if f'"{option}"' not in source]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extras in re.findall(r"(?:coseg-lightning|^\.)\[([\w,]+)\]", "\n".join(words), re.M):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])


# Run them


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Make a folder that holds what the documented commands are given, under the same names."""
    place = tmp_path_factory.mktemp("workspace")
    squares = Squares(18)
    for kind in ("DIR/images", "DIR/masks", "IMAGES"):
        (place / kind).mkdir(parents=True)
    from PIL import Image

    for n, sample_id in enumerate(squares.ids):
        Image.fromarray(squares.image(n)).save(place / "DIR" / "images" / f"{sample_id}.png")
        Image.fromarray(squares.mask(n)).save(place / "DIR" / "masks" / f"{sample_id}.png")
    for path in sorted((place / "DIR" / "images").iterdir())[:2]:
        shutil.copy(path, place / "IMAGES")
    tiny = [*CLASSIC, *SHORT, "data.in_channels=1", "data.batch_size=4"]
    done = command("run", "DIR", "nol=0.3", *tiny, "hydra.run.dir=RUN", cwd=place)
    assert done.returncode == 0, done.stderr
    with (place / "RUN" / "scores.csv").open() as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    decisions = [*(f"{name},ok" for name in ids[:7]), *(f"{name},redraw" for name in ids[7:11])]
    table = "\n".join(["id,decision", *decisions])
    (place / "RUN" / "review.csv").write_text(table)
    shutil.copytree(place / "RUN", place / "SWEEP" / "0")
    return place


# What is given in place of what stands in a page.
ROLES = {"dir": "DIR", "run": "RUN", "images": "IMAGES", "masks": "DIR/masks", "folder": "SWEEP"}
ROLES |= {"out": "new", "dest": "new", "hydra.run.dir": "new"}
VALUES = {"data.root": "DIR", "root": "DIR", "resume": "RUN", "review": "RUN/review.csv"}
# Why command lines with these words or settings are not run here.
NOT_RUN = {
    "demo": "it has tests of its own",
    "-m": "a sweep is many runs; tests/test_table.py has some",
    "--config-dir": "tests/test_examples.py runs one",
    "from": "it needs the export of an annotation tool; tests/test_exchange.py has some",
}
# Settings that fit the few small masks; lines with others are composed, and not run.
FIT = {"nol", "noise", "seed", "data", "data.root", "model", "training", "worst", "split"}
FIT |= {"masks", "out", "hydra.run.dir"}
# Settings in whose place smaller ones are given.
TAKEN = {"model", "nol", "seed", "format"}
REVIEWED = {"resume", "review", "rounds"}  # the run itself has all other settings


def prepared(call):
    """Return the arguments with the names of what is there, or None if it is not run here."""
    spec, given = COMMANDS.get(call.command), list(call.arguments)
    words = [word for word in given if "=" not in word]
    pairs = [word.partition("=")[::2] for word in given if "=" in word]
    keys = {key for key, _ in pairs}
    is_whole = call.block.language and given  # a sentence may name a part of a command
    if spec is None or not is_whole or {call.command, *words, *keys} & {*NOT_RUN, *HELP}:
        return None
    if spec.config is not None and "data.root" in keys and not words:
        words, keys = ["DIR"], keys - {"data.root"}
        pairs = [pair for pair in pairs if pair[0] not in ("data.root", "data")]
    if spec.config is not None and not (keys <= FIT or keys <= REVIEWED):
        return None
    result = [ROLES[role] for role, _ in zip(spec.positional, words, strict=False)]
    for key, value in pairs:
        given_value = ROLES.get(key) or VALUES.get(key)
        if given_value is None and is_placeholder(value):
            return None
        if key not in TAKEN:
            result.append(f"{key}={given_value or value}")
    if call.command == "export":
        result.append("format=safetensors")
    if call.command in ("run", "audit", "check") and not keys & {*REVIEWED, "training"}:
        result += [*CLASSIC, *SHORT, "trainer.max_epochs=1", "data.batch_size=4", "nol=0.3"]
        if call.command == "audit":  # keeps no network
            result.remove("keep_checkpoints=true")
        result += ["data.in_channels=1"] if words else PHANTOM
    is_written = call.command == "run" or (call.command == "audit" and keys != {"review"})
    if is_written and keys != {"resume"} and "hydra.run.dir" not in keys:
        result.append("hydra.run.dir=new")
    return tuple(result)


# Of lines that are alike in this, one is run.
TO_RUN = {(call.command, prepared(call)): call for call in OURS if prepared(call) is not None}
CASES = [
    pytest.param(
        *(name, given),
        id=" ".join((name, *given))[:60],
        marks=[pytest.mark.drawn] if name in ("audit", "table") else [],
    )
    for name, given in TO_RUN
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "given"), CASES)
def test_the_fast_command_lines_run(name, given, workspace):
    done = command(name, *given, cwd=workspace)
    for path in ("new", "RUN/export", "RUN/reviewed"):
        shutil.rmtree(workspace / path, ignore_errors=True)
    assert done.returncode == 0, f"{TO_RUN[name, given]}: {done.stderr}"


def test_every_command_is_run():
    assert set(COMMANDS) - {name for name, _ in TO_RUN} <= set(NOT_RUN)
