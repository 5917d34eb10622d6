"""The table of a sweep."""

import io
import json
import shutil

import pytest
import yaml

from coseg_lightning.errors import InputError
from coseg_lightning.report.sweep import sweep_table
from support import ROOT, command

pytestmark = pytest.mark.drawn

TASK = ["trainer.max_epochs=2", "method=coseg,supervised", "noise=type1,none", "nol=0.1,0.5"]


def sweep(folder, dice, task=(*TASK, "seed=0,1")):
    """What a multirun leaves; `dice(job)` is a figure, None for one that has not ended, or False.

    False stands for a job that has not even begun.
    """
    (folder / "multirun.yaml").write_text(
        yaml.safe_dump({"hydra": {"overrides": {"task": [*task]}}})
    )
    keys = [one.split("=")[0] for one in task]
    jobs = [{}]
    for one in task:
        key, _, values = one.partition("=")
        jobs = [{**job, key: value} for job in jobs for value in values.split(",")]
    for n, job in enumerate(jobs):
        score = dice(job)
        if score is False:
            continue
        job_folder = folder / str(n)
        (job_folder / ".hydra").mkdir(parents=True)
        overrides = [f"{key}={job[key]}" for key in keys]
        (job_folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
        if score is None:
            continue
        noise = {"level": float(job["nol"]), "label_dice": None}
        if job["noise"] != "none":
            noise[job["noise"]] = {"_target_": "coseg_lightning.noise.BoundaryNoise"}
        config = {"method": {"name": job["method"]}, "noise": noise, "nol": float(job["nol"])}
        config["seed"] = int(job["seed"])
        if "told" in job:
            config["nol"] = job["told"]
        summary = {"config": config, "test": {"dice": score, "accuracy": 0.5}}
        (job_folder / "summary.json").write_text(json.dumps(summary))


def by_job(job):
    base = {"coseg": 0.9, "supervised": 0.8}[job["method"]] if job["noise"] != "none" else 0.95
    return base - 0.1 * (job["nol"] == "0.5") * (job["noise"] != "none") + 0.01 * int(job["seed"])


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("optimizer.lr=1e-3", "optimizer.lr=0.001"),
        ("data.root=d", "data.root=d/"),
        ("+model.in_channels=${data.in_channels}", "+model.in_channels=$\\{data.in_channels\\}"),
        ("rehearse=false", "rehearse=False"),
        ("data.root='a b'", "data.root='a b'"),
        ("data.unit=", "data.unit=''"),
    ],
)
def test_a_value_in_another_spelling_is_no_other_run(tmp_path, given, written):
    sweep(tmp_path, by_job, (*TASK, "seed=0", given))
    for path in tmp_path.rglob("overrides.yaml"):  # as Hydra writes them for each job
        overrides = [one for one in yaml.safe_load(path.read_text()) if not one.startswith(given)]
        path.write_text(yaml.safe_dump([*overrides, written]))
    assert not sweep_table(tmp_path).missing


def test_means_deviations_and_gaps(tmp_path):
    sweep(tmp_path, by_job)
    table = sweep_table(tmp_path)
    assert list(table.cells) == ["coseg", "coseg nol=0.1", "coseg nol=0.5", "supervised"]
    assert table.columns == [("none", 0.0), ("type1", 0.1), ("type1", 0.5)]
    cell = table.cells["coseg"]["type1", 0.1]
    assert cell.values == pytest.approx((90, 91))
    assert cell.mean == pytest.approx(90.5)
    assert cell.deviation == pytest.approx(0.5**0.5)
    assert table.clean.values == pytest.approx((95, 96))  # the same network for every level
    assert cell.gap == pytest.approx(-5)
    assert table.cells["supervised"]["type1", 0.5].mean == pytest.approx(70.5)
    assert table.missing == []
    accuracy = sweep_table(tmp_path, metric="accuracy")
    assert accuracy.cells["coseg"]["type1", 0.1].mean == 50


