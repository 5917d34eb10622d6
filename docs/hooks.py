"""What mkdocs builds from elsewhere: settings, the guide for contributors, and the notebook.

The pages also read well without it. A comment in a page marks what is put in its place:

- `<!-- settings -->`: every command and every setting, read from `conf/` and from docstrings.
- `<!-- include FILE -->`: another Markdown file of the repository.
- `<!-- notebook FILE -->`: the cells of a notebook, with the output that is saved in it.

What follows a mark up to the next heading is for readers of the plain file, and is replaced too.
Links to files outside of `docs/` become the paths of these files, which are not part of the site.
"""

import base64
import json
import os
import posixpath
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS, CONF = ROOT / "docs", ROOT / "conf"
sys.path.insert(0, str(ROOT / "src"))

from coseg_lightning.app import help as command_line  # noqa: E402
from coseg_lightning.app.commands import COMMANDS, Command  # noqa: E402

MARK = re.compile(r"<!-- (settings|include|notebook)(?: (\S+))? -->.*?(?=^#|\Z)", re.M | re.S)
# A block of code, a link whose text may hold code, or code in a sentence. Pictures are no links.
CODE_OR_LINK = re.compile(
    r"^ *(?P<fence>`{3,}|~{3,})[^\n]*\n.*?^ *(?P=fence)[ \t]*$"
    r"|(?<!!)\[(?P<text>(?:[^\[\]]|!?\[[^\]]*\])*)\]\((?P<target>[^)\s]+)\)"
    r"|(?<!`)(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)",
    re.M | re.S,
)


# How much a page counts in the search: who looks for a word wants to do something, and tables of
# benchmarks have nearly all words.
WEIGHTS = {"how-to": 2, "results": 0.3}


# What mkdocs calls


def on_config(config: Any) -> Any:
    """Name headings as GitHub does, so that a link to one works there and on the site."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put in what a page's marks ask for, and name the files that are not part of the site."""
    weight = WEIGHTS.get(page.file.src_uri.partition("/")[0])
    if weight:
        page.meta.setdefault("search", {"boost": weight})
    return page_text(markdown, page.file.src_uri)


# Pages


def page_text(markdown: str, place: str) -> str:
    """Return a page's Markdown as the site has it.

    Args:
        markdown: The text of the file.
        place: The file's path below `docs/`.
    """

    def put_in(mark: re.Match[str]) -> str:
        kind, file = mark[1], mark[2]
        if file is None:
            return settings() + "\n"
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(place), file))
        if not (ROOT / path).is_file():
            return mark[0]
        text = (ROOT / path).read_text(encoding="utf-8")
        text = cells_of(text) if kind == "notebook" else text
        text = re.sub(r"\A\s*# .*\n", "", text)  # the page has a title
        return moved_links(text, path, posixpath.join("docs", place)) + "\n"

    return without_outer_links(MARK.sub(put_in, markdown), posixpath.join("docs", place))


def without_outer_links(markdown: str, path: str) -> str:
    """Replace links to files that are not part of the site by the paths of these files.

    Args:
        markdown: The text.
        path: Where it lies in the repository; its links are relative to that.
    """

    def changed(text: str, target: str) -> str:
        target, _, anchor = target.partition("#")
        file = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        anchor = anchor and f"#{anchor}"
        if file in PAGES:
            here = posixpath.relpath(f"docs/{PAGES[file]}", posixpath.dirname(path))
            return f"[{text}]({here}{anchor})"
        if file.startswith("docs/"):
            return f"[{text}]({target}{anchor})"
        shown = f"`{file}/`" if (ROOT / file).is_dir() else f"`{file}`"
        return shown if file.endswith(text.strip("`").rstrip("/")) else f"{text} ({shown})"

    return with_links(markdown, changed)


# Files beside `docs/` that the site holds, and the pages that hold them.
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
PAGES |= {"examples/quickstart.ipynb": "quickstart.md"}


def moved_links(markdown: str, before: str, now: str) -> str:
    """Rewrite the relative links of a text that moves from one file to another."""

    def moved(text: str, target: str) -> str:
        target = posixpath.join(posixpath.dirname(before), target)
        return f"[{text}]({posixpath.relpath(target, posixpath.dirname(now) or '.')})"

    return with_links(markdown, moved)


def with_links(markdown: str, changed: Callable[[str, str], str]) -> str:
    """Replace each link to a file by what a function of its text and target returns."""

    def link(found: re.Match[str]) -> str:
        target = found["target"]
        is_file = target is not None and not re.match(r"[a-z]+:|#", target)
        return changed(found["text"], target) if is_file else found[0]

    return CODE_OR_LINK.sub(link, markdown)


def slug(text: str, separator: str = "-") -> str:
    """Return the anchor of a heading, as GitHub names it."""
    text = re.sub(r"<[^>]*>", "", text).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", separator)


