"""The command `coseg`: `coseg run DIR` is `python -m coseg_lightning.run DIR`."""

import difflib
import runpy
import sys

from coseg_lightning.app.commands import COMMANDS
from coseg_lightning.app.help import completion, help_of, overview


def main() -> None:
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
        # This is what python -m does, so subprocesses of the command start in the same way.
        runpy.run_module(f"coseg_lightning.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
