"""The command `coseg`, its help, its grammar, and what it leaves behind."""

import errno
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from coseg_lightning.app import command as app_command
from coseg_lightning.app.command import with_settings
from coseg_lightning.app.commands import COMMANDS
from coseg_lightning.app.given import read_ids
from coseg_lightning.app.help import CONF, TASKS, completion, help_of, meanings, overview
from coseg_lightning.app.settings import SETTINGS
from coseg_lightning.check import _command, describe
from coseg_lightning.data.finding import IMAGES, MASKS, find_folder
from coseg_lightning.errors import InputError
from coseg_lightning.files.settings import as_value, setting
from support import CLASSIC, ROOT, SHORT, command, composed, rows_of

HELP_WITHOUT_LIBRARIES = """
import sys
from coseg_lightning.__main__ import main
try:
    main()
finally:
    print("heavy:", sorted({"torch", "hydra", "omegaconf", "numpy", "yaml"} & set(sys.modules)))
"""


@pytest.mark.parametrize("arguments", [[], ["--help"], ["run", "--help"], ["predict", "-h"]])
def test_help_imports_no_library(arguments):
    result = subprocess.run(
        [sys.executable, "-c", HELP_WITHOUT_LIBRARIES, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout.splitlines()[-1] == "heavy: []", result.stderr


def test_every_command_is_listed_with_what_it_does():
    text = re.sub(r"\s+", " ", overview())
    for name, spec in COMMANDS.items():
        assert f"coseg {name} {spec.summary}" in text
        shown = re.sub(r"\s+", " ", help_of(name))
        assert spec.summary in shown
        for arguments, meaning in spec.examples:
            assert re.sub(r"\s+", " ", f"coseg {name} {arguments}".rstrip()) in shown
            assert meaning in shown


def test_every_setting_has_one_place_and_a_meaning():
    places = [key for keys in TASKS.values() for key in keys]
    assert len(places) == len(set(places))
    groups = {"optimizer", "loss", "source"}  # their parts are listed
    inner = {"name", "module", "object", "stages", "options", "pixel_loss"}  # of methods
    not_shown = {f"method.{key}" for key in inner} | {"data.source", "data.nol", "data.max_epochs"}
    wanted = {f"{group}.{key}".lstrip(".") for group, keys in SETTINGS.items() for key in keys}
    wanted -= groups | not_shown | {"peer_b"}
    assert wanted <= set(places)
    known = meanings()
    for key in places:
        assert len(known[key][1]) > 8, key
    for name in COMMANDS:
        assert all(len(line) <= 100 for line in help_of(name).splitlines())


def test_help_shows_the_defaults_of_each_command():
    """The audit and the check read a folder, and the audit trains peers by co-teaching alone."""
    assert "data=phantom" in help_of("run")
    assert "method=coseg" in help_of("run")
    for name in ("audit", "check"):
        assert "data=folder" in help_of(name)
        assert "data=phantom" not in help_of(name)
    assert "method=coseg" in help_of("check")
    audit = help_of("audit")
    assert "method.score=joint" in audit
    assert not re.search(r"  method=|method\.(confidence|rounds|warm_start)=", audit)
    assert all("None" not in help_of(name) for name in COMMANDS)


@settings(derandomize=True)
@given(st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]), min_size=1))
@example("0" * 300)
def test_any_folder_may_be_given(name):
    if name[0] in "-~+" or "=" in name:
        name = f"./{name}".replace("=", "-")
    (setting,) = with_settings([name], COMMANDS["run"])
    override = OverridesParser.create().parse_override(setting)
    assert override.key_or_group == "data.root"
    assert str(override.value()).replace("\\${", "${") == name


def test_a_folder_with_an_equals_sign_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").mkdir()
    assert with_settings(["a=b", "nol=0.2"], COMMANDS["run"]) == ["data.root='a=b'", "nol=0.2"]
    (tmp_path / "nol=0.2").mkdir()  # as a sweep may name the folders of its jobs
    assert with_settings(["nol=0.2"], COMMANDS["run"]) == ["nol=0.2"]
    assert with_settings(["./nol=0.2"], COMMANDS["run"]) == ["data.root='./nol=0.2'"]
    long = f"+optimizer.scheduler={'x' * 300}"
    assert with_settings([long], COMMANDS["run"]) == [long]


