"""The frame of all commands: Hydra composes settings; a user's mistake ends in one sentence."""

import contextlib
import difflib
import errno
import functools
import io
import logging
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    CompactHydraException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from typing_extensions import override

from coseg_lightning.app.commands import COMMANDS, Command
from coseg_lightning.app.help import CONF, help_of
from coseg_lightning.app.settings import SETTINGS, register, unknown_setting
from coseg_lightning.errors import BadSamplesError, InputError, unknown_name_message
from coseg_lightning.files.progress import is_first_process
from coseg_lightning.files.settings import quoted

FULL_ERROR = "HYDRA_FULL_ERROR"
SHOW_TRACEBACK = os.environ.get(FULL_ERROR) == "1"


def _run_dir(resume: Any, review: Any, stages: Any, default: str) -> str:
    """Return a run's output folder; a review's folder is inside the folder of the run."""
    if resume is None:
        return default
    return str(resume) if review is None and stages is None else str(Path(str(resume), "reviewed"))


def _hydra_dir(resume: Any, review: Any, stages: Any, folder: str | None = None) -> str | None:
    """Return the folder for Hydra's settings, or None to keep an earlier run's settings.

    Args:
        resume: The run to go on with, if any.
        review: The review of that run, if any.
        stages: Its stages to do again, if any.
        folder: The output folder, which may hold a run too; then this one goes on or is refused.
    """
    names = {"run.json", ".hydra"} if resume is not None else {"run.json", "summary.json"}
    place = resume if folder is None else folder  # absolute, since Hydra may have gone into it
    is_kept = place is not None and any(Path(str(place), name).exists() for name in names)
    return None if is_kept or review is not None or stages is not None else ".hydra"


def _audit_dir(review: str | None, default: str) -> str:
    """Return an audit's output folder; reviewing an audit makes no new folder."""
    return default if review is None else "."


register()
OmegaConf.register_new_resolver("coseg.audit_dir", _audit_dir, replace=True)
OmegaConf.register_new_resolver("coseg.run_dir", _run_dir, replace=True)
OmegaConf.register_new_resolver("coseg.hydra_dir", _hydra_dir, replace=True)


class Console(logging.StreamHandler[Any]):
    """Writes the log; a reader that has ended, such as `head`, ends the command."""

    @override
    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            raise
        super().handleError(record)


