"""The help of all commands. This module reads conf/ as text, and imports nothing heavy."""

import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from coseg_lightning.app.commands import COMMANDS, LOOK, TRAIN, TRY, USE, Command
from coseg_lightning.modules.recipe import PIXEL_LOSSES, SCORES, Recipe

HERE = Path(__file__).resolve().parents[1]
# An installed wheel holds conf/ inside the package; in a checkout it lies at the top.
CONF = next(p for p in (HERE / "conf", HERE.parents[1] / "conf") if p.is_dir())
WIDTH = 96
CHOICES = ("model", "data", "noise", "method", "trainer", "logger", "experiment")
# The settings of `run`, by the user's task. Their meanings come from comments in conf/ and from
# the docstring of `Recipe`.
TASKS: dict[str, tuple[str, ...]] = {
    "Your images and masks": (
        *("data", "data.root", "data.images", "data.masks", "data.classes", "data.class_names"),
        *("data.pixel_size", "data.unit"),
        *("data.in_channels", "data.bands", "data.nodata"),
        *("data.image_glob", "data.mask_glob", "data.allow_links", "data.group"),
        *("data.annotators", "data.label"),
        *("data.class_ids", "data.colours", "data.mask_threshold", "data.instances"),
        *("data.tile", "data.overlap"),
        *("on_bad_sample", "data.kinds", "data.trusted_ids", "data.clean_ids"),
        "hide_annotators",
        "data.folds",
        "nol",
    ),
    "The network": (
        *("model", "model.encoder_name", "model.encoder_weights", "model@peer_b"),
        *("data.image_size", "data.keep_shape", "data.normalization", "data.augment"),
        "data.augmentation",
    ),
    "Training": (
        *("trainer", "trainer.max_epochs", "trainer.precision", "trainer.accelerator"),
        *("trainer.devices", "data.batch_size", "data.num_workers", "data.cache"),
        *("optimizer.name", "optimizer.lr", "loss.lambda_1", "loss.lambda_2"),
        *("loss.include_background", "averaging", "final"),
        *("early_stopping", "seed"),
    ),
    "Ranking and correcting masks": (
        *("method", "method.score", "method.score_epochs", "method.selection", "method.step"),
        *("method.ramp_epochs", "method.by_class", "method.confidence", "method.warm_start"),
        *("method.retraining_loss", "method.retraining_share", "method.rounds"),
    ),
    "Experiments with noise, and comparisons": (
        *("noise", "noise.level", "noise.label_dice", "noise.masks", "baselines", "objective"),
        "experiment",
    ),
    "The run itself": (
        *("hydra.run.dir", "resume", "stages", "review", "rounds", "review_budget"),
        *("rehearse", "keep_checkpoints"),
        *("logger", "trust"),
    ),
}
NAMES = {"score": SCORES, "retraining_loss": PIXEL_LOSSES}
AUDIT = ("training", "predictions", "worst", "review")


def overview() -> str:
    """Return the list of all commands, grouped by task."""
    lines = [
        "coseg COMMAND [ARGUMENTS] [key=value ...]",
        "",
        *_wrapped(
            "Train segmentation networks on masks that you cannot trust: find the bad masks, "
            "correct them, and learn from what is right."
        ),
    ]
    for task in (TRY, TRAIN, LOOK, USE):
        lines += ["", f"{task}:"]
        for name, command in COMMANDS.items():
            if command.task == task:
                lines += _entry(f"coseg {name}", command.summary, 16)
    lines += [
        "",
        "coseg COMMAND --help shows the arguments and settings of a command.",
        "coseg --version shows the version. python -m coseg_lightning.COMMAND works too.",
        'For completion in bash or zsh: eval "$(coseg completion)"',
    ]
    return "\n".join(lines)


def help_of(name: str) -> str:
    """Return the help of one command: usage, examples, and the meaning of every setting."""
    command = COMMANDS[name]
    lines = [f"coseg {name} {_usage(command)}", "", *_wrapped(command.summary), ""]
    lines += ["Examples:"]
    for arguments, meaning in command.examples:
        lines += _entry(f"coseg {name} {arguments}".rstrip(), meaning, 52)
    if command.positional:
        lines += ["", "Arguments:"]
        for argument, meaning in command.positional.items():
            lines += _entry(argument.upper(), meaning, 16)
    for title, settings in settings_of(name).items():
        lines += ["", f"{title}:"]
        for setting, meaning in settings.items():
            lines += _entry(setting, meaning, 34)
    if command.config is not None:
        lines += ["", f"coseg {name} --help-all shows the composed configuration and Hydra's help."]
    return "\n".join(lines)


def settings_of(name: str) -> dict[str, dict[str, str]]:
    """Return `key=default` and meaning of all settings of a command, by task."""
    command = COMMANDS[name]
    if command.config is None:
        options = command.options.items()
        known = {f"{key}={str(value).lower()}": text for key, (value, text) in options}
        return {"Settings": known} if known else {}
    defaults = _comments(CONF / f"{command.config}.yaml")
    if name == "corrupt":
        keys = [key for key in defaults if key.partition(".")[0] not in ("hydra", "defaults")]
        keys = [key for key in keys if key not in command.stands_for.values()]
        return {"Settings": {"noise=type2": _choices("noise")} | _shown(keys, defaults)}
    everything = meanings() | (defaults if name == "audit" else {})
    chosen = _choices_of(CONF / f"{command.config}.yaml")
    everything |= {group: (choice, everything[group][1]) for group, choice in chosen.items()}
    tasks = TASKS
    if name == "audit":  # it corrects nothing, always trains two peers, and keeps no network
        missing = {"method", "final", "early_stopping", "data.folds"}
        missing |= {*(f"method.{key}" for key in Recipe.SETTINGS["correction"])}
        tasks = {
            title: tuple(key for key in keys if key not in missing) for title, keys in TASKS.items()
        }
    result = {title: _shown(keys, everything) for title, keys in tasks.items()}
    if name == "audit":
        result = {"This audit": _shown(AUDIT, everything)} | result
        for title in ("Experiments with noise, and comparisons", "The run itself"):
            del result[title]
    return result