@pytest.mark.parametrize(
    ("key", "pattern"),
    [
        ("data.mask_glob", "{id}-annotated.*"),
        ("data.image_glob", "**/{id}.*"),
        ("data.mask_glob", "{annotator}/{id}.*"),
        ("data.group", r"(P\d+)_.*"),
    ],
)
def test_patterns_need_no_quotes_within_quotes(key, pattern):
    (setting,) = with_settings([f"{key}={pattern}"], COMMANDS["run"])
    override = OverridesParser.create().parse_override(setting)
    assert override.key_or_group == key
    assert str(override.value()) == pattern
    for written in (f"{key}='{pattern}'", f"{key}=null", f"{key}=auto"):
        assert with_settings([written], COMMANDS["run"]) == [written]


@pytest.mark.parametrize("written", ["~/out", '"~/out"', "'~/out'"])
def test_a_home_folder_is_found_in_any_setting(written, monkeypatch):
    monkeypatch.setenv("HOME", "/home/some body")
    for key in ("hydra.run.dir", "data.kinds"):
        (setting,) = with_settings([f"{key}={written}"], COMMANDS["run"])
        override = OverridesParser.create().parse_override(setting)
        assert (override.key_or_group, override.value()) == (key, "/home/some body/out")
    others = ["~nol", "data.root=a~b", "data.root='~/a','~/b'"]
    assert with_settings(others, COMMANDS["run"]) == others
    monkeypatch.setattr("sys.argv", ["export", "RUN", "out=~/model.onnx"])
    assert app_command.arguments("export")["out"] == "/home/some body/model.onnx"


@pytest.mark.parametrize("name", ["7", "2024_01", "1e5", "20240101_001"])
def test_names_that_look_like_numbers_stay_names(name):
    same = ("resume", "hydra.run.dir", "hydra.sweep.dir", "experiment")
    for short, key in (("masks", "data.masks"), *zip(same, same, strict=True)):
        (setting,) = with_settings([f"{short}={name}"], COMMANDS["run"])
        override = OverridesParser.create().parse_override(setting)
        assert override.key_or_group == key
        assert override.value() == name
        (setting,) = with_settings([f"{short}={name},8"], COMMANDS["run"])
        override = OverridesParser.create().parse_override(setting)
        assert list(override.sweep_string_iterator()) == [f"'{name}'", "'8'"]


def test_ids_that_look_like_numbers_stay_ids():
    ids = "data.trusted_ids=[20240101_001,1e5, 007,nan,null,a b]"
    (setting,) = with_settings([ids], COMMANDS["run"])
    value = OverridesParser.create().parse_override(setting).value()
    assert list(map(str, value)) == ["20240101_001", "1e5", "007", "nan", "null", "a b"]
    for written in ("data.clean_ids=4", "data.clean_ids=['1_0','2']", "data.clean_ids=ids.txt"):
        assert with_settings([written], COMMANDS["run"]) == [written]
    with pytest.raises(InputError, match=r"data.clean_ids holds None, which is no text; write su"):
        read_ids("data.clean_ids", OmegaConf.create([None]))


@pytest.mark.parametrize("words", [["--cfg", "job"], ["-c", "all"], ["--info", "config"], ["-i"]])
def test_words_after_options_of_hydra_are_no_folders(words):
    assert with_settings([*words, "x"], COMMANDS["run"]) == [*words, "data.root='x'"]


