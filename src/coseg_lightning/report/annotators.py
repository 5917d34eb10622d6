"""Reports on annotators: annotators.csv, masks.csv, disputed.csv, and their part of the page."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from coseg_lightning.data.annotators import several_of
from coseg_lightning.files.csv import read_table, write_table
from coseg_lightning.labels.fusion import Votes, majority, nearest_half
from coseg_lightning.ranking.annotators import (
    FEWEST,
    AnnotatorRecord,
    bad_probability,
    records_of,
)
from coseg_lightning.ranking.displacement import (
    beside_all,
    beside_others,
    displacement,
    habits,
)
from coseg_lightning.ranking.noise_level import (
    CLEAR_DISTANCE,
    MIN_SAMPLES,
    PLAUSIBLE,
    estimate_of_scores,
)
from coseg_lightning.ranking.outline import mean_of_known
from coseg_lightning.ranking.people import People
from coseg_lightning.ranking.shifted import LEAST_SHIFT, shifted_pairs
from coseg_lightning.report.figures import BLACK, BLUE, ORANGE, pairs_sheet

ANNOTATORS = "annotators.csv"
MASKS = "masks.csv"
DISPUTED = "disputed.csv"
WORST = 5  # masks per person that the page names
DRAWN = 40  # largest number of persons in the figure
SHOWN = 20  # disputed images on the page
PICTURED = 12  # largest number of masks in a picture
LONGEST_NAME = 28  # characters of a name in the figure
NAMED = 10  # largest number of persons in the terminal
MOST_BAD = 0.5  # largest share of masks that can be called unlike the others
GOOD = 0.9  # Dice with the nearest half of the others above which a mask is not bad
INTERVAL = ("bad_share_low", "bad_share_high")


def write_annotators(
    folder: Path,
    levels: Sequence[float],
    kinds: Mapping[str, str] | None = None,
    *,
    masks: Sequence[Mapping[str, Any]] = (),
    tiles: Any = None,
) -> list[AnnotatorRecord]:
    """Write `annotators.csv` beside the `scores.csv` of a run or audit, if persons are known.

    Args:
        folder: The folder.
        levels: The plausible shares of bad masks, see `plausible_levels`. Among the masks of
            images with several, the share is estimated from their own scores.
        kinds: The kind of each image, by id.
        masks: The rows of `masks.csv`, one per mask of an image with several masks.
        tiles: The `Tiles`, if images are cut into such. Those of an image are then one mask, with
            the mean of their scores and the median of their displacements.

    Returns:
        The persons' records, the largest share of bad masks first.
    """
    single = [row for row in read_table(folder / "scores.csv", ["id", "score"]) if _name(row)]
    rows = [*single, *masks]
    if not rows:
        return []
    known = dict.fromkeys(name for part in (single, masks) for row in part[:1] for name in row)
    classes = [name for name in known if name.startswith("displacement_class_")]
    columns = classes or ["displacement_pixels"]
    if tiles is not None:
        single = _of_images(single, columns, tiles.tiles)
        rows = [*single, *masks]
    names = [row["annotator"] for row in rows]
    of_images = [kinds.get(row["id"], "") for row in rows] if kinds else None
    moved = np.array([[_number(row.get(name)) for name in columns] for row in rows])
    # Single masks are compared with edges, and only persons' differences are telling.
    people = People.of(names[: len(single)], of_images[: len(single)] if of_images else None)
    moved[: len(single)] = beside_all(moved[: len(single)], people)
    own = [  # the two tables use different scores
        np.array([_number(_first_known(row, "own_score", "score")) for row in part])
        for part in (single, masks)
    ]
    beside = Counter(row["id"] for row in masks)
    of_masks = _levels_of(own[1], np.array([beside[row["id"]] for row in masks], np.int64))
    at_levels = (levels if single else levels[:1], of_masks)
    probabilities = [
        np.concatenate([bad_probability(*part) for part in zip(own, pair, strict=True)])
        for pair in product(*at_levels)
    ]
    blunders = [[word for word in row.get("blunders", "").split("; ") if word] for row in rows]
    records = records_of(probabilities, People.of(names, of_images), moved, blunders)
    _replace(folder / ANNOTATORS, [record.as_row() for record in records])
    return records


def _levels_of(scores: NDArray[np.float64], beside: NDArray[np.int64]) -> tuple[float, ...]:
    """Return the plausible shares of bad masks by the scores of masks of images with several.

    Where no group of masks stands apart, the share is open, but masks that agree with others by a
    Dice of `GOOD` are not bad. Images with three masks or more tell the share, if they suffice. Of
    two masks of an image, nobody knows which is bad, so that any part of those that disagree may
    be.

    Args:
        scores: `(N,)` one minus the agreement, NaN where unknown.
        beside: `(N,)` the number of masks of each mask's image.
    """
    known = ~np.isnan(scores)
    of_more = known & (beside > 2)
    of_pairs = of_more.sum() < MIN_SAMPLES and bool((beside[known] == 2).any())
    values = scores[known if of_pairs else of_more]
    if not len(values):
        return PLAUSIBLE[:1]
    of_scores = {"own": values, "root": np.sqrt(values.clip(0))}
    judged = np.ones(len(values), bool)
    estimate = estimate_of_scores(of_scores, judged, min_distance=CLEAR_DISTANCE)
    if estimate.interval is not None and estimate.noise_level <= MOST_BAD:
        least = (PLAUSIBLE[0], estimate.noise_level / 2) if of_pairs else ()
        return (*least, estimate.interval[0], estimate.noise_level, estimate.interval[1])
    most = max(PLAUSIBLE[0], float((values > 1 - GOOD).mean()))
    return tuple(sorted({min(level, most) for level in PLAUSIBLE}))


def _of_images(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], tiles: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Join the rows of an image's tiles, of which one person drew the mask."""
    of_image: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        of_image.setdefault((tiles[row["id"]].image_id, _name(row)), []).append(row)
    joined = []
    for (_, name), parts in of_image.items():
        words = dict.fromkeys(w for row in parts for w in row.get("blunders", "").split("; ") if w)
        scores = np.array([_number(_first_known(row, "own_score", "score")) for row in parts])
        moved = np.array([[_number(row.get(column)) for column in columns] for row in parts])
        known = scores[~np.isnan(scores)]
        of_columns = [column[~np.isnan(column)] for column in moved.T]
        middle = [float(np.median(column)) if len(column) else "" for column in of_columns]
        joined.append(
            {
                "id": parts[0]["id"],  # the kind of image is that of each tile
                "annotator": name,
                "score": float(known.mean()) if len(known) else "",
                "blunders": "; ".join(words),
                **dict(zip(columns, middle, strict=True)),
            }
        )
    return joined