def meanings() -> dict[str, tuple[str, str]]:
    """Return default and meaning of each setting of `run`, by its key."""
    result = _comments(CONF / "config.yaml")
    for group, name in (
        *(("data", "phantom"), ("data", "folder"), ("noise", "annotator"), ("noise", "type2")),
        *(("model", "unet"), ("trainer", "default")),
    ):
        found = _comments(CONF / group / f"{name}.yaml")
        result |= {f"{group}.{key}": value for key, value in found.items()}
    for group, keys in Recipe.SETTINGS.items():
        place = {"training": "", "peers": "method.", "correction": "method."}
        for key in keys:
            default = getattr(Recipe, key)
            text = _of_recipe(key)
            shown = "null" if default is None else str(default).lower()
            result[f"{place.get(group, group + '.')}{key}"] = (shown, text)
    for group in CHOICES:
        default, text = result.get(group, ("", ""))
        result[group] = (default, "; ".join(filter(None, (text, _choices(group)))))
    return result


def _shown(
    keys: "tuple[str, ...] | list[str]", known: dict[str, tuple[str, str]]
) -> dict[str, str]:
    return {f"{key}={known[key][0]}": known[key][1] for key in keys}


def _choices(group: str) -> str:
    names = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    return "one of " + ", ".join(names) if len(names) > 1 else ""


def _choices_of(path: Path) -> dict[str, str]:
    """Read the choices of groups in a file's defaults list that override those of `run`."""
    text = path.read_text(encoding="utf-8")
    return dict(re.findall(r"^  - override (\w+): (\w+)$", text, re.M))


def _comments(path: Path) -> dict[str, tuple[str, str]]:
    """Read default and comment of each commented setting of a file, by its dotted key."""
    result: dict[str, tuple[str, str]] = {}
    parents: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        found = re.match(r"( *)(?:- )?([\w@]+):(?: ([^#]*?))?(?:\s*#\s*(.*))?$", line)
        if not found:
            continue
        depth, key, value, text = len(found[1]), found[2], found[3] or "", found[4]
        parents = [parent for parent in parents if parent[0] < depth]
        names = [*(name for _, name in parents if name != "defaults"), key]
        if not value:
            parents.append((depth, key))
        if text:
            value = "" if value == "???" or "${" in value else value
            result[".".join(names)] = (value, text)
    return result


def _of_recipe(key: str) -> str:
    """Return the description of a field from the docstring of `Recipe`."""
    (_, _, text) = inspect.cleandoc(Recipe.__doc__ or "").partition(f"\n    {key}: ")
    lines: list[str] = []
    for line in text.splitlines():
        if lines and not line.startswith(" " * 8):
            break
        lines.append(line.strip())
    text = re.sub(r",? (?:see|one of) `[\w.]+`", "", " ".join(lines)).replace("`", "").rstrip(".")
    text = re.sub(r"\bNone\b", "null", text[:1].lower() + text[1:])  # as it is written in YAML
    names = NAMES.get(key)
    return text if names is None else f"{text}; one of {', '.join(names)}"


def _usage(command: Command) -> str:
    names = [name.upper() for name in command.positional]
    given = [f"[{name}]" if command.stands_for else name for name in names]
    return " ".join([*given, "[key=value ...]"])


def _entry(left: str, text: str, width: int) -> list[str]:
    """Return the lines of one entry: a name, and its text in a column beside or below it."""
    indent = " " * (width + 2)
    lines = textwrap.wrap(text, WIDTH - len(indent), break_on_hyphens=False) or [""]
    if len(left) + 2 >= width:
        return [f"  {left}", *(indent + line for line in lines if line)]
    return [f"  {left:<{width}}{lines[0]}".rstrip(), *(indent + line for line in lines[1:])]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH)


def completion() -> str:
    """Return a script for bash and zsh that completes commands, settings and files."""
    cases = []
    for name in COMMANDS:
        words = " ".join(_words(name))
        cases.append(f"    {name}) words='{words}';;")
    return "\n".join(
        [
            '# eval "$(coseg completion)" in ~/.bashrc or ~/.zshrc',
            'if [ -n "$ZSH_VERSION" ]; then autoload -U +X bashcompinit && bashcompinit; fi',
            "_coseg() {",
            "  local word=${COMP_WORDS[COMP_CWORD]} words",
            '  if [ "$COMP_CWORD" -eq 1 ]; then',
            f"    COMPREPLY=( $(compgen -W '{' '.join(COMMANDS)}' -- \"$word\") )",
            "    return",
            "  fi",
            '  case "${COMP_WORDS[1]}" in',
            *cases,
            "  esac",
            '  COMPREPLY=( $(compgen -W "$words" -- "$word") $(compgen -f -- "$word") )',
            "  compopt -o nospace 2> /dev/null",
            "}",
            "complete -F _coseg coseg",
        ]
    )


def _words(name: str) -> Iterator[str]:
    for settings in settings_of(name).values():
        for setting in settings:
            key = setting.partition("=")[0]
            yield f"{key}="
            if key in CHOICES:
                yield from (f"{key}={path.stem}" for path in (CONF / key).glob("*.yaml"))
