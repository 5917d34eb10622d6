"""The frame of all commands: Hydra composes, and a user's mistake ends in one sentence."""

import argparse
import errno
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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

from coseg_lightning.app.settings import register, unknown_setting
from coseg_lightning.errors import BadSamplesError, InputError, unknown_name_message

FULL_ERROR = "HYDRA_FULL_ERROR"
SHOW_TRACEBACK = os.environ.get(FULL_ERROR) == "1"
HERE = Path(__file__).resolve().parents[1]
# An installed wheel holds conf/ inside the package; in a checkout it lies at the top.
CONF = next(p for p in (HERE / "conf", HERE.parents[1] / "conf") if p.is_dir())


# The setting of commands that make what the folder of a run names.
TRUST = (False, "also import and call whatever the run names, not only well-known libraries")


def _run_dir(resume: str | None, review: str | None, stages: Any, default: str) -> str:
    """Return a run's output folder; a reviewed run's lies inside the folder of the run itself."""
    if resume is None:
        return default
    return str(resume) if review is None and stages is None else str(Path(resume) / "reviewed")


def _hydra_dir(resume: str | None, review: str | None, stages: Any) -> str | None:
    """Return the folder of Hydra's settings, or None if an earlier run's settings must stay."""
    is_resumed = resume is not None and (Path(resume) / "run.json").exists()
    return None if is_resumed or review is not None or stages is not None else ".hydra"


def _audit_dir(review: str | None, default: str) -> str:
    """Return an audit's output folder; a review of it makes no other."""
    return default if review is None else "."


register()
OmegaConf.register_new_resolver("coseg.audit_dir", _audit_dir, replace=True)
OmegaConf.register_new_resolver("coseg.run_dir", _run_dir, replace=True)
OmegaConf.register_new_resolver("coseg.hydra_dir", _hydra_dir, replace=True)