def _name(row: Mapping[str, Any]) -> str:
    return str(row.get("annotator") or "")


def _number(value: Any) -> float:
    return float("nan") if value in (None, "") else float(value)


def _first_known(row: Mapping[str, Any], *names: str) -> Any:
    """Return the first of some columns that is there and not empty; 0 is a value like others."""
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _replace(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table in place of an earlier one, for example of a resumed run."""
    path.unlink(missing_ok=True)
    if rows:
        write_table(path, rows)


def write_masks(folder: Path, samples: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Write `masks.csv` and `disputed.csv`, if images have masks by several persons.

    `masks.csv` ranks each person's mask of such an image by disagreement: one minus the mean Dice
    to the half of the other masks that are most like it, so that one bad mask does not count
    against those beside it. `own_score` is the same after the outlines of all masks were shifted
    back by their persons' steady displacements, and is what counts for the person's record. So a
    habit of one person counts neither against him nor against others who drew the same images.
    Outlines did not improve this ranking on `bubil`. Equal scores have equal ranks, as those of two
    masks of an image do. `disputed.csv` lists the images, with the least agreement first.

    The masks are read twice, so that those of only one image are in memory at any time.

    Args:
        folder: The folder.
        samples: The samples, whose dataset may have masks by several persons.

    Returns:
        The rows of both tables.
    """
    several = several_in(samples)
    if several is None:
        return [], []
    classes = several.classes
    masks: list[dict[str, Any]] = []
    disputed: list[dict[str, Any]] = []
    moved, images = [], []
    several_ids = [i for i in several.ids if len(several.names(i)) > 1]
    for number, sample_id in enumerate(several_ids):
        names = list(several.names(sample_id))
        drawn = [several.mask(sample_id, name) for name in names]
        # Whatever networks learn from, masks are compared with what most persons say.
        reference = majority(drawn)
        pairs = Votes.of(drawn).pairwise()
        agreement, nearest = mean_of_known(pairs, axis=1), nearest_half(pairs)
        for name, mask, of_all, of_half in zip(names, drawn, agreement, nearest, strict=True):
            moved.append(displacement(mask, reference, classes=classes))
            images.append(number)
            row = {"id": sample_id, "annotator": name, "score": _rounded(1 - of_half)}
            masks.append(row | {"agreement": _rounded(of_all)})
        if not np.isnan(agreement).all():
            least = _least(names, nearest)
            row = {
                "id": sample_id,
                "masks": len(names),
                "agreement": _rounded(agreement[~np.isnan(agreement)].mean()),
            }
            disputed.append(row | {"least_like_others": least})
    of_image = np.array(images, dtype=np.int64)
    people = People.of([row["annotator"] for row in masks])
    table = np.array(moved).reshape(-1, classes - 1)
    beside = beside_others(table, people, of_image)
    own = _own_scores(several, several_ids, of_image, habits(beside, people))
    overall = mean_of_known(beside, axis=1)
    for n, row in enumerate(masks):
        row["displacement_pixels"] = _rounded(overall[n])
        if classes > 2:
            of_class = enumerate(beside[n].tolist(), start=1)
            row |= {f"displacement_class_{k}": _rounded(value) for k, value in of_class}
        row["own_score"] = _rounded(own[n]) if n in own else row["score"]
    masks.sort(  # those without a score, which hold nothing that is labelled, last
        key=lambda row: (
            row["score"] == "",
            -_number(row["score"] or 0),
            row["id"],
            row["annotator"],
        )
    )
    disputed.sort(key=lambda row: (row["agreement"], row["id"]))
    first_of: dict[Any, int] = {}  # equal scores have equal ranks
    for place, row in enumerate(masks, start=1):
        row["rank"] = "" if row["score"] == "" else first_of.setdefault(row["score"], place)
    _replace(folder / MASKS, masks)
    _replace(folder / DISPUTED, disputed)
    return masks, disputed


def _least(names: Sequence[str], agreement: NDArray[np.float64]) -> str:
    """Name the person whose mask agrees least; an empty text if two agree equally."""
    known = np.round(agreement, 4)
    least = np.flatnonzero(known == np.nanmin(known))
    return names[int(least[0])] if len(least) == 1 else ""


def _own_scores(
    several: Any, ids: Sequence[str], images: NDArray[np.int64], habit: NDArray[np.float64]
) -> dict[int, float]:
    """Score the masks of each image in which outlines are shifted back by persons' habits.

    Args:
        several: The images with several masks.
        ids: The images.
        images: `(N,)` the place in `ids` of each mask's image.
        habit: `(N, K - 1)` the steady displacement of each mask's annotator.

    Returns:
        One minus the mean Dice to the nearest half of the others, by the number of the mask.
    """
    scores: dict[int, float] = {}
    of_images: list[list[int]] = [[] for _ in ids]
    for n, number in enumerate(images.tolist()):
        of_images[number].append(n)
    for sample_id, rows in zip(ids, of_images, strict=True):
        if (np.abs(habit[rows]) < LEAST_SHIFT).all():
            continue
        drawn = [several.mask(sample_id, name) for name in several.names(sample_id)]
        nearest = nearest_half(shifted_pairs(drawn, habit[rows]))
        scores |= zip(rows, (1 - nearest).tolist(), strict=True)
    return scores


def _rounded(value: Any) -> float | str:
    """Round a number for a table; NaN becomes an empty text."""
    return "" if np.isnan(value) else round(float(value), 4) + 0.0  # not -0.0


def page_part(
    folder: Path,
    records: Sequence[AnnotatorRecord],
    masks: Sequence[Mapping[str, Any]],
    disputed: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the persons' records and worst masks for the page."""
    worst: dict[str, list[str]] = {}
    for row in masks:  # of images with several masks, by disagreement
        worst.setdefault(row["annotator"], []).append(row["id"])
    worst = {name: ids[:WORST] for name, ids in worst.items()}
    for row in read_table(folder / "scores.csv", ["id", "score"]) if records else []:
        of_person = worst.setdefault(row.get("annotator", ""), [])
        if row.get("noisy") == "1" and len(of_person) < WORST:
            of_person.append(row["id"])
    return {
        "persons": [(record, worst.get(record.annotator, [])) for record in records],
        "classes": max((len(r.displacement_by_class) for r in records), default=0),
        "few": FEWEST,
        "alike": len(records) > 1 and _overlap([record.as_row() for record in records]),
        "disputed": list(disputed[:SHOWN]),
        "disputes": len(disputed),
    }


def in_words(folder: Path) -> list[str]:
    """Describe the annotators of a run or audit in lines for the terminal; none if unknown."""
    if not (folder / ANNOTATORS).is_file():
        return []
    persons = read_table(folder / ANNOTATORS, ["annotator", "masks", *INTERVAL])
    width = max(len(row["annotator"]) for row in persons[:NAMED])
    several = (
        "annotator, and his or her share" if len(persons) == 1 else "annotators, and their shares"
    )
    lines = [f"{len(persons)} {several} of bad masks (90 % intervals):"]
    for row in persons[:NAMED]:
        low, high = (100 * float(row[name]) for name in INTERVAL)
        lines.append(
            f"  {row['annotator']:<{width}}  {low:.0f} to {high:.0f} % of {row['masks']} "
            f"mask{'' if row['masks'] == '1' else 's'}"
        )
    if len(persons) > NAMED:
        lines.append(f"  ... and {len(persons) - NAMED} more in {ANNOTATORS}")
    if len(persons) > 1 and _overlap(persons):
        lines.append("All intervals overlap: these masks do not show that the annotators differ.")
    if (folder / MASKS).is_file():
        worst: dict[tuple[str, str], list[str]] = {}  # two masks of an image rank alike
        for row in read_table(folder / MASKS, ["id", "annotator", "score"]):
            worst.setdefault((row["id"], row["score"]), []).append(row["annotator"])
        named = [f"{of[0]} by {_listed(names)}" for of, names in list(worst.items())[:3]]
        lines.append(f"The worst of their single masks: {', '.join(named)}")
    return lines


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _overlap(persons: Sequence[Mapping[str, str]]) -> bool:
    """Whether all persons' intervals share a value."""
    low, high = ([float(row[name]) for row in persons] for name in INTERVAL)
    return max(low) <= min(high)


def annotators_figure(records: Sequence[AnnotatorRecord]) -> Figure:
    """Draw all persons' shares of bad masks and displacements, with intervals."""
    shown = list(records[:DRAWN])
    figure = Figure(figsize=(9, 1.3 + 0.28 * len(shown)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for place, record in enumerate(shown):
        _draw(left, place, 100 * record.bad_share, record.bad_share_interval, ORANGE, 100)
        if record.displacement is not None and record.displacement_interval is not None:
            _draw(right, place, record.displacement, record.displacement_interval, BLUE, 1)
    names = [shortened(record.annotator, LONGEST_NAME) for record in shown]
    marks = [f"{name} ({record.masks})" for name, record in zip(names, shown, strict=True)]
    left.set_yticks(range(len(shown)), marks)
    for label in left.get_yticklabels():
        label.set_parse_math(False)
    left.invert_yaxis()
    left.set(xlabel="Bad masks, %", xlim=(0, 100))
    right.axvline(0, color=BLACK, linewidth=1)
    reach = max(1.0, *map(abs, right.get_xlim()))  # less than a pixel is not to look like much
    right.set(xlabel="Outlines displaced outwards, pixels", xlim=(-reach, reach))
    for axes in (left, right):
        axes.grid(alpha=0.3, axis="x")
    return figure


def masks_figure(
    samples: Any, records: Sequence[AnnotatorRecord], masks: Sequence[Mapping[str, Any]]
) -> Figure | None:
    """Draw each person's masks that are least like the others', over the majority of all.

    Args:
        samples: The samples, of which images have several masks.
        records: The persons.
        masks: The rows of `masks.csv`, worst first.

    Returns:
        The figure; None if no image has several masks.
    """
    index_of = {sample_id: index for index, sample_id in enumerate(samples.ids)}
    of_person: dict[str, list[Mapping[str, Any]]] = {record.annotator: [] for record in records}
    for row in masks:
        if row["score"] != "" and row["annotator"] in of_person and row["id"] in index_of:
            of_person[row["annotator"]].append(row)
    turns = zip_longest(*(rows[:PICTURED] for rows in of_person.values()))
    shown = [row for turn in turns for row in turn if row is not None][:PICTURED]
    if not shown:
        return None
    several = several_in(samples)
    of_image = {}  # one image at a time
    for sample_id in {row["id"] for row in shown}:
        names = several.names(sample_id)
        of_image[sample_id] = majority([several.mask(sample_id, name) for name in names])
    own = [several.mask(row["id"], row["annotator"]) for row in shown]
    titles = [
        f"{shortened(row['id'], LONGEST_NAME)}\nby {shortened(row['annotator'], LONGEST_NAME)}"
        for row in shown
    ]
    return pairs_sheet(
        samples,
        [index_of[row["id"]] for row in shown],
        {"the person's mask": own, "the majority": [of_image[row["id"]] for row in shown]},
        titles,
    )


def several_in(samples: Any) -> Any:
    """Return the masks of images with several, or None if no image has."""
    return several_of(samples) or several_of(getattr(samples, "dataset", None))


def shortened(text: str, length: int) -> str:
    """Return a text, or the beginning of one that is longer than allowed."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _draw(
    axes: Axes, place: int, value: float, ends: tuple[float, float], colour: str, scale: float
) -> None:
    axes.plot([scale * ends[0], scale * ends[1]], [place, place], color=colour, linewidth=2)
    axes.plot([value], [place], "o", color=colour)