def test_arguments_become_settings():
    run, corrupt = COMMANDS["run"], COMMANDS["corrupt"]
    given = ["-m", "DIR", "masks=labels", "images=imgs", "nol=0.1,0.2", "--config-dir", "conf"]
    assert with_settings(given, run) == [
        *("-m", "--config-dir", "conf"),
        *("data.root='DIR'", "data.masks=labels", "data.images=imgs", "nol=0.1,0.2"),
    ]
    assert with_settings(["masks=a", "out=b"], corrupt) == ["masks=a", "out=b"]
    with pytest.raises(InputError, match="^b: the command takes DIR, and settings as key=value"):
        with_settings(["a", "b"], run)
    with pytest.raises(InputError, match="^a stands for data.root, but data.root=b is given too;"):
        with_settings(["a", "data.root=b"], run)
    assert with_settings(["a", "data.root=a"], run) == ["data.root='a'", "data.root=a"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["rum"], "There is no command coseg rum; did you mean coseg run?"),
        (["train"], "There is no command coseg train; there are demo, run, "),
        (["run", "modle=unet"], "There is no setting modle, .* did you mean model?"),
        (["run", "trainer.gradient_clip=1"], "arguments of Lightning's Trainer need a plus"),
        (["predict", "run"], "run was given, but coseg predict takes RUN IMAGES OUT; see --help."),
        (["predict", "a", "b", "c", "flip=true"], "flip=true: there is no such setting; did you"),
        (["export", "--format", "onnx"], "--format: there is no such option; settings are written"),
        (["run", "logger=null"], "There is no logger 'null'; take one of none, tensorboard, wan"),
        (["run", "nol=7", "model@peer_b=null", "experiment=null"], "nol=7 must be a number"),
        (["run", "nol=7"], "nol=7 must be a number of at least 0"),
        (["run", "nowhere"], "data.root=.*nowhere: there is no such folder"),
        (["audit", "nowhere"], "data.root=.*nowhere: there is no such folder"),
        (
            ["run", "nowhere", "hydra.job.chdir=true"],
            r"data.root=[^:]*(?<!-\d\d)/nowhere: there is no",
        ),
        (["run", "nol=7", "hydra/job_logging=stdout"], "nol=7 must be a number of at least 0"),
        (["run", "resume=true"], "resume=true must name a file or a folder; if it is called so,"),
        (["run", "review=null", "resume=1.5", "data.root=true"], "data.root=true must name a file"),
        (["run", "hydra.run.dir="], "hydra.run.dir= is empty, perhaps since a variable of the"),
        (["run", ""], "An argument is empty, perhaps since a variable of the shell is not set"),
        (["predict", "a", "", "c"], "An argument is empty, perhaps since a variable of the shell"),
        (["run", "hydra.sweep.dir=a"], "hydra.sweep.dir=a would have no effect without a sweep"),
        (["run", "hydra/launcher=joblib"], "hydra/launcher=joblib would have no effect without a"),
        (["run", "nol=0,3"], "nol=0,3 has a comma, which stands for several runs; add -m to run"),
        (["run", "data.source.val=-1"], "val=-1 must be a whole number of at least 0"),
        (["run", "data.source.side=8.5"], "side=8.5 must be a whole number of at least 1"),
    ],
)
def test_a_refused_command_says_one_sentence_and_leaves_nothing(tmp_path, arguments, sentence):
    result = command("__main__", *arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert re.search(sentence, result.stderr), result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_own_files_that_the_package_hides_are_told(tmp_path):
    own = tmp_path / "conf"
    shutil.copytree(CONF / "method", own / "method")  # equal files are no trouble
    (own / "method" / "coseg.yaml").write_text("name: coseg\nconfidence: 0.99\n")
    result = command("__main__", "run", "--config-dir", own, "nol=7", "seed=1", cwd=tmp_path)
    told, refused = result.stderr.splitlines()
    assert told.startswith(f"{own}/method/coseg.yaml is not read, since the package has a file met")
    assert refused.startswith("nol=7 must be")
    result = command("__main__", "run", f"--config-dir={own}", "method=gce,coseg", cwd=tmp_path)
    assert result.stderr.strip().endswith("itself; give it another name, and choose that.")


@pytest.mark.parametrize("given", [["model=fpn"], []])
def test_a_configuration_of_ones_own_without_the_packages_is_refused(tmp_path, given):
    (tmp_path / "own.yaml").write_text("nol: 0.2\ndata: {root: a}\nhydra: {output_subdir: null}\n")
    result = command("__main__", "run", "-cd", ".", "-cn", "own", *given, cwd=tmp_path)
    assert result.returncode == 1
    sentence = "The configuration own has no m[a-z]+; begin it with 'defaults: .config, _self_.'"
    assert re.match(sentence, result.stderr), result.stderr


def test_classes_of_ones_own_are_found_in_the_working_folder(tmp_path, monkeypatch):
    """As with python -m; the script `coseg` has its own folder on the path."""
    from coseg_lightning.__main__ import main

    (tmp_path / "my_own_network.py").write_text("import torch\n\nNet = torch.nn.Identity\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one != str(tmp_path)])
    monkeypatch.setattr(sys, "argv", ["coseg", "check"])
    monkeypatch.setattr("runpy.run_module", lambda *_, **__: import_module("my_own_network"))
    main()


def test_a_command_that_is_told_finds_files_of_ones_own(tmp_path, make_folder):
    root = make_folder(3)
    own = tmp_path / "conf" / "method" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("defaults: [supervised, _self_]\n")
    given = ["--config-dir", "conf", "method=mine", *CLASSIC, *SHORT, "nol=0.3"]
    result = command("check", root, *given, cwd=tmp_path)
    told = re.search("To train: coseg run (.*)", result.stdout)[1]
    assert shlex.split(told)[:3] == [str(root), f"--config-dir={tmp_path}/conf", "data=folder"]


def test_a_command_that_is_told_keeps_a_choice_of_data(monkeypatch):
    given = ["data=folder_mine", "data.root=d"]
    monkeypatch.setattr("coseg_lightning.check.task_overrides", lambda: given)
    assert _command(OmegaConf.create({"data": {"root": "d"}})) == "coseg run d data=folder_mine"


def test_names_are_printed_in_any_encoding(tmp_path, monkeypatch):
    """As on Windows, where the output of a pipe has few letters."""
    output = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "argv", ["table", str(tmp_path)])
    app_command.cli_errors(lambda: print("żółw 90.5 ± 0.7", flush=True))
    assert output.buffer.getvalue().decode("cp1252").strip() == "\\u017có\\u0142w 90.5 ± 0.7"


def test_a_working_folder_that_was_removed_is_told(tmp_path, monkeypatch):
    def gone():
        raise FileNotFoundError

    monkeypatch.setattr(Path, "cwd", gone)
    with pytest.raises(InputError, match="The working folder was removed; go into another"):
        app_command.check_working_folder()


def test_the_folder_of_a_run_is_refused_in_a_sweep(tmp_path):
    result = command("__main__", "run", "-m", "seed=1", "hydra.run.dir=a", cwd=tmp_path)
    assert result.returncode == 1
    assert "hydra.run.dir=a would have no effect in a sweep, whose jobs" in result.stderr


def test_paths_are_those_of_the_folder_that_a_command_was_given_in(tmp_path, make_folder):
    """Also if Hydra goes into the folder of the run."""
    root = make_folder(6)
    kinds = "".join(f"s{i:02d},{'ab'[i % 2]}\n" for i in range(6))
    (root.parent / "kinds.csv").write_text(f"id,kind\n{kinds}")
    settings = ["training=none", "data.kinds=kinds.csv", "hydra.run.dir=found"]
    given = [root.name, *settings, "hydra.job.chdir=true"]
    result = command("__main__", "audit", *given, cwd=root.parent)
    assert result.returncode == 0, result.stderr
    summary = json.loads((root.parent / "found" / "summary.json").read_text())
    assert summary["config"]["data"]["root"] == str(root)
    refused = command("__main__", "run", "resume=found", "hydra.job.chdir=true", cwd=root.parent)
    assert "resume=" + str(root.parent / "found") in refused.stderr
    kept = (root.parent / "found" / ".hydra" / "overrides.yaml").read_text()
    assert "training=none" in kept


def test_a_folder_hides_no_name_that_a_setting_knows(tmp_path, monkeypatch):
    """Where Hydra goes into the folder of the run; `voc` is the name of colours, too."""
    (tmp_path / "voc").mkdir()
    (tmp_path / "kinds.csv").touch()
    hydra = OmegaConf.create({"job": {"chdir": True}, "runtime": {"cwd": str(tmp_path)}})
    monkeypatch.setattr(app_command.HydraConfig, "get", lambda: hydra)
    cfg = OmegaConf.create({"data": {"root": "voc", "colours": "voc", "kinds": "kinds.csv"}})
    app_command.from_first_folder(cfg)
    found = {name: str(tmp_path / name) for name in ("voc", "kinds.csv")}
    assert cfg.data == {"root": found["voc"], "colours": "voc", "kinds": found["kinds.csv"]}


def test_a_refused_command_leaves_the_settings_of_a_run(tmp_path):
    run = tmp_path / "run"
    (run / ".hydra").mkdir(parents=True)
    (run / "run.json").write_text('{"id": "1", "config": {}}')
    (run / ".hydra" / "overrides.yaml").write_text("- seed=1\n")
    result = command("__main__", "run", "seed=2", "hydra.run.dir=run", cwd=tmp_path)
    assert "run holds another run (run.json), and nothing is ever overwritten" in result.stderr
    assert (run / ".hydra" / "overrides.yaml").read_text() == "- seed=1\n"
    assert [path.name for path in (run / ".hydra").iterdir()] == ["overrides.yaml"]


def test_no_choice_is_refused_in_a_sweep_too():
    assert app_command._no_name(["-m", "nol=0.1,0.2", "noise=type1,null"]) == ("noise", "null")
    assert app_command._no_name(["model@peer_b=mirror,null"]) == ("model", "null")
    assert app_command._no_name(["noise=type1", "seed=null", "data=folder"]) is None


def test_a_refused_command_leaves_what_others_put_there(tmp_path):
    for name in ("outputs/2026-01-01/00-00-00", "mine"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "notes.txt").write_text("mine")
    command("__main__", "run", "nol=7", "hydra.run.dir=mine", cwd=tmp_path)
    command("__main__", "run", "nol=7", cwd=tmp_path)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("**/notes.txt"))
    assert left == ["mine/notes.txt", "outputs/2026-01-01/00-00-00/notes.txt"]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("there", "name", "found"),
    [
        (["images", "masks"], "auto", "masks"),
        (["images", "masks", "labels"], "auto", "masks"),
        (["imgs", "Labels"], "auto", "Labels"),
        (["imgs", "labels", "other"], "other", "other"),
    ],
)
def test_masks_are_found_by_their_usual_names(tmp_path, there, name, found):
    for folder in there:
        (tmp_path / folder).mkdir()
    assert find_folder(tmp_path, name, MASKS, "masks") == found