def command(name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Decorate a function of a composed configuration, which turns it into a command.

    With `HYDRA_FULL_ERROR=1` in the environment, every mistake shows its full traceback.

    Args:
        name: The name of the command, see `COMMANDS`.
    """
    spec = COMMANDS[name]

    def decorate(body: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @hydra.main(config_path=str(CONF), config_name=spec.config, version_base="1.3")
        @functools.wraps(body)
        def app(cfg: DictConfig) -> Any:
            return _run_body(body, cfg)

        @functools.wraps(body)
        def main() -> None:
            if {"--help", "-h"} & set(sys.argv[1:]):
                print(help_of(name))
                return
            print_any_name()
            given = ["--help" if word == "--help-all" else word for word in sys.argv[1:]]
            try:
                check_working_folder()
                check_nothing_empty(given)
                given = with_settings(given, spec)
                check_own_files(given)
            except InputError as error:
                sys.exit(str(error))
            sys.argv[1:] = with_folder(given) if name == "run" else given
            _composed(app)

        return main

    return decorate


# Options of Hydra that take the next word as their value.
TAKE_A_WORD = {"-cd", "--config-dir", "-cn", "--config-name", "-cp", "--config-path", "-p"}
TAKE_A_WORD |= {"--package", "--experimental-rerun", "-c", "--cfg"}
TAKE_A_PART = {"-i", "--info"}  # the same, but only if the next word is one of these
PARTS = {"all", "config", "defaults", "defaults-tree", "plugins", "searchpath"}
# First parts of settings' names. A folder with such a name must not hide a setting.
KNOWN = {*filter(None, SETTINGS), *SETTINGS[""], "hydra", "trainer", "noise", "logger"}
KNOWN |= {"predictions", "worst", "training", "masks", "images", "out", "split"}
SHORT = {"images": "data.images", "masks": "data.masks"}
NOTHING = {"experiment=null", "model@peer_b=null"}  # choices that may be none
# Texts with braces and parentheses, which mean something else in Hydra's grammar.
PATTERNS = {"data.image_glob", "data.mask_glob", "data.group"}
# Names, and lists of ids, of which Hydra would make something else: 202401 of 2024_01.
NAMES = {*SHORT, *SHORT.values(), "data.root", "predictions", "resume", "review", "out"}
NAMES |= {"hydra.run.dir", "hydra.sweep.dir", "experiment"}
# Without a name, these would mean the folder that one is in.
MUST_NAME = {"data.root", "predictions", "review", "out", "masks"}
MUST_NAME |= {"hydra.run.dir", "hydra.sweep.dir"}
NUMBER = r"[-+]?\d[\d_.eE+-]*"
HOME = r"(['\"]?)(~(?:/[^'\",]*)?)\1"  # which shells replace in no setting
LISTS_OF_IDS = {"data.clean_ids", "data.trusted_ids"}


def with_settings(given: Sequence[str], spec: Command) -> list[str]:
    """Rewrite positional arguments and short names as settings: `DIR` as `data.root=DIR`.

    Raises:
        InputError: If there are more positional arguments than the command takes, or one of them
            is also given as a setting.
    """
    options: list[str] = []  # argparse takes none between or after settings
    result: list[str] = []
    free = list(spec.stands_for.values())
    places: dict[str, str] = {}
    after_option = of_part = False
    for word in given:
        key, sign, value = word.partition("=")
        is_setting = re.split(r"[./@]", key)[0] in KNOWN
        if free and not is_setting and _is_there(word):  # a path may contain an equals sign
            sign = ""
        if after_option or (of_part and word in PARTS) or word.startswith("-"):
            options.append(word)
        elif word.startswith(("~", "+")):
            result.append(word)
        elif word in NOTHING:
            result.append(f"~{key}")  # Hydra refuses null, and takes this
        elif sign:
            if home := re.fullmatch(HOME, value):
                word = f"{key}={quoted(str(Path(home[2]).expanduser()))}"
            if key in PATTERNS and re.search(r"^[^'\"\[].*[{}()]|^[{(]", value):
                word = f"{key}={quoted(value)}"
            if key in NAMES and re.fullmatch(rf"{NUMBER}(,{NUMBER})*", value):  # or a sweep
                word = f"{key}={','.join(map(quoted, value.split(',')))}"
            elif key in NAMES and re.fullmatch(rf"\[{NUMBER}(,{NUMBER})*\]", value):
                word = f"{key}=[{','.join(map(quoted, value[1:-1].split(',')))}]"
            elif key in LISTS_OF_IDS and re.fullmatch(r"\[[^\[\]'\"\\${}]*\]", value):
                ids = [quoted(part.strip()) for part in value[1:-1].split(",") if part.strip()]
                word = f"{key}=[{','.join(ids)}]"
            takes_data = "data.root" in spec.stands_for.values()
            _, _, value = word.partition("=")
            result.append(f"{SHORT[key]}={value}" if takes_data and key in SHORT else word)
        elif free:
            places[free[0]] = word
            result.append(f"{free.pop(0)}={quoted(word)}")
        else:
            names = " ".join(name.upper() for name in spec.stands_for) or "no folder"
            raise InputError(
                f"{word}: the command takes {names}, and settings as key=value; --help lists them."
            )
        after_option = word in TAKE_A_WORD
        of_part = word in TAKE_A_PART
    for word in result:
        key, _, value = word.lstrip("+").partition("=")
        if key in places and value not in (places[key], quoted(places[key])):
            raise InputError(
                f"{places[key]} stands for {key}, but {word} is given too; leave one of them out."
            )
    return [*options, *result]


def check_nothing_empty(given: Sequence[str]) -> None:
    """Raise an `InputError` for empty arguments, and for folders that are given no name."""
    for word in given:
        key, sign, value = word.partition("=")
        if not word or (key in MUST_NAME and sign and value in ("", "''", '""')):
            raise InputError(
                f"{word or 'An argument'} is empty, perhaps since a variable of the shell is not "
                "set; give a name, or leave it out."
            )


def check_own_files(given: Sequence[str]) -> None:
    """Warn of files in `--config-dir` that Hydra does not read, since `conf/` has such files too.

    Raises:
        InputError: If one of them is chosen in the arguments, as in `method=coseg`.
    """
    for option, value in pairwise([*given, ""]):
        name, _, folder = option.partition("=")
        if name not in ("-cd", "--config-dir"):
            continue
        own = Path(folder or value)
        for path in sorted(CONF.rglob("*.yaml")):
            mine = own / path.relative_to(CONF)
            if not mine.is_file() or mine.read_bytes() == path.read_bytes():
                continue
            group = path.parent.relative_to(CONF).as_posix()
            sentence = (
                f"{mine} is not read, since the package has a file {group}/{path.name} itself; "
                "give it another name"
            )
            for word in given:
                key, _, chosen = word.partition("=")
                if key.partition("@")[0] == group and path.stem in chosen.split(","):
                    raise InputError(f"{sentence}, and choose that.")
            if is_first_process():
                print(f"{sentence} if you want to use it.", file=sys.stderr)


def _is_there(word: str) -> bool:
    """Whether a word of the command line is a file or folder; very long settings are not."""
    try:
        return Path(word).exists()
    except (OSError, ValueError):
        return False


def with_folder(given: Sequence[str]) -> list[str]:
    """Add `data=folder` to the arguments if `data.root` is given without a choice of data."""
    keys = [argument.lstrip("+~").partition("=")[0] for argument in given]
    others = {"data", "data._target_", "data.source._target_", "experiment"}
    others |= {"review", "stages"}  # for a finished run, whose data may have been moved
    others |= {"-cd", "--config-dir", "-cn", "--config-name", "-cp", "--config-path"}
    if "data.root" not in keys or others & set(keys):
        return list(given)
    place = keys.index("data.root")  # settings must not be separated by options
    return [*given[:place], "data=folder", *given[place:]]


def task_overrides() -> list[str]:
    """Return the settings as given to the command."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def arguments(name: str) -> dict[str, Any]:
    """Parse the arguments of a command without a configuration: `NAME ... key=value ...`.

    Args:
        name: The name of the command, see `COMMANDS`.

    Raises:
        InputError: If a key is unknown, a value has another type than the default, or there are
            too few or too many positional arguments.
    """
    spec, given = COMMANDS[name], sys.argv[1:]
    if {"--help", "-h"} & set(given):
        print(help_of(name))
        sys.exit(0)
    values = {key: default for key, (default, _) in spec.options.items()}
    words = []
    check_nothing_empty(given)
    for word in given:
        is_setting = word.partition("=")[0] in spec.options
        if is_setting or ("=" in word and not _is_there(word)):
            key, value = _read_setting(word, spec.options)
            values[key] = value
        elif word.startswith("-"):
            raise InputError(f"{word}: there is no such option; settings are written key=value.")
        else:
            words.append(word)
    if len(words) != len(spec.positional):
        names = " ".join(key.upper() for key in spec.positional)
        shown = " ".join(words) or "nothing"
        raise InputError(f"{shown} was given, but coseg {name} takes {names}; see --help.")
    return {**dict(zip(spec.positional, words, strict=True)), **values}


def _read_setting(setting: str, options: Mapping[str, tuple[Any, str]]) -> tuple[str, Any]:
    """Read one `key=value`; the value must have the type of the default."""
    key, _, text = setting.partition("=")
    if key not in options:
        near = difflib.get_close_matches(key, options, n=1)
        hint = f"did you mean {near[0]}?" if near else f"take {', '.join(options)}."
        raise InputError(f"{setting}: there is no such setting; {hint}")
    default = options[key][0]
    if not text:
        raise InputError(f"{setting} gives no value; give one, or leave the setting out.")
    if re.fullmatch(r"~(/.*)?", text):  # which not all shells replace here
        text = str(Path(text).expanduser())
    try:
        value = text if isinstance(default, str) else yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if type(value) is not type(default):
        raise InputError(f"{setting} must be a {type(default).__name__}, such as {default}.")
    return key, value


def review_paths(review: Any) -> list[str]:
    """Return the paths in a setting `review`: one path, or `[A,B]` for several people.

    Args:
        review: The setting, as composed by Hydra or as text.

    Raises:
        InputError: If it names no path.
    """
    if isinstance(review, str) and review.startswith("[") and review.endswith("]"):
        review = yaml.safe_load(review)
    paths = [str(review)] if isinstance(review, str | Path) else [str(path) for path in review]
    if not all(paths) or not paths:
        raise InputError("review= names no file; give the review that report.html saved.")
    return paths


def cli_errors(body: Callable[[], None]) -> None:
    """Run a command without a configuration; a user's mistake ends in one sentence."""
    print_any_name()
    try:
        body()
    except KeyboardInterrupt:
        interrupted()
    except (InputError, OSError) as error:
        message = one_line(error) if isinstance(error, InputError) else _trouble(error)
        if message is None or SHOW_TRACEBACK:
            raise
        sys.exit(message)


def print_any_name() -> None:
    """Let the output show names that its encoding lacks, as on Windows, by their numbers."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def check_working_folder() -> None:
    """Raise an `InputError` if the working folder was removed, in which Hydra cannot start."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise InputError("The working folder was removed; go into another one (cd).") from None


def interrupted() -> NoReturn:
    """End a command that was interrupted by Ctrl-C, as if SIGINT had ended it."""
    print("Stopped.", file=sys.stderr)
    sys.exit(128 + signal.SIGINT)


def _composed(app: Callable[[], Any]) -> None:
    """Start the app; an error in composing ends in one sentence and exit status 1."""
    if SHOW_TRACEBACK:
        app()
        return
    os.environ[FULL_ERROR] = "1"  # makes Hydra raise its errors here; `_run_body` unsets it
    try:
        app()
    except KeyboardInterrupt:
        interrupted()
    except MissingConfigException as error:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        sys.exit(unknown_name_message(group, name, list(error.options or [])))
    except OverrideParseException as error:
        sys.exit(
            f"{error.override} cannot be understood; quote a value with spaces or special "
            "characters twice, as in 'data.root=\"my folder\"'."
        )
    except HydraException as error:
        unknown = re.search(r"Could not override '([^']+)'", str(error))
        if unknown and unknown[1] in SETTINGS[""] and (own := _config_name(sys.argv[1:])):
            sys.exit(str(_without_package(own, unknown[1])))
        several = re.search(r"Ambiguous value for argument '(([^=]+)=.*)'", str(error))
        if several:
            sys.exit(
                f"{several[1]} has a comma, which stands for several runs; add -m to run them all, "
                f"write a list as {several[2]}=[...], and decimals with a point."
            )
        sys.exit(str(unknown_setting(unknown[1])) if unknown else one_line(error))
    except ValueError as error:  # Hydra does not say of which group
        choice = _no_name(sys.argv[1:]) if "Config group override must" in str(error) else None
        if choice is None:
            raise
        group, value = choice
        known = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        sys.exit(unknown_name_message(group, value, known))
    except OSError as error:  # for example a read-only folder, before the command itself starts
        message = _trouble(error)
        if message is None:
            raise
        sys.exit(message)


def _config_name(words: Sequence[str]) -> str | None:
    """Return the name of a configuration of somebody's own, if one is given."""
    for option, value in pairwise([*words, ""]):
        name, _, own = option.partition("=")
        if name in ("-cn", "--config-name"):
            return own or value
    return None


def _without_package(config: str, missing: str) -> InputError:
    return InputError(
        f"The configuration {config} has no {missing}; begin it with 'defaults: [config, _self_]', "
        "and set what is to differ from the package's own."
    )


def _no_name(words: Sequence[str]) -> tuple[str, str] | None:
    """Return the first group of conf/ that is set to something else than a file's name."""
    for word in words:
        key, _, values = word.partition("=")
        group = key.partition("@")[0]
        for value in values.split(",") if (CONF / group).is_dir() else ():
            if re.fullmatch(rf"null|true|false|{NUMBER}", value, re.IGNORECASE):
                return group, value
    return None


def _run_body(body: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """Run a command; a user's mistake or a machine's failure ends in one sentence.

    Returns:
        The command's result, for Hydra's sweepers.
    """
    if not SHOW_TRACEBACK:
        os.environ.pop(FULL_ERROR, None)
    try:
        if HydraConfig.initialized():
            _check_given(cfg)
        if cfg.get("review") is None:  # a review uses the settings of the reviewed run
            check_nothing_missing(cfg)
        return body(cfg)
    except SystemExit as error:
        # Lightning's exception for SIGTERM has status 0, as if the run were finished.
        if type(error).__name__ == "SIGTERMException":
            raise SystemExit(128 + signal.SIGTERM) from error
        raise
    except Exception as error:
        if isinstance(error, BrokenPipeError) and output_is_closed():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still said
            sys.exit(141)  # as if SIGPIPE had ended it
        message = explain(error)
        if message is None or SHOW_TRACEBACK:
            raise
        if HydraConfig.get().mode == RunMode.MULTIRUN:  # its other jobs continue
            raise CompactHydraException(message) from error
        _remove_if_unused(Path(HydraConfig.get().runtime.output_dir))
        sys.exit(message)


def _check_given(cfg: DictConfig) -> None:
    """Raise an `InputError` for settings that Hydra takes, but no command can obey."""
    check_has_effect()
    missing = {"data", "model", "method", "trainer"} - cfg.keys()
    if missing and "out" not in cfg:  # that is `coseg corrupt`, which trains nothing
        raise _without_package(str(HydraConfig.get().job.config_name), min(missing))
    check_paths(cfg)
    from_first_folder(cfg)


def check_has_effect() -> None:
    """Raise an `InputError` for settings of a sweep without one, or of a run in a sweep."""
    is_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    given = HydraConfig.get().overrides.hydra
    choices = [word for word in task_overrides() if word.lstrip("+").startswith("hydra/")]
    for word in (*given, *choices):
        key, _, value = word.lstrip("+").partition("=")
        if (
            is_sweep
            and key == "hydra.run.dir"
            and not any("hydra.run.dir}" in one for one in given)
        ):
            raise InputError(
                f"{word} would have no effect in a sweep, whose jobs have folders of their own; "
                f"give hydra.sweep.dir={value}."
            )
        if not is_sweep and re.match(r"hydra[./](sweep|sweeper|launcher)\b", key):
            raise InputError(
                f"{word} would have no effect without a sweep; add -m for one, or leave it out."
            )


# Settings that name a file or folder, of which some may also have another meaning.
FOLDERS = ("data.root", "data.cache", "resume", "predictions", "masks", "out", "review")
FILES = (
    *("data.annotators", "data.trusted_ids", "data.clean_ids", "data.kinds", "data.colours"),
    *("data.augmentation", "model.encoder_weights", "peer_b.encoder_weights", "split"),
)


def check_paths(cfg: DictConfig) -> None:
    """Raise an `InputError` for folders that are no text, such as one called `true`."""
    for key in FOLDERS:
        value = OmegaConf.select(cfg, key, throw_on_missing=False)
        if key == "data.cache" or isinstance(value, str | None) or OmegaConf.is_config(value):
            continue
        raise InputError(
            f"{key}={str(value).lower()} must name a file or a folder; if it is called so, write "
            f"it in two pairs of quotes, as in '{key}=\"{str(value).lower()}\"'."
        )


def from_first_folder(cfg: DictConfig) -> None:
    """Make paths absolute if Hydra has gone into the run's folder (`hydra.job.chdir=true`)."""
    if not HydraConfig.get().job.chdir:
        return
    first = Path(HydraConfig.get().runtime.cwd)

    def found(key: str, value: Any) -> Any:
        if not isinstance(value, str) or not value or value.startswith("~"):
            return value
        path = first / value
        return str(path) if key in FOLDERS or path.is_file() else value  # or a name, such as voc

    for key in (*FOLDERS, *FILES):
        value = OmegaConf.select(cfg, key, throw_on_missing=False)
        if OmegaConf.is_list(value) and key == "review":
            OmegaConf.update(cfg, key, [found(key, one) for one in value])
        elif found(key, value) != value:
            OmegaConf.update(cfg, key, found(key, value))


def output_is_closed() -> bool:
    """Whether the reader of the output, such as `head`, has ended, as far as the system tells."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no file, or no `poll`
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    return False


def _remove_if_unused(folder: Path) -> None:
    """Remove Hydra's files of a refused command, and its folder if this holds nothing else.

    The folder of a sweep that held them would pass for a run, of which its jobs are parts.
    """
    hydra_folder, log_file = folder / ".hydra", folder / f"{HydraConfig.get().job.name}.log"
    first = Path(HydraConfig.get().runtime.cwd)  # Hydra may have gone into the folder
    if not folder.is_dir() or folder.resolve() == first.resolve() or not is_first_process():
        return
    overrides = hydra_folder / "overrides.yaml"
    if overrides.is_file() and OmegaConf.load(overrides) != HydraConfig.get().overrides.task:
        return  # another command's
    if any((folder / name).exists() for name in ("run.json", "summary.json")):
        return
    holds_others = bool(set(folder.iterdir()) - {hydra_folder, log_file})
    if not holds_others:
        log_file.unlink(missing_ok=True)
    for name in ("config.yaml", "hydra.yaml", "overrides.yaml"):
        (hydra_folder / name).unlink(missing_ok=True)
    empty = [hydra_folder] if holds_others else [hydra_folder, folder]
    if not holds_others and folder.parent.parent.name in ("outputs", "audits"):  # FOLDER/DATE/TIME
        empty += [folder.parent, folder.parent.parent]
    with contextlib.suppress(OSError):  # another run is in the same folder
        for path in empty:
            if path.exists():
                path.rmdir()


def explain(error: Exception) -> str | None:
    """Explain an expected error in one sentence; return None for any other error."""
    kinds: tuple[type[Exception], ...] = (
        InputError,
        *_lightnings_errors(),
        OmegaConfBaseException,
        InstantiationException,
    )
    for kind in kinds:
        cause = first_cause(error, kind)
        if cause is not None:
            return one_line(cause)
    return _trouble(error)


def _lightnings_errors() -> tuple[type[Exception], ...]:
    """Return Lightning's error about settings; nothing if Lightning is not imported.

    If it is not imported, it cannot have raised the error. Importing it would delay the message
    by ten seconds.
    """
    if "pytorch_lightning" not in sys.modules:
        return ()
    from pytorch_lightning.utilities.exceptions import (  # type: ignore[attr-defined]
        MisconfigurationException,
    )

    return (MisconfigurationException,)


TROUBLES = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "your disk quota is used up; free some space",
    errno.EFBIG: "the file would be larger than allowed; raise the limit (ulimit -f)",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.EACCES: "you have no permission to read or write it; choose another folder",
    errno.EPERM: "you have no permission to do that; choose another folder",
    errno.EEXIST: "there is a file of this name in place of a folder; choose another folder",
    errno.ENAMETOOLONG: "this name is too long; choose a shorter one",
    errno.ENOTDIR: "part of this path is a file, not a folder; choose another folder",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
}


def _trouble(error: BaseException) -> str | None:
    """Explain a machine's failure in one sentence; return None for any other error."""
    cause = first_cause(error, OSError)
    if isinstance(cause, OSError) and cause.errno in TROUBLES:
        subject = cause.filename or "A file could not be written"
        return f"{subject}: {TROUBLES[cause.errno]} ({cause.strerror})."
    text = str(error)
    if "DataLoader worker" in text:  # a killed worker leaves no better message
        return (
            "A data loading worker died, probably because the memory was full; lower "
            f"data.num_workers, data.batch_size or data.image_size ({text.splitlines()[0]})."
        )
    if "by peer" in text and "gloo" in text:
        return "Another process of this run ended; see its message for the reason."
    # Torch's archives and safetensors write without Python's files, so they raise no OSError.
    if "PytorchStreamWriter failed" in text or "os error 28" in text or "os error 27" in text:
        return f"A file could not be written: {TROUBLES[errno.ENOSPC]} ({text.splitlines()[0]})."
    return None


def check_nothing_missing(cfg: DictConfig) -> None:
    """Raise an `InputError` if a setting has no value (`???`)."""
    missing = sorted(_missing(OmegaConf.to_container(cfg, resolve=False)))
    if missing:
        raise InputError(
            f"No value was given for {missing[0]}; add {missing[0]}=... to the command."
        )


def _missing(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _missing(value, f"{prefix}.{key}" if prefix else str(key))
    elif node == "???":
        yield prefix


def first_cause(error: BaseException | None, kind: type[Exception]) -> BaseException | None:
    """Return the first exception of a kind in an exception and its causes, or None."""
    seen: set[int] = set()
    while error is not None and not isinstance(error, kind):
        if id(error) in seen:  # causes may form a cycle
            return None
        seen.add(id(error))
        error = error.__cause__
    return error


def one_line(error: BaseException) -> str:
    """Return an error's message in one line, without Hydra's lines about configuration keys."""
    if isinstance(error, BadSamplesError):
        return str(error)
    # The message from a DataLoader's worker contains its whole traceback.
    message = str(error).rpartition(f"{InputError.__module__}.InputError: ")[2]
    lines = [line.strip() for line in message.split("\n") if line.strip()]
    return " ".join(line for line in lines if not line.startswith(("full_key:", "object_type=")))