def test_every_form_says_the_same(tmp_path):
    sweep(tmp_path, by_job)
    table = sweep_table(tmp_path)
    cell = "90.5 ± 0.7 (-5.0)"
    assert cell in table.written_as("text")
    assert f"| coseg | - | {cell} | 80.5 ± 0.7 (-15.0) |" in table.written_as("markdown")
    assert "90.5 $\\pm$ 0.7 (-5.0) &" in table.written_as("latex")
    assert "coseg,type1,0.1,2,90.500,0.707,-5.000" in table.written_as("csv")
    folder = table.write(tmp_path / "table")
    assert {path.name for path in folder.iterdir()} == {
        "table.csv",
        "table.md",
        "table.tex",
        "dice.png",
        "dice.svg",
    }
    panels = table.drawn().axes
    assert [panel.get_title() for panel in panels] == ["none", "type1"]


def test_a_sweep_that_still_runs_says_what_is_missing(tmp_path):
    def unfinished(job):
        if job["seed"] == "1" and job["method"] == "supervised":
            return None if job["nol"] == "0.1" else False
        return by_job(job)

    sweep(tmp_path, unfinished)
    table = sweep_table(tmp_path)
    assert table.cells["supervised"]["type1", 0.1].deviation is None
    missing = "\n".join(table.missing)
    assert (
        "This run has begun but not ended: method=supervised noise=type1 nol=0.1 seed=1. It"
        in missing
    )
    assert "2 of 16 runs have not begun:" in missing
    assert "  method=supervised noise=none nol=0.5 seed=1" in missing
    assert "max_epochs" not in missing


def test_whatever_else_was_swept_is_a_row(tmp_path):
    task = ["method=coseg", "noise=type1", "nol=0.5", "seed=0", "model=unet,fpn"]
    sweep(tmp_path, lambda job: 0.5, task)
    assert list(sweep_table(tmp_path).cells) == ["coseg model=fpn", "coseg model=unet"]


def test_settings_of_the_noise_are_rows(tmp_path):
    task = ["method=coseg", "noise=type2", "nol=0.5", "seed=0", "noise.type2.bias=3,6"]
    sweep(tmp_path, lambda job: float(job["noise.type2.bias"]) / 10, task)
    cells = sweep_table(tmp_path).cells
    assert list(cells) == ["coseg noise.type2.bias=3", "coseg noise.type2.bias=6"]
    assert cells["coseg noise.type2.bias=3"]["type2", 0.5].values == pytest.approx((30,))


@pytest.mark.parametrize(("key", "row"), [("method", "coseg"), ("noise", "coseg")])
def test_copies_of_a_file_with_the_same_name_inside_are_rows(tmp_path, key, row):
    values = {"method": "coseg", "noise": "type1"}
    task = [f"{name}={value}" for name, value in (values | {key: f"{values[key]},copy"}).items()]
    sweep(tmp_path, lambda job: 0.3 if job[key] == "copy" else 0.6, (*task, "nol=0.5", "seed=0"))
    for path in tmp_path.glob("*/summary.json"):
        path.write_text(path.read_text().replace('"copy"', f'"{values[key]}"'))
    cells = sweep_table(tmp_path).cells
    assert list(cells) == [f"{row} {key}=copy", f"{row} {key}={values[key]}"]


@pytest.mark.parametrize(
    ("hydra", "missing"),
    [
        ({"overrides": {"task": ["seed=0", "noise=glob(type*)"]}}, False),
        ({"overrides": {"task": ["seed=0", "nol=interval(0, 0.5)"]}}, False),
        (
            {
                "overrides": {"task": ["seed=0", "nol=choice(0.1,0.5)"]},
                "sweeper": {"_target_": "hydra_plugins.hydra_optuna_sweeper.OptunaSweeper"},
            },
            False,
        ),
        (
            {
                "overrides": {"task": ["seed=0,1"]},
                "sweeper": {
                    "_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
                    "params": {"seed": "7", "method": "coseg", "noise": "type1", "nol": "0.5"},
                },
            },
            True,
        ),
    ],
)
def test_jobs_that_nothing_lists_are_not_called_missing(tmp_path, hydra, missing):
    task = ["method=coseg", "noise=type1", "nol=0.5", "seed=0"]
    sweep(tmp_path, lambda job: 0.5, task)
    (tmp_path / "multirun.yaml").write_text(yaml.safe_dump({"hydra": hydra}))
    told = sweep_table(tmp_path).missing
    assert told == (["1 of 2 runs have not begun:", "  seed=1"] if missing else [])