@pytest.mark.parametrize(
    ("there", "name", "sentence"),
    [
        (
            ["labels", "gt"],
            "auto",
            "holds gt and labels, and each may be the folder of masks; name",
        ),
        (
            ["a", "b"],
            "auto",
            "no folder of masks with a usual name, such as masks, but a, b; name the right",
        ),
        (
            [],
            "auto",
            "but no folder at all; give the folder that holds one folder of images",
        ),
        (["masks"], "labels", "data.masks=labels: there is no such folder"),
    ],
)
def test_it_is_asked_which_folder_holds_the_masks(tmp_path, there, name, sentence):
    for folder in there:
        (tmp_path / folder).mkdir()
    with pytest.raises(InputError, match=sentence):
        find_folder(tmp_path, name, MASKS, "masks")
    assert not set(IMAGES) & set(MASKS)


@pytest.mark.slow
def test_a_reader_that_ends_early_ends_the_run_in_one_sentence(tmp_path):
    settings = ["model=unet_classic", "model.base_channels=2", "data.image_size=32"]
    settings += ["trainer.max_epochs=50", "hydra.run.dir=run", "nol=0.2", "rehearse=false"]
    process = subprocess.Popen(
        [sys.executable, "-m", "coseg_lightning.run", *settings],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "epoch 1 " not in process.stdout.readline():
        assert process.poll() is None
    process.stdout.close()
    assert process.wait(timeout=300) == 141
    said = process.stderr.read()
    assert said.startswith("Stopped, since nothing reads the output. The finished part is kept; ")
    assert f"resume={tmp_path / 'run'}" in said
    assert "Traceback" not in said
    assert "Logging error" not in said


@settings(max_examples=50)
@given(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1))
@example("my folder")
@example("prüfung")
@example("$HOME/${y}")
@example("a,b=c")
@example('it\'s "x" ${y}\\')
@example("2024_01")
@example("null")
@example("True")
@example("-inf")
def test_a_folder_that_is_told_can_be_pasted(folder):
    folder = folder if re.fullmatch(r"[\w-]+", folder, re.ASCII) else f"./{folder}"
    (word,) = shlex.split(setting("resume", folder))
    (word,) = with_settings([word], COMMANDS["run"])
    for text in (word, f"resume={as_value(folder)}"):
        value = OverridesParser.create().parse_override(text).value()
        assert OmegaConf.create({"resume": value}).resume == folder


