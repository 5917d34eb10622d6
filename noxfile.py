"""The checks of a change; `nox` runs those that must pass before it lands."""

import re
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"  # nox.project.dependency_groups
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["tests", "lint", "types", "examples", "build"]

PROJECT = nox.project.load_toml("pyproject.toml")
# Two processes of two threads each are ten times slower on two cores.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}


def group(name: str) -> list[str]:
    return list(nox.project.dependency_groups(PROJECT, name))


def run_tests(session: nox.Session, *options: str) -> None:
    """Run pytest in two processes; the tests of one file share their runs, and so a process."""
    parallel = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]  # tests/conftest.py does
    session.run("python", "-m", "pytest", *parallel, *options, *session.posargs, env=ENVIRONMENT)


def floors(dependencies: list[str]) -> list[str]:
    """Pin each `name>=floor,...` to `name==floor`."""
    pinned = []
    for dependency in dependencies:
        match = re.fullmatch(r"([\w.-]+)>=([\w.]+)(,.*)?", dependency)
        if match is None:
            raise ValueError(f"{dependency!r} in pyproject.toml must be name>=floor; give a floor")
        pinned.append(f"{match[1]}=={match[2]}")
    return pinned


@nox.session
def tests(session: nox.Session) -> None:
    session.install("-e", ".", *group("tests"))
    run_tests(session)


@nox.session
def fast(session: nox.Session) -> None:
    """Run the tests that are not marked as slow: some of every room, in about a minute."""
    session.install("-e", ".", *group("tests"))
    run_tests(session, "-m", "not slow")


@nox.session(python=["3.12", "3.13"])
def pythons(session: nox.Session) -> None:
    """Run all tests on the newer versions of Python: `nox -s pythons-3.13`."""
    session.install("-e", ".", *group("tests"))
    run_tests(session)


@nox.session(python="3.11")  # the lowest Python; not all floors have wheels for newer ones
def lowest(session: nox.Session) -> None:
    """Run all tests with the lowest version that pyproject.toml allows of each dependency."""
    constraints = Path(session.create_tmp()).resolve() / "floors.txt"
    constraints.write_text("\n".join(floors(PROJECT["project"]["dependencies"])) + "\n")
    session.install("-e", ".", *group("tests"), "-c", str(constraints))
    run_tests(session)


@nox.session
def lint(session: nox.Session) -> None:
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    session.install("-e", ".", *group("types"))
    session.run("mypy")


@nox.session
def examples(session: nox.Session) -> None:
    session.install("-e", ".", *group("examples"))
    for script in sorted(Path("examples").glob("*.py")):
        if script.stem != "oxford_pets":  # downloads 800 MB; the tests give it a few own pictures
            session.run("python", str(script.resolve()), env=ENVIRONMENT)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into site/, and fail at a warning; `-- serve` shows it meanwhile."""
    session.install(*group("docs"))
    session.run(
        "mkdocs", *(session.posargs or ["build", "--strict"]), env={"NO_MKDOCS_2_WARNING": "1"}
    )
    session.log("Open site/index.html in a browser.")


@nox.session
def build(session: nox.Session) -> None:
    """Build sdist and wheel, and run the app from the installed wheel in another folder."""
    session.install("build")
    with tempfile.TemporaryDirectory() as folder:
        session.run("python", "-m", "build", "--outdir", folder)  # the wheel from the sdist
        (wheel,) = Path(folder).glob("*.whl")
        session.install("--force-reinstall", "--no-deps", str(wheel))
        session.install(str(wheel))
        session.chdir(folder)
        settings = ["noise=type2", "trainer.max_epochs=1", "data.image_size=32"]
        settings += ["data.source.train=8", "data.source.val=2", "data.source.test=2"]
        settings += ["hydra.run.dir=run"]
        session.run("python", "-m", "coseg_lightning.run", *settings, env=ENVIRONMENT)
