"""The site builds without a warning, loads nothing from the network, and lists every setting."""

import ast
import importlib.util
import os
import re
import subprocess
import sys

import pytest
import yaml

import coseg_lightning
from coseg_lightning.app.commands import COMMANDS
from coseg_lightning.app.help import CONF, TASKS
from pages import DOCS, hooks, name_of
from support import ROOT

IS_BUILT = all(map(importlib.util.find_spec, ("mkdocs", "material", "mkdocstrings")))
needs_mkdocs = pytest.mark.skipif(not IS_BUILT, reason="the group docs is not installed")
# What a browser loads with a page; links to other sites are only followed by a reader.
LOADED = re.compile(r"<(?:script|img|iframe|source|video)[^>]*\ssrc=\"?([^\"\s>]+)")
STYLE = re.compile(r"<link[^>]*\shref=\"?([^\"\s>]+)[^>]*>")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@needs_mkdocs
@pytest.mark.slow
def test_the_site_builds_and_needs_no_network(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) == len(list(DOCS.rglob("*.md"))) + 1  # and 404.html
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = [*LOADED.findall(text), *STYLE.findall(text)]
        assert not [url for url in loaded if re.match(r"(https?:)?//", url)], page
        assert "<!-- settings" not in text
    for style in site.rglob("*.css"):
        urls = re.findall(r"url\(([^)]*)\)", style.read_text(encoding="utf-8"))
        assert not [url for url in urls if "//" in url and "data:" not in url], style
    assert not list(site.rglob("*.py"))


@needs_mkdocs
@pytest.mark.slow
def test_the_reference_has_all_public_names(site):
    text = (site / "reference" / "python.html").read_text(encoding="utf-8")
    for name in coseg_lightning.__all__:
        assert f'id="coseg_lightning.{name}"' in text
    parts = (site / "reference" / "python-parts.html").read_text(encoding="utf-8")
    for name in coseg_lightning.noise.__all__:
        assert f'.{name}"' in parts, name


def test_the_page_of_settings_has_all_commands_and_settings():
    pytest.importorskip("griffe", reason="the group docs is not installed")
    text = hooks().settings()
    for name, command in COMMANDS.items():
        assert f"## coseg {name}\n" in text
        for option in command.options:
            assert f"| `{option}` |" in text
    for keys in TASKS.values():
        for setting in keys:
            assert f"| `{setting}` |" in text
    for setting in ("data.tile", "method.score", "noise.type2.bias", "method.options.limit"):
        assert f"| `{setting}` |" in text
    assert "| `data.source.test_share` | `0.2` |" in text
    for path in (CONF / "model").glob("*.yaml"):
        assert f"| `{path.stem}` |" in text
    rows = re.findall(
        r"^\| `[\w.@]+` \| (?:`.*`)? ?\|(.*)\|$", text.partition("## Networks")[0], re.M
    )
    assert len(rows) > 120
    assert all(meaning.strip() for meaning in rows)


def test_every_page_is_in_the_navigation():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def files(entry):
        if isinstance(entry, str):
            return [entry]
        return (
            [file for part in entry for file in files(part)]
            if isinstance(entry, list)
            else [file for part in entry.values() for file in files(part)]
        )

    listed = files(config["nav"])
    assert sorted(listed) == sorted(
        path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")
    )


def test_pages_are_no_stubs():
    texts = {path: path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md")}
    stubs = [path for path, text in texts.items() if len(text.split()) < 15 and "<!--" not in text]
    assert not list(map(name_of, stubs))


def test_named_tuples_have_attributes():
    """The builder of the site finds no signature for their `Args`, and a warning ends the build."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and "NamedTuple" in map(ast.unparse, node.bases):
                assert "Args:" not in (ast.get_docstring(node) or ""), f"{path.name}: {node.name}"
