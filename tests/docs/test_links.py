"""Every link of README and docs leads somewhere, in the repository and on the site."""

import re
from functools import cache
from pathlib import Path

import pytest

from pages import DOCS, FENCE, INLINE, PAGES, hooks, name_of
from support import ROOT

TARGET = re.compile(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)|<(?:img|a)\s[^>]*(?:src|href)=\"([^\"]+)\"")
REFERENCE = re.compile(r"^::: (\S+)", re.M)


def targets(text):
    text = INLINE.sub("``", FENCE.sub("", text))
    return [one or other for one, other in TARGET.findall(text)]


@cache
def anchors(path):
    """Return the anchors of a page: its headings, in the file and on the site."""
    texts = [path.read_text(encoding="utf-8")]
    if DOCS in path.parents:
        texts.append(hooks().page_text(texts[0], path.relative_to(DOCS).as_posix()))
    found = set()
    for text in texts:
        plain = FENCE.sub("", text)
        for heading in re.findall(r"^#+ +(.*?) *$", plain, re.M):
            found.add(hooks().slug(re.sub(r"\[([^\]]*)\]\([^)]*\)|[*`]", r"\1", heading)))
        found |= {*REFERENCE.findall(plain), *re.findall(r"(?:\{#|id=\"|name=\")([\w.-]+)", plain)}
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    wrong = []
    for target in targets(page.read_text(encoding="utf-8")):
        if re.match(r"(https?|mailto):", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        is_there = path.exists() and ROOT in [path, *path.parents]
        if not is_there or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            wrong.append(target)
    assert not wrong


def test_files_outside_of_the_site_are_named_and_not_linked():
    def shown(text, place="how-to/page.md"):
        return hooks().page_text(text, place)

    assert shown("[run.py](../../src/coseg_lightning/run.py)") == "`src/coseg_lightning/run.py`"
    assert shown("[`examples`](../../examples) too") == "`examples/` too"
    assert (
        shown("See [the tests](../../tests/support.py).") == "See the tests (`tests/support.py`)."
    )
    assert shown("[noise](../noise.md#x)") == "[noise](../noise.md#x)"
    assert shown("[guide](../../CONTRIBUTING.md#style)") == "[guide](../contributing.md#style)"
    assert shown("[start](../README.md)", "noise.md") == "[start](index.md)"
    for same in ("[web](https://hydra.cc)", "[here](#there)", "`[a](../../b.py)`"):
        assert shown(same) == same
    block = "```python\nrow[1](../../a.py)\n```"
    assert shown(f"{block}\n[a](../../src)") == f"{block}\na (`src/`)"


def test_links_of_an_included_page_are_seen_from_there():
    text = "[methods](docs/methods/index.md) and [log](CHANGELOG.md)"
    moved = hooks().moved_links(text, "CONTRIBUTING.md", "docs/contributing.md")
    assert moved == "[methods](methods/index.md) and [log](../CHANGELOG.md)"


def test_a_heading_has_the_anchor_that_github_gives_it():
    slug = hooks().slug
    assert slug("Experiments with noise, and comparisons") == (
        "experiments-with-noise-and-comparisons"
    )
    assert slug("A -- B & `coseg run`") == "a----b--coseg-run"


def test_a_notebook_becomes_a_page():
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "Text."]},
        {"cell_type": "code", "source": "!coseg check DIR", "outputs": []},
        {
            "cell_type": "code",
            "source": "1 + 1",
            "outputs": [
                {"data": {"text/plain": "2"}},
                {"data": {"image/png": "AAAA\n", "text/plain": "<Figure>"}},
                {"text": ["a\n", "b\n"]},
            ],
        },
    ]
    page = hooks().cells_of(hooks().json.dumps({"cells": cells}))
    assert page.startswith("# Title\nText.\n\n```sh\ncoseg check DIR\n```\n\n```python\n1 + 1\n```")
    assert "```text\n2\n```" in page
    assert "```text\na\nb\n```" in page
    assert 'src="data:image/png;base64,AAAA"' in page
    assert "Figure" not in page


def test_every_picture_is_shown_somewhere():
    used = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in targets(page.read_text(encoding="utf-8"))
    }
    pictures = {
        path for kind in ("png", "jpg", "svg") for path in (DOCS / "images").rglob(f"*.{kind}")
    }
    assert pictures - used == {Path(DOCS / "images" / "logo.svg")}