def command(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Turn a function of a composed configuration into a command.

    With `HYDRA_FULL_ERROR=1` in the environment, every mistake shows its whole traceback.

    Args:
        config_name: The primary configuration in `conf/`.
    """

    def decorate(body: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @hydra.main(config_path=str(CONF), config_name=config_name, version_base="1.3")
        @functools.wraps(body)
        def app(cfg: DictConfig) -> Any:
            return _run_body(body, cfg)

        @functools.wraps(body)
        def main() -> None:
            if config_name == "config":  # the others have a folder, or no choice of data
                sys.argv[1:] = with_folder(sys.argv[1:])
            _composed(app)

        return main

    return decorate


def with_folder(given: Sequence[str]) -> list[str]:
    """Add `data=folder` to the arguments if `data.root` is given and nothing chooses the data."""
    keys = [argument.lstrip("+~").partition("=")[0] for argument in given]
    others = {"data", "data._target_", "data.source._target_", "experiment"}
    others |= {"review", "stages"}  # of a finished run, whose data may have been moved
    others |= {"-cd", "--config-dir", "-cn", "--config-name", "-cp", "--config-path"}
    if "data.root" not in keys or others & set(keys):
        return list(given)
    place = keys.index("data.root")  # options between the settings would part them
    return [*given[:place], "data=folder", *given[place:]]


def arguments(
    description: str,
    positional: Mapping[str, str],
    options: Mapping[str, tuple[Any, str]],
) -> dict[str, Any]:
    """Parse the arguments of a command without a configuration: `NAME ... key=value ...`.

    Args:
        description: The purpose of the command, for `--help`.
        positional: The meaning of each positional argument, by its name.
        options: The default and the meaning of each key.

    Raises:
        InputError: If there is no such key, or its value has another type than the default.
    """
    parsed = vars(_parser(description, positional, options).parse_args())
    values = {key: default for key, (default, _) in options.items()}
    for setting in parsed.pop("settings", []):
        key, value = _read_setting(setting, options)
        values[key] = value
    return {**parsed, **values}


def _parser(
    description: str, positional: Mapping[str, str], options: Mapping[str, tuple[Any, str]]
) -> argparse.ArgumentParser:
    lines = [f"  {key}={str(value).lower()}  {text}" for key, (value, text) in options.items()]
    module = getattr(sys.modules["__main__"].__spec__, "name", "")
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}".removesuffix(".__main__"),
        description=description,
        epilog="\n".join(["settings:", *lines]) if lines else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, text in positional.items():
        parser.add_argument(name, metavar=name.upper(), help=text)
    if options:
        parser.add_argument("settings", metavar="key=value", nargs="*", help="see below")
    return parser


def _read_setting(setting: str, options: Mapping[str, tuple[Any, str]]) -> tuple[str, Any]:
    """Read one `key=value`, whose value must have the type of the key's default."""
    key, sign, text = setting.partition("=")
    if not sign or key not in options:
        raise InputError(f"{setting}: there is no such setting; take {', '.join(options)}.")
    default = options[key][0]
    try:
        value = text if isinstance(default, str) else yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if type(value) is not type(default):
        raise InputError(f"{setting} must be a {type(default).__name__}, such as {default}.")
    return key, value


def cli_errors(body: Callable[[], None]) -> None:
    """Run a command without a configuration; a user's mistake ends in one sentence."""
    try:
        body()
    except (InputError, OSError) as error:
        message = one_line(error) if isinstance(error, InputError) else _trouble(error)
        if message is None or SHOW_TRACEBACK:
            raise
        sys.exit(message)


def _composed(app: Callable[[], Any]) -> None:
    """Start the app; an error while composing ends in one sentence and exit status 1."""
    if SHOW_TRACEBACK:
        app()
        return
    os.environ[FULL_ERROR] = "1"  # makes Hydra raise its errors here; `_run_body` unsets it
    try:
        app()
    except MissingConfigException as error:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        sys.exit(unknown_name_message(group, name, list(error.options or [])))
    except OverrideParseException as error:
        sys.exit(
            f"{error.override} cannot be understood; quote a value that has spaces or special "
            "signs twice, as in 'data.root=\"my folder\"'."
        )
    except HydraException as error:
        unknown = re.search(r"Could not override '([^']+)'", str(error))
        sys.exit(str(unknown_setting(unknown[1])) if unknown else one_line(error))
    except OSError as error:  # such as a read-only folder, before the command's body starts
        message = _trouble(error)
        if message is None:
            raise
        sys.exit(message)


def _run_body(body: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """Run a command; a mistake of the user or a failure of the machine ends in one sentence.

    Returns:
        What the command returns, which is for Hydra's sweepers.
    """
    if not SHOW_TRACEBACK:
        os.environ.pop(FULL_ERROR, None)
    try:
        if cfg.get("review") is None:  # the settings of a review are those of what is reviewed
            check_nothing_missing(cfg)
        return body(cfg)
    except Exception as error:
        message = explain(error)
        if message is None or SHOW_TRACEBACK:
            raise
        if HydraConfig.get().mode == RunMode.MULTIRUN:  # its other jobs continue
            raise CompactHydraException(message) from error
        sys.exit(message)


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
    """Return Lightning's error about settings, or nothing if Lightning is not imported.

    Then it raised nothing, and its import would make a refusal ten seconds late.
    """
    if "pytorch_lightning" not in sys.modules:
        return ()
    from pytorch_lightning.utilities.exceptions import (  # type: ignore[attr-defined]
        MisconfigurationException,
    )

    return (MisconfigurationException,)


TROUBLES = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "your share of the disk is full; free some space",
    errno.EFBIG: "the file would be larger than is allowed; raise that limit (ulimit -f)",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.EACCES: "you may not write there, or not read it; choose another folder",
    errno.EPERM: "you may not do that; choose another folder",
    errno.ENOTDIR: "a file is in the way of a folder; choose another folder",
    errno.EMFILE: "too many files are open; raise that limit (ulimit -n)",
}


def _trouble(error: BaseException) -> str | None:
    """Explain a failure of the machine in one sentence; return None for any other error."""
    cause = first_cause(error, OSError)
    if isinstance(cause, OSError) and cause.errno in TROUBLES:
        subject = cause.filename or "A file could not be written"
        return f"{subject}: {TROUBLES[cause.errno]} ({cause.strerror})."
    text = str(error)
    if "DataLoader worker" in text:  # a killed worker leaves no more exact message
        return (
            "A data loading worker died, as one does that needs more memory than there is; lower "
            f"data.num_workers, data.batch_size or data.image_size ({text.splitlines()[0]})."
        )
    if "by peer" in text and "gloo" in text:
        return "Another process of this run ended; what it said tells why."
    # Torch's archives and safetensors write without Python's files, so they raise no OSError.
    if "PytorchStreamWriter failed" in text or "os error 28" in text or "os error 27" in text:
        return f"A file could not be written: {TROUBLES[errno.ENOSPC]} ({text.splitlines()[0]})."
    return None


def check_nothing_missing(cfg: DictConfig) -> None:
    """Raise an `InputError` if a key has no value, `???`."""
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
    """Return the first exception of a kind among an exception and its causes, or None."""
    seen: set[int] = set()
    while error is not None and not isinstance(error, kind):
        if id(error) in seen:  # causes may go round in a circle
            return None
        seen.add(id(error))
        error = error.__cause__
    return error


def one_line(error: BaseException) -> str:
    """Return an error's message in one line, without Hydra's lines on the configuration key."""
    if isinstance(error, BadSamplesError):
        return str(error)
    # The message from a DataLoader's worker contains its whole traceback.
    message = str(error).rpartition(f"{InputError.__module__}.InputError: ")[2]
    lines = [line.strip() for line in message.split("\n") if line.strip()]
    return " ".join(line for line in lines if not line.startswith(("full_key:", "object_type=")))