@pytest.mark.parametrize("within", ["coseg_lightning.app.command", "coseg_lightning.__main__"])
def test_ctrl_c_ends_in_one_word(within, monkeypatch, capsys):
    def stopped():
        raise KeyboardInterrupt

    main = partial(app_command._composed, stopped)
    if within.endswith("__main__"):
        monkeypatch.setattr(f"{within}.command", stopped)
        main = import_module(within).main
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130
    assert capsys.readouterr().err == "Stopped.\n"


def test_another_broken_pipe_is_told_as_an_error(monkeypatch):
    def body(cfg):
        raise BrokenPipeError(errno.EPIPE, "the pipe of a worker")

    monkeypatch.setattr(app_command, "SHOW_TRACEBACK", True)
    with pytest.raises(BrokenPipeError, match="the pipe of a worker"):
        app_command._run_body(body, OmegaConf.create({"review": "given"}))


@pytest.mark.slow
def test_the_first_command_of_somebody_who_knows_nothing(tmp_path, make_folder):
    """`coseg run DIR`, with folders of other names, and `resume=FOLDER` alone."""
    root = make_folder()
    (root / "images").rename(root / "imgs")
    (root / "masks").rename(root / "labels")
    settings = [*SHORT, "model=unet_classic", "model.base_channels=2", "data.image_size=32"]
    result = command("__main__", "run", root, *settings, "hydra.run.dir=run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    text = result.stdout + result.stderr
    assert f"Reading images from {root / 'imgs'} and masks from {root / 'labels'}" in text
    assert "But masks_rough holds a file for each image too; these may be the masks." in text
    assert "nol is not given, so the share of bad masks is estimated (nol=auto)" in text
    assert rows_of(tmp_path / "run" / "scores.csv")

    again = command("__main__", "run", "resume=run", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "Test Dice" in again.stdout
    for path in ("summary.json", "report.html", "retraining/done.json"):
        (tmp_path / "run" / path).unlink()
    goes_on = command("__main__", "run", "resume=run", "data.num_workers=1", cwd=tmp_path)
    assert goes_on.returncode == 0, goes_on.stderr
    assert (tmp_path / "run" / "report.html").is_file()
    other = command("__main__", "run", "resume=run", "nol=0.1", cwd=tmp_path)
    assert "run holds another run, which differs in nol=0.1 (it was auto); resume" in other.stderr


@pytest.mark.slow
@pytest.mark.rehearsed
def test_check_says_what_is_there_and_writes_nothing(tmp_path, make_folder):
    """Sizes, classes, split, groups, copies, blunders, time and memory, and the command to run."""
    root = make_folder(size=12)
    for n in range(4):  # two patients, one of them with the same picture twice
        for folder in ("images", "masks"):
            source, target = root / folder / f"s{n:02}.png", root / folder / f"p1-{n}.png"
            target.write_bytes(source.read_bytes())
            (root / folder / f"s{n + 4:02}.png").rename(root / folder / f"p2-{n}.png")
    before = sorted(tmp_path.rglob("*"))
    settings = ["data.image_size=32", "trainer.max_epochs=2", *CLASSIC]
    result = command("__main__", "check", root, *settings, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    text = re.sub(r"\s+", " ", result.stdout)
    for found in (
        "Images 16, 32 x 32, grey, uint8; the networks get 3 channels",
        "Masks 16; class 1 in 16 of them",
        "Split 13 train, 3 test, drawn by seed=0",
        "Few coseg was measured with 80 training masks and more",
        "by their names, the images form 3 groups, such as 'p",
        "Twice 4 pictures exist more than once, such as p1-0, s00; remove the copies",
        "16 images: 13 train, 3 test; CPU; about",
        "GiB at most",
        f"To train: coseg run {root} data.image_size=32 trainer.max_epochs=2",
    ):
        assert found in text, result.stdout
    (group,) = re.findall(r"(data\.group=)'(.*)', or", text)
    kept = command("__main__", "check", root, *settings, "rehearse=false", "".join(group))
    assert kept.returncode == 0, kept.stderr
    assert "Groups" not in kept.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_check_counts_more_classes_than_8_bits_hold(make_folder):
    cfg = composed(
        "data=folder", f"data.root={make_folder()}", "data.classes=300", "rehearse=false"
    )
    text = "\n".join(describe(cfg))
    assert "class 1 in 8 of them" in text
    assert "class 299 in 0 of them" in text


def test_a_reader_may_close_the_pipe():
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "coseg_lightning", "run", "--help"]
    result = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (result.returncode, result.stderr) == (1, "")


def test_completion_is_a_script_that_bash_reads():
    result = subprocess.run(["bash", "-n"], input=completion(), text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    asked = f"{completion()}\nCOMP_WORDS=(coseg run model=se) COMP_CWORD=2; _coseg 2> /dev/null\n"
    asked += 'echo "${COMPREPLY[@]}"'
    result = subprocess.run(["bash"], input=asked, text=True, capture_output=True)
    assert result.stdout.split() == ["model=segformer"]


def test_the_console_script_is_declared():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'coseg = "coseg_lightning.__main__:main"' in text
    assert (CONF / "config.yaml").is_file()
