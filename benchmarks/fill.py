"""Writes the tables of the results into the pages, between `<!-- name -->` and `<!-- end -->`."""

import re
from collections.abc import Mapping, Sequence

import real_tables
from tables import Row, ablation_tables, overview, performance, row_of, tables


def filled(text: str, results: Mapping[str, Sequence[Row]]) -> str:
    """A page with its tables as the results are now.

    Args:
        text: The page.
        results: The rows of each grid.
    """
    core, real = results["core"], results["real"]

    def real_at(argument: str) -> str:
        level, *names = argument.split()
        return real_tables.side_by_side(real, float(level), names)

    makers = {
        "core": lambda _: tables("core", core),
        "overview": lambda level: overview(core, float(level)),
        "ablation": lambda _: ablation_tables(results["ablation"]),
        "heldout": lambda _: tables("heldout", results["heldout"]),
        "heldout_overview": lambda level: overview(results["heldout"], float(level)),
        "row": lambda method: row_of(core, method),
        "performance": lambda _: performance(),
        "real": real_at,
        "real_gains": lambda _: real_tables.gains(real),
        "real_ranking": lambda _: real_tables.ranking(real),
        "real_short": lambda _: real_tables.short(real),
        "first_table": lambda _: real_tables.of_readme(core, real),
    }

    def table(found: re.Match[str]) -> str:
        name, _, argument = found[1].partition(" ")
        return f"<!-- {found[1]} -->\n\n{makers[name](argument)}\n\n<!-- end -->"

    names = "|".join(makers)
    return re.sub(
        rf"<!-- ((?:{names})(?: [^>]*?)?) -->.*?<!-- end -->", table, text, flags=re.DOTALL
    )
