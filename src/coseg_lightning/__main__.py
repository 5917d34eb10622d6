"""The command `coseg`: `coseg run DIR` is `python -m coseg_lightning.run DIR`."""

import contextlib
import difflib
import os
import runpy
import sys
from pathlib import Path

from coseg_lightning.app.commands import COMMANDS
from coseg_lightning.app.help import completion, help_of, overview


def command() -> None:
    """Show help, which needs no other library, or run the command given as first argument."""
    name, *given = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help") and not given:
        print(overview())
    elif name == "--version":
        from coseg_lightning import __version__

        print(__version__)
    elif name == "completion":
        print(completion())
    elif name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean coseg {near[0]}?" if near else f"there are {', '.join(COMMANDS)}."
        sys.exit(f"There is no command coseg {name}; {hint}")
    elif {"--help", "-h"} & set(given):
        print(help_of(name))
    else:
        sys.argv[1:] = given
        with contextlib.suppress(FileNotFoundError):  # the folder was removed
            if (here := str(Path.cwd())) not in sys.path:
                sys.path.append(here)  # where python -m finds classes of one's own
        # This is what python -m does, so subprocesses of the command start in the same way.
        runpy.run_module(f"coseg_lightning.{name}", run_name="__main__", alter_sys=True)


def main() -> None:
    """Run the command; a reader that closes the pipe early, such as `head`, is no error."""
    try:
        command()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        sys.exit(130)  # as if SIGINT had ended it
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's last flush
        sys.exit(1)


if __name__ == "__main__":
    main()