def test_a_level_told_wrongly_is_a_row(tmp_path):
    task = ["method=coseg", "noise=type1", "nol=0.5", "seed=0", "told=auto"]
    sweep(tmp_path, lambda job: 0.5, task)
    assert list(sweep_table(tmp_path).cells) == ["coseg nol=auto"]


def test_the_gap_is_to_the_same_network(tmp_path):
    task = ["method=coseg,supervised", "noise=type1,none", "nol=0.5", "seed=0,1", "model=unet,fpn"]
    sweep(
        tmp_path,
        lambda job: {"unet": 0.9, "fpn": 0.6}[job["model"]] - (job["noise"] != "none") / 50,
        task,
    )
    table = sweep_table(tmp_path)
    assert table.clean is None  # there are two
    for row in ("coseg model=fpn", "coseg model=unet"):
        assert table.cells[row]["type1", 0.5].gap == pytest.approx(-2)
    assert "of the same kind without added noise" in table.written_as("text")


def test_a_sweep_of_which_only_the_baseline_has_ended(tmp_path):
    sweep(
        tmp_path,
        lambda job: by_job(job) if job["method"] != "coseg" and job["noise"] == "none" else False,
    )
    text = sweep_table(tmp_path).written_as("text")
    assert "supervised  95.5 ± 0.7 (+0.0)" in text
    sweep_table(tmp_path).write(tmp_path / "table")


def test_without_a_test_set_there_is_no_table(tmp_path):
    sweep(tmp_path, by_job)
    for path in tmp_path.glob("*/summary.json"):
        summary = json.loads(path.read_text())
        path.write_text(json.dumps({**summary, "test": {"dice": None, "accuracy": None}}))
    with pytest.raises(InputError, match="None of the 16 runs below .* has a test dice"):
        sweep_table(tmp_path)


def test_a_review_within_a_run_is_no_run_of_the_sweep(tmp_path):
    sweep(tmp_path, by_job)
    before = sweep_table(tmp_path).written_as("csv")
    shutil.copytree(tmp_path / "0", tmp_path / "0" / "reviewed")
    (tmp_path / "0" / "reviewed" / ".hydra" / "overrides.yaml").write_text("[review=a.csv]")
    assert sweep_table(tmp_path).written_as("csv") == before


def test_a_command_that_was_stopped_in_the_folder_of_a_sweep_is_no_run(tmp_path):
    sweep(tmp_path, by_job)
    before = sweep_table(tmp_path).written_as("csv")
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("[seed=1]")
    table = sweep_table(tmp_path)
    assert table.written_as("csv") == before
    assert not table.missing


def test_names_with_special_signs(tmp_path):
    task = ["method=coseg", "noise=a_b", "nol=0.5", "seed=0", "model=x%1,y_2"]
    sweep(tmp_path, lambda job: 0.5, task)
    table = sweep_table(tmp_path)
    table.write(tmp_path / "table")
    assert "coseg model=x\\%1 & 50.0" in table.written_as("latex")
    assert "a\\_b 0.5" in table.written_as("latex")


def test_settings_are_text_and_no_formulas(tmp_path):
    roots = "${oc.env:HOME}/a|b_${seed},c"
    sweep(tmp_path, by_job, ("method=coseg", "noise=type1", "nol=0.1", f"root={roots}", "seed=0"))
    table = sweep_table(tmp_path)
    table.drawn().savefig(io.BytesIO())
    written = table.written_as("markdown").splitlines()
    assert "| coseg root=${oc.env:HOME}/a\\|b_${seed} | 90.0 |" in written


@pytest.mark.slow
def test_the_command(tmp_path):
    sweep(tmp_path, by_job)
    result = command("table", tmp_path, "format=markdown", cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert "| coseg | -" in result.stdout
    result = command("table", tmp_path, "format=word", cwd=ROOT)
    assert result.stderr.startswith("format=word must be text, csv, markdown, latex.")


def test_folders_without_runs_are_told(tmp_path):
    with pytest.raises(InputError, match="There is no folder"):
        sweep_table(tmp_path / "none")
    with pytest.raises(InputError, match="There is no run below"):
        sweep_table(tmp_path)
    sweep(tmp_path, lambda job: None)
    with pytest.raises(InputError, match=r"has ended \(16 begun\)"):
        sweep_table(tmp_path)
    with pytest.raises(InputError, match="metric=iou must be dice or accuracy"):
        sweep_table(tmp_path, metric="iou")
