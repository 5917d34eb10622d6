"""Exchanges masks with annotation tools: python -m coseg_lightning.exchange RUN OUT to=cvat."""

from coseg_lightning.app.command import arguments, cli_errors
from coseg_lightning.app.exchange_answers import read_answers
from coseg_lightning.app.exchange_tasks import DEFAULTS, write_tasks
from coseg_lightning.errors import InputError
from coseg_lightning.exchanged.tools import TOOLS


def main() -> None:
    """Read the command line, write tasks or read answers, and print what was done."""
    options = arguments("exchange")
    to, from_, source = (options.pop(key) for key in ("to", "from", "source"))
    if bool(to) == bool(from_):
        raise InputError(
            "Give to=TOOL to write tasks, or from=TOOL to read answers; the tools are "
            f"{', '.join(TOOLS)}."
        )
    if to:
        for key in ("unchanged", "empty"):
            if (value := options.pop(key)) != DEFAULTS[key]:
                raise InputError(f"{key}={value} only works with from=TOOL; leave it out.")
        if source:
            raise InputError(f"source={source} only works with from=TOOL; leave it out.")
        count, beginnings = write_tasks(tool=to, **options)
        masks = " and ".join(f"{number} with {kind}" for kind, number in beginnings.items())
        print(f"{count} tasks for {TOOLS[to].title} are in {options['out']}: {masks}.")
        same = f" masks={options['masks']}" if options["masks"] != DEFAULTS["masks"] else ""
        print(
            f"When they are done: coseg exchange {options['run']} OUT from={to} source=EXPORT{same}"
        )
        return
    if not source:
        raise InputError(f"Give source=FILE, the file or folder that {from_} exported.")
    result = read_answers(tool=from_, source=source, **options)
    print("\n".join(result.sentences()))


if __name__ == "__main__":
    cli_errors(main)