def cells_of(notebook: str) -> str:
    """Return the cells of a notebook as Markdown; its pictures lie in the text itself."""
    texts = []
    for cell in json.loads(notebook)["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            texts.append(source)
        elif cell["cell_type"] == "code" and source:
            is_shell = source.startswith("!")
            texts.append(fenced(source.lstrip("!"), "sh" if is_shell else "python"))
            texts += map(output, cell["outputs"])
    return "\n\n".join(filter(None, texts))


def output(found: Mapping[str, Any]) -> str:
    """Return one output of a cell: a picture, or text."""
    data = found.get("data", {})
    if "image/png" in data:
        return picture("image/png", "".join(data["image/png"]).replace("\n", ""))
    if "image/svg+xml" in data:
        svg = "".join(data["image/svg+xml"]).encode()
        return picture("image/svg+xml", base64.b64encode(svg).decode())
    text = "".join(found.get("text", data.get("text/plain", ""))).rstrip()
    return fenced(text, "text") if text else ""


def picture(kind: str, content: str) -> str:
    """Return a picture whose content, in base64, lies in the page itself."""
    return f'<img alt="output of the cell above" src="data:{kind};base64,{content}">'


def fenced(text: str, language: str) -> str:
    """Return a block of code."""
    return f"```{language}\n{text}\n```"


# Settings


def settings() -> str:
    """Return all commands, and all that can be set, as Markdown."""
    return "\n".join([*command_list(), *map(command_section, COMMANDS), *more_settings()])


def command_list() -> Iterator[str]:
    """Return a table of all commands."""
    yield "| command | what it does |\n|---|---|"
    for name, command in COMMANDS.items():
        yield f"| [`coseg {name}`](#coseg-{name}) | {escaped(command.summary)} |"
    yield ""


def command_section(name: str) -> str:
    """Return what one command takes."""
    command = COMMANDS[name]
    usage = command_line.help_of(name).partition("\n")[0]
    lines = ["", f"## coseg {name}", "", command.summary, "", fenced(usage, "text"), ""]
    for arguments, meaning in command.examples:
        lines += [f"- `{f'coseg {name} {arguments}'.rstrip()}`: {escaped(meaning)}"]
    if command.positional:
        lines += ["", "**Arguments**", ""]
        lines += [f"- `{key.upper()}`: {text}." for key, text in positional(command)]
    of_run = command_line.settings_of("run") if name != "run" else {}
    same = []
    for title, keys in command_line.settings_of(name).items():
        own = {key: text for key, text in keys.items() if of_run.get(title, {}).get(key) != text}
        if title in of_run:
            same.append(f"[{title}](#{slug(title)})")
            title = f"{title}, where they differ"
        if own:
            rows = table({key: escaped(text) for key, text in own.items()})
            lines += ["", f"### {title}" if name == "run" else f"**{title}**", "", rows]
    others = chosen(command.config) if same else []
    if others:
        lines += ["", f"Defaults that differ from those of `coseg run`: {', '.join(others)}."]
    if same:
        lines += ["", f"It also takes these settings of `coseg run`: {', '.join(same)}."]
    return "\n".join(lines)


def chosen(config: str) -> list[str]:
    """Return what a command's configuration chooses otherwise than `coseg run`, as settings."""
    parts = yaml.safe_load((CONF / f"{config}.yaml").read_text(encoding="utf-8"))["defaults"]
    pairs = [pair for part in parts if isinstance(part, dict) for pair in part.items()]
    return [
        f"`{group.removeprefix('override ')}={choice}`"
        for group, choice in pairs
        if group.startswith("override ") and "/" not in group
    ]


def positional(command: Command) -> Iterator[tuple[str, str]]:
    """Return name and meaning of each positional argument."""
    for key, text in command.positional.items():
        setting = command.stands_for.get(key)
        yield key, f"{text}; the same as `{setting}=`" if setting else text


def table(settings: Mapping[str, str]) -> str:
    """Return a table of `key=default` and meaning, which is Markdown."""
    lines = [
        '<div class="settings" markdown>',
        "",
        "| setting | default | meaning |",
        "|---|---|---|",
    ]
    for setting, meaning in settings.items():
        key, _, default = setting.partition("=")
        shown = f"`{default}`" if default else ""
        lines.append(f"| `{key}` | {shown} | {meaning} |".replace("|  |", "| |"))
    return "\n".join([*lines, "", "</div>"])


def escaped(text: str) -> str:
    """Return a text of the command line as Markdown."""
    return re.sub(r"([|*_\[\]{}])", r"\\\1", text).replace("<", "&lt;")


def more_settings() -> Iterator[str]:
    """Return what is set of one noise model, network, method or source, from their classes."""
    yield "\n## Settings of a noise model\n"
    yield "For experiments, with `noise=NAME`. Pictures and sources: [Noise models](../noise.md).\n"
    for path in sorted((CONF / "noise").glob("*.yaml")):
        values = yaml.safe_load(path.read_text(encoding="utf-8")).get(path.stem)
        if values:
            yield from one_of("noise", path, values, f"noise.{path.stem}.")
    yield "\n## Options of a method\n"
    yield "With `method=NAME`. What each method does: [Methods](../methods/index.md).\n"
    for path in sorted((CONF / "method").glob("*.yaml")):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if values.get("options"):
            options = {"_target_": values["module"], **values["options"]}
            yield from one_of("method", path, options, "method.options.")
    yield "\n## Networks\n"
    yield "With `model=NAME`. `model.encoder_name` and `model.encoder_weights` stand under "
    yield "[The network](#the-network). The second peer's network is `model@peer_b=NAME`, and its "
    yield "settings begin with `peer_b.`\n"
    yield "| network | encoder | what to know |\n|---|---|---|"
    yield from map(network, sorted((CONF / "model").glob("*.yaml")))
    yield "\n## Settings of a source of data\n"
    yield "With `data=NAME`. Settings that `data=folder` names itself stand under "
    yield "[Your images and masks](#your-images-and-masks).\n"
    for path in sorted((CONF / "data").glob("*.yaml")):
        source = yaml.safe_load(path.read_text(encoding="utf-8"))["source"]
        yield from one_of("data", path, source, "data.source.")
    yield "\n## The paper's recipe\n"
    yield "`experiment=paper` sets these:\n"
    text = (CONF / "experiment" / "paper.yaml").read_text(encoding="utf-8")
    yield fenced("\n".join(line for line in text.splitlines() if not line.startswith("#")), "yaml")


# The classes of the networks that have settings of their own.
OWN_NETWORKS = {
    "unet_classic": "coseg_lightning.networks.classic_unet.ClassicUNet",
    "double_unet": "coseg_lightning.networks.double_unet.DoubleUNet",
}


def network(path: Path) -> str:
    """Return a row of the table of networks."""
    text = path.read_text(encoding="utf-8")
    values, comments = yaml.safe_load(text), comments_of(path)
    facts = [escaped(fact) for fact in re.findall(r"\A# (.*)", text)]
    encoder = f"`{values['encoder_name']}`" if "encoder_name" in values else ""
    if path.stem != "unet" and "encoder_name" in comments:  # unet's is what all take
        encoder += f", {comments['encoder_name']}"
    meanings = arguments_of(OWN_NETWORKS.get(path.stem, ""))
    for key in set(values) & set(meanings) - {"in_channels", "classes", *comments}:
        facts.append(f"`model.{key}={values[key]}`: {meanings[key]}")
    return f"| `{path.stem}` | {encoder} | {'; '.join(fact.rstrip('.') for fact in facts)} |"


def one_of(group: str, path: Path, values: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Return the settings of one choice of a group, with what docstring or comment say."""
    meanings = {**comments_of(path), **arguments_of(str(values["_target_"]))}
    rows = {
        f"{prefix}{key}={shown(value)}": meanings.get(key, "")
        for key, value in values.items()
        if key not in ("_target_", "name") and "${" not in str(value)
    }
    if rows:
        yield f"\n**`{group}={path.stem}`**\n\n{table(rows)}"


def shown(value: Any) -> str:
    """Return a default as it is written in a command."""
    return "null" if value is None else json.dumps(value).strip('"')


def comments_of(path: Path) -> dict[str, str]:
    """Return the comment beside each setting of a file, by its last name."""
    found = re.findall(r"^ *(\w+): [^#\n]*# (.*)$", path.read_text(encoding="utf-8"), re.M)
    return {key: as_meaning(escaped(text)) for key, text in found}


def arguments_of(target: str) -> dict[str, str]:
    """Return what the docstring of a class or function says of each argument."""
    if not target.startswith("coseg_lightning."):
        return {}
    from griffe import DocstringSectionKind

    item = package()[target.partition(".")[2]]
    sections = item.docstring.parse("google", warnings=False) if item.docstring else []
    found = [
        section.value for section in sections if section.kind is DocstringSectionKind.parameters
    ]
    texts = {argument.name: argument.description for section in found for argument in section}
    return {name: as_meaning(text) for name, text in texts.items()}


def as_meaning(text: str) -> str:
    """Return a sentence as the meanings of settings are written, in one line of a table."""
    text = " ".join(text.split()).rstrip(".").replace("|", "\\|")
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


@cache
def package() -> Any:
    """Return the package as griffe reads it, without importing it."""
    import griffe  # only the page of settings needs it

    return griffe.load("coseg_lightning", search_paths=[ROOT / "src"])


if __name__ == "__main__":  # what the page of settings holds
    sys.stdout.write(settings() + os.linesep)
