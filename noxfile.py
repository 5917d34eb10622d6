"""What must pass before a change lands: nox -s tests lint types examples build."""

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


@nox.session
def tests(session: nox.Session) -> None:
    session.install("-e", ".", *group("tests"))
    parallel = ["-n", "2", "--dist", "loadfile"]  # two processes; a file's tests share their runs
    session.run("python", "-m", "pytest", *parallel, *session.posargs, env=ENVIRONMENT)


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
        if script.stem != "oxford_pets":  # needs 800 MB of pets; the tests give it a few of its own
            session.run("python", str(script.resolve()), env=ENVIRONMENT)


@nox.session
def build(session: nox.Session) -> None:
    """Build sdist and wheel, and run the app from the installed wheel in another folder."""
    session.install("build")
    with tempfile.TemporaryDirectory() as place:
        session.run("python", "-m", "build", "--outdir", place)  # the wheel out of the sdist
        (wheel,) = Path(place).glob("*.whl")
        session.install("--force-reinstall", "--no-deps", str(wheel))
        session.install(str(wheel))
        session.chdir(place)
        small = ["data.source.train=8", "data.source.val=2", "data.source.test=2"]
        session.run(
            "python",
            "-m",
            "coseg_lightning.run",
            "noise=type2",
            "trainer.max_epochs=1",
            "data.image_size=32",
            "hydra.run.dir=run",
            *small,
            env=ENVIRONMENT,
        )
