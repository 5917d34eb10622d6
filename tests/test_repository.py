"""What a repository needs beside its code: versions that agree, forms, and an image that builds."""

import fnmatch
import json
import re
import shlex
import tomllib

import pytest
import yaml

import coseg_lightning
from coseg_lightning.__main__ import main
from support import ROOT

pytestmark = pytest.mark.skipif(
    not (ROOT / ".github").is_dir(), reason="the files of the repository are not in the sdist"
)

FORMS = ("bug.yml", "feature.yml")
PAGES = ("SECURITY.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "CHANGELOG.md")


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_is_the_same_everywhere():
    version = coseg_lightning.__version__
    citation = yaml.safe_load(text_of("CITATION.cff"))
    newest = re.search(r"^## (\d+\.\d+\.\d+) - (\d{4}-\d{2}-\d{2})$", text_of("CHANGELOG.md"), re.M)
    assert newest is not None
    assert citation["version"] == newest[1] == version
    assert str(citation["date-released"]) == newest[2]


def test_the_changelog_has_the_sections_of_its_format():
    for part in re.split(r"^## ", text_of("CHANGELOG.md"), flags=re.M)[1:]:
        titles = re.findall(r"^### (.+)$", part, re.M)
        known = ["Highlights", "Upgrading from 0.1", "Added", "Changed", "Fixed", "Deprecated"]
        known += ["Removed", "Security"]
        assert titles == sorted(titles, key=known.index)


@pytest.mark.parametrize("name", FORMS)
def test_forms_are_as_github_reads_them(name):
    form = yaml.safe_load(text_of(f".github/ISSUE_TEMPLATE/{name}"))
    assert form.keys() >= {"name", "description", "body"}
    fields = [part for part in form["body"] if part["type"] != "markdown"]
    ids = [part["id"] for part in fields]
    assert len(ids) == len(set(ids))
    for part in form["body"]:
        assert part["type"] in ("markdown", "textarea", "input", "dropdown", "checkboxes")
        assert part["attributes"]["value" if part["type"] == "markdown" else "label"]
    assert any(part.get("validations", {}).get("required") for part in fields)


def test_a_bug_is_asked_for_what_is_needed():
    form = yaml.safe_load(text_of(".github/ISSUE_TEMPLATE/bug.yml"))
    asked = {part.get("id") for part in form["body"]}
    assert asked >= {"command", "output", "version", "run"}


@pytest.mark.parametrize("name", PAGES)
def test_links_of_pages_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text_of(name)):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), f"{name}: {target}"


@pytest.mark.parametrize("name", PAGES[:2])
def test_nobody_is_made_up_as_a_contact(name):
    assert "@" not in text_of(name)


# The image


def instructions():
    """The instructions of the Dockerfile, continued lines joined."""
    lines = [line for line in text_of("Dockerfile").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def copied():
    return [
        path for name, rest in instructions() if name == "COPY" for path in shlex.split(rest)[:-1]
    ]


def test_what_the_image_copies_exists_and_is_not_ignored():
    rules = [line for line in text_of(".dockerignore").splitlines() if line and line[0] != "#"]
    for path in copied():
        assert (ROOT / path).exists()
        ignored = False
        for rule in rules:  # the last one that fits decides
            if fnmatch.fnmatch(path, rule.removeprefix("!")):
                ignored = not rule.startswith("!")
        assert not ignored, path


def test_the_image_gets_all_that_the_package_is_built_from():
    project = tomllib.loads(text_of("pyproject.toml"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = ["pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]]
    needed += [
        *wheel["packages"],
        *wheel["force-include"],
        project["tool"]["hatch"]["version"]["path"],
    ]
    for path in needed:
        assert any(path == there or path.startswith(f"{there}/") for there in copied()), path


def test_the_image_runs_the_command_as_a_user_without_rights():
    last = dict(instructions())
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    assert json.loads(last["ENTRYPOINT"])[0] in project["scripts"]
    assert json.loads(last["CMD"]) == ["--help"]
    assert last["USER"] not in ("root", "0")
    names = [name for name, _ in instructions()]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN")


def test_the_images_python_and_torch_are_those_of_the_project():
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    (base,) = [rest for name, rest in instructions() if name == "FROM"]
    python = re.fullmatch(r"python:(3\.\d+)-slim", base)
    assert python is not None
    assert project["requires-python"].startswith(f">={python[1]},")
    floor = next(d for d in project["dependencies"] if d.startswith("torch>"))
    assert f'"{floor}"' in text_of("Dockerfile")


def test_the_default_arguments_of_the_image_show_the_help(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["coseg", *json.loads(dict(instructions())["CMD"])])
    main()
    assert "coseg COMMAND" in capsys.readouterr().out
