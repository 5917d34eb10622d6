"""Rewrites the report of a finished run: python -m coseg_lightning.report RUN."""

from pathlib import Path

from coseg_lightning.app.command import arguments, cli_errors


def main() -> None:
    """Read the command line, write the report, and print its path."""
    options = arguments("report")
    from coseg_lightning.app.rebuild import AppRun
    from coseg_lightning.errors import InputError
    from coseg_lightning.report.page import write_report

    run = AppRun(options["run"], root=options["root"], trust=options["trust"])
    if run.is_audit:
        raise InputError(
            f"{run.folder} is an audit, whose page is {run.folder / 'review.html'}; only runs have "
            "a report."
        )
    try:
        data = run.data()
    except InputError as error:
        print(f"The report has no pictures of samples: {error}")
        data = None
    write_report(run.folder, data)
    print(Path(options["run"]) / "report.html")


if __name__ == "__main__":
    cli_errors(main)
