"""Draw the pictures of the galleries: a sketch of each method, and each noise model on a phantom.

Run it with `python docs/images/draw.py`. It writes docs/images/methods and docs/images/noise.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Readable on a light and on a dark page.
GREY, ORANGE, BLUE, GREEN = "#858585", "#e08a00", "#3d9fdb", "#1fa37a"
WIDTH, HEIGHT = 240, 130
GOOD = [(0, -11), (9, -8), (11, 2), (6, 10), (-4, 11), (-11, 5), (-9, -7)]
BAD = [(2, -13), (5, -4), (14, 0), (9, 6), (8, 13), (-1, 9), (-5, 3), (-14, -3)]
Point = tuple[float, float]


# Parts of sketches. Each returns SVG.


def line(points: Sequence[Point], colour: str = GREY, width: float = 1.8, more: str = "") -> str:
    """Return a line through points."""
    text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f'<polyline points="{text}" fill="none" stroke="{colour}" stroke-width="{width}" {more}/>'
    )


def arrow(start: Point, end: Point, colour: str = GREY, width: float = 1.8, more: str = "") -> str:
    """Return an arrow."""
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    tips = [
        (end[0] - 7 * math.cos(angle + turn), end[1] - 7 * math.sin(angle + turn))
        for turn in (0.45, -0.45)
    ]
    return line([start, end], colour, width, more) + line([tips[0], end, tips[1]], colour, width)


def outline(points: Sequence[Point], x: float, y: float, colour: str, more: str = "") -> str:
    """Return a closed, rounded curve around a point."""
    middles = [
        ((a[0] + b[0]) / 2 + x, (a[1] + b[1]) / 2 + y)
        for a, b in zip(points, [*points[1:], points[0]], strict=True)
    ]
    curve = "".join(
        f" Q{x + corner[0]:.1f} {y + corner[1]:.1f} {middle[0]:.1f} {middle[1]:.1f}"
        for corner, middle in zip([*points[1:], points[0]], [*middles[1:], middles[0]], strict=True)
    )
    start = f"M{middles[0][0]:.1f} {middles[0][1]:.1f}"
    return f'<path d="{start}{curve} Z" fill="none" stroke="{colour}" stroke-width="2" {more}/>'


def mask(x: float, y: float, kind: str = "good", scale: float = 1.0) -> str:
    """Return a mask around a point: good, bad, corrected, or out, a bad one that is left out."""
    frame = '<rect x="-17" y="-17" width="34" height="34" rx="4" fill="none"'
    frame += f' stroke="{GREY}" stroke-width="1.2"/>'
    if kind == "good":
        inner = outline(GOOD, 0, 0, BLUE)
    elif kind == "corrected":
        inner = outline(BAD, 0, 0, ORANGE, 'stroke-dasharray="3 2.5"') + outline(GOOD, 0, 0, BLUE)
    else:
        inner = outline(BAD, 0, 0, ORANGE)
    if kind == "out":
        inner += line([(-21, -21), (21, 21)], GREY, 2.4) + line([(-21, 21), (21, -21)], GREY, 2.4)
    return f'<g transform="translate({x} {y}) scale({scale})">{frame}{inner}</g>'


def network(x: float, y: float, name: str = "", colour: str = GREY) -> str:
    """Return a network around a point: an encoder and a decoder, like two funnels."""
    shape = (
        f"M{x - 20} {y - 20}L{x} {y - 9}L{x + 20} {y - 20}V{y + 20}L{x} {y + 9}L{x - 20} {y + 20}Z"
    )
    style = f'fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round"'
    result = f'<path d="{shape}" {style}/>'
    return result + (word(x, y + 4.5, name, colour) if name else "")


def word(x: float, y: float, text: str, colour: str = GREY, size: int = 13) -> str:
    """Return a word, centred."""
    style = f'font-family="sans-serif" font-size="{size}" text-anchor="middle" fill="{colour}"'
    return f'<text x="{x}" y="{y}" {style}>{text}</text>'


def pixels(x: float, y: float, weights: Sequence[float], side: int = 4, size: float = 9) -> str:
    """Return a square of pixels, each as strong as its weight; one of weight 0 is left empty."""
    cells = []
    for n, weight in enumerate(weights):
        left, top = x + n % side * size - side * size / 2, y + n // side * size - side * size / 2
        cells.append(
            f'<rect x="{left}" y="{top}" width="{size}" height="{size}" fill="{BLUE}" '
            f'fill-opacity="{weight}" stroke="{GREY}" stroke-width="0.8"/>'
        )
    return "".join(cells)


def matrix(x: float, y: float, more: str = "") -> str:
    """Return a label transition matrix, large on its diagonal."""
    cells = pixels(x, y, [0.9, 0.2, 0.1, 0.15, 0.8, 0.2, 0.05, 0.15, 0.9], side=3, size=11)
    return f"<g {more}>{cells}</g>"


def axes(across: str, up: str) -> str:
    """Return two axes and their names."""
    result = arrow((34, 108), (222, 108)) + arrow((34, 108), (34, 12))
    result += word(128, 124, across, size=12)
    return result + f'<g transform="translate(22 60) rotate(-90)">{word(0, 0, up, size=12)}</g>'


def curve(function: Callable[[float], float], start: float = 0.0, end: float = 1.0) -> list[Point]:
    """Return a curve in the axes: both coordinates run from 0 to 1."""
    steps = [start + (end - start) * n / 60 for n in range(61)]
    return [(38 + 176 * t, 104 - 86 * function(t)) for t in steps]


# One sketch for each method, under its name


def coseg() -> Iterator[str]:
    yield from (mask(24, 24), mask(24, 65, "bad"), mask(24, 106))
    yield arrow((46, 65), (62, 65))
    yield network(88, 34, "A", BLUE) + network(88, 96, "B", BLUE)
    yield arrow((80, 54), (80, 77), BLUE) + arrow((96, 76), (96, 53), BLUE)
    yield arrow((114, 65), (132, 65)) + mask(155, 65, "corrected")
    yield arrow((177, 65), (192, 65)) + network(216, 65, "", GREEN)


def coteaching() -> Iterator[str]:
    yield network(60, 34, "A", BLUE) + network(60, 96, "B", BLUE)
    yield arrow((84, 38), (184, 92), BLUE) + arrow((84, 92), (184, 38), BLUE)
    yield mask(122, 34, scale=0.75) + mask(122, 96, scale=0.75)
    yield network(208, 96, "B") + network(208, 34, "A")
    yield mask(20, 65, "out", scale=0.75)


def supervised() -> Iterator[str]:
    yield from (mask(40, 24), mask(40, 65, "bad"), mask(40, 106))
    yield arrow((64, 28), (122, 56)) + arrow((64, 65), (122, 65)) + arrow((64, 102), (122, 74))
    yield network(150, 65) + arrow((176, 65), (208, 65))


def pixel_coteaching() -> Iterator[str]:
    yield network(60, 34, "A", BLUE) + network(60, 96, "B", BLUE)
    yield arrow((84, 38), (184, 92), BLUE) + arrow((84, 92), (184, 38), BLUE)
    kept = [0.7, 0.7, 0, 0.7, 0.7, 0, 0, 0.7, 0.7, 0.7, 0.7, 0.7, 0, 0.7, 0.7, 0.7]
    yield pixels(122, 30, kept, size=7.5) + pixels(122, 100, kept[::-1], size=7.5)
    yield network(208, 96, "B") + network(208, 34, "A")


def jocor() -> Iterator[str]:
    yield mask(36, 45) + mask(36, 88) + arrow((60, 60), (110, 40)) + arrow((60, 72), (110, 92))
    yield network(140, 34, "A", BLUE) + network(140, 96, "B", BLUE)
    yield arrow((140, 60), (140, 51), GREEN) + arrow((140, 70), (140, 79), GREEN)
    yield line([(164, 34), (196, 34), (196, 96), (164, 96)], GREEN) + word(212, 71, "=", GREEN, 20)


def gce() -> Iterator[str]:
    yield axes("probability of the label", "loss")
    yield line(curve(lambda p: -math.log(p) / 4.6, 0.01), GREY, 2, 'stroke-dasharray="4 4"')
    yield line(curve(lambda p: (1 - p**0.7) / 0.7 / 4.6), BLUE, 2.6)


def sce() -> Iterator[str]:
    yield axes("probability of the label", "loss")
    yield line(curve(lambda p: -math.log(p) / 4.6, 0.01), GREY, 2, 'stroke-dasharray="4 4"')
    yield line(curve(lambda p: 4 * (1 - p) / 4.6), ORANGE, 2, 'stroke-dasharray="4 4"')
    yield line(curve(lambda p: (4 * (1 - p) - 0.1 * math.log(p)) / 4.6, 0.01), BLUE, 2.6)


def filter_() -> Iterator[str]:
    yield from (mask(22, 65), mask(62, 65), mask(102, 65), mask(150, 65, "out"))
    yield arrow((6, 98), (168, 98), ORANGE) + word(87, 117, "score", ORANGE, 12)
    yield (
        line([(22, 44), (22, 28), (208, 28)])
        + line([(62, 44), (62, 28)])
        + line([(102, 44), (102, 28)])
    )
    yield arrow((208, 28), (208, 42)) + network(208, 65)


def adele() -> Iterator[str]:
    yield axes("epochs", "overlap")
    yield line(curve(lambda t: 0.85 * (1 - math.exp(-6 * t))), BLUE, 2.6)
    yield line([(122, 104), (122, 26)], ORANGE, 1.8, 'stroke-dasharray="4 4"')
    yield (
        mask(92, 80, "bad", 0.8)
        + arrow((110, 80), (134, 80), ORANGE)
        + mask(154, 80, "corrected", 0.8)
    )


def pick_and_learn() -> Iterator[str]:
    yield from (mask(24, 24), mask(24, 65, "bad"), mask(24, 106))
    yield network(110, 24, "Q", ORANGE) + arrow((48, 22), (82, 22))
    yield arrow((110, 46), (110, 56), ORANGE)
    yield arrow((48, 46), (176, 70), BLUE, 4) + arrow((48, 72), (176, 80), ORANGE, 1)
    yield arrow((48, 106), (176, 90), BLUE, 4) + network(206, 80)


def reweight() -> Iterator[str]:
    yield mask(30, 28).replace(BLUE, GREEN) + word(30, 62, "clean", GREEN, 12) + mask(30, 98, "bad")
    yield arrow((54, 28), (92, 56), GREEN) + arrow((54, 98), (92, 74))
    weights = [0.9, 0.7, 0.2, 0, 0.9, 0.8, 0.1, 0, 0.7, 0.9, 0.5, 0.2, 0.3, 0.8, 0.9, 0.6]
    yield pixels(122, 65, weights, size=12) + arrow((152, 65), (178, 65)) + network(206, 65)


def forward_correction() -> Iterator[str]:
    yield (
        network(34, 65) + arrow((60, 65), (84, 65)) + matrix(108, 65) + arrow((132, 65), (158, 65))
    )
    yield mask(186, 65, "bad") + word(147, 57, "≈", GREY, 16)
    yield arrow((34, 40), (34, 16), GREEN) + mask(66, 20, scale=0.8).replace(BLUE, GREEN)


def noise_adaptation() -> Iterator[str]:
    yield (
        network(34, 65) + arrow((60, 65), (84, 65)) + matrix(108, 65) + arrow((132, 65), (158, 65))
    )
    yield mask(186, 65, "bad") + arrow((34, 40), (34, 16), GREEN)
    yield mask(66, 20, scale=0.8).replace(BLUE, GREEN)
    yield line([(186, 88), (186, 112), (34, 112)], BLUE)
    yield arrow((108, 112), (108, 86), BLUE) + arrow((34, 112), (34, 88), BLUE)


def dimensionality() -> Iterator[str]:
    yield axes("epochs", "dimension")
    yield line(curve(lambda t: 0.25 + 2.6 * (t - 0.42) ** 2, 0.0, 0.62), BLUE, 2.6)
    yield line(
        curve(lambda t: 0.25 + 2.6 * (t - 0.42) ** 2, 0.62, 0.92), GREY, 2, 'stroke-dasharray="4 4"'
    )
    yield line([(147, 104), (147, 22)], ORANGE, 1.8, 'stroke-dasharray="4 4"')
    yield mask(174, 82, "corrected", 0.8)


METHODS: dict[str, Callable[[], Iterator[str]]] = {
    sketch.__name__.rstrip("_"): sketch
    for sketch in (
        *(coseg, coteaching, supervised, pixel_coteaching, jocor, gce, sce, filter_, adele),
        *(pick_and_learn, reweight, forward_correction, noise_adaptation, dimensionality),
    )
}


def other_folder() -> Iterator[str]:
    """Sketch the noise model that has no picture: masks by somebody, from another folder."""
    for top, kind in ((74, "good"), (194, "bad")):
        yield line(
            [(40, top + 48), (40, top - 40), (80, top - 40), (92, top - 28), (200, top - 28)]
        )
        yield line([(200, top - 28), (200, top + 48), (40, top + 48)])
        yield mask(84, top + 10, kind, 1.2) + mask(150, top + 10, kind, 1.2)
    yield arrow((120, 160), (120, 128), ORANGE)


def svg(shapes: Iterator[str], width: int = WIDTH, height: int = HEIGHT) -> str:
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    parts = "\n".join(shapes)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n{parts}\n</svg>\n'


def noise_pictures(folder: Path) -> None:
    """Draw each noise model, at its default strength, on one phantom."""
    import numpy as np
    from matplotlib.figure import Figure

    sys.path.insert(0, str(HERE.parents[1] / "examples"))
    from noise_models import COLOURS, MODELS

    from coseg_lightning.data.phantom import PhantomImages
    from coseg_lightning.noise.geometry import parts_of

    phantoms = PhantomImages("train", 4, 256, seed=0)
    image, lungs = phantoms.image(2), phantoms.mask(2)
    classes = np.zeros_like(lungs)
    for class_id, lung in enumerate(parts_of(lungs > 0), start=1):  # each lung a class of its own
        classes[lung] = class_id
    folder.mkdir(exist_ok=True)
    for name, noise in MODELS.items():
        noisy = noise(classes, id=phantoms.ids[2], seed=5)
        figure = Figure(figsize=(2.4, 2.4), dpi=150)
        panel = figure.add_axes((0, 0, 1, 1))
        panel.imshow(image, cmap="gray", interpolation="bilinear")
        panel.contour(classes > 0, levels=[0.5], colors="white", linewidths=2.2)
        for class_id, colour in COLOURS.items():
            if (noisy == class_id).any():
                panel.contour(noisy == class_id, levels=[0.5], colors=colour, linewidths=1.6)
        panel.set_axis_off()
        figure.savefig(folder / f"{name}.jpg", pil_kwargs={"quality": 82, "optimize": True})


def main() -> None:
    """Write all pictures."""
    (HERE / "methods").mkdir(exist_ok=True)
    for name in METHODS:
        (HERE / "methods" / f"{name}.svg").write_text(svg(METHODS[name]()), encoding="utf-8")
    noise_pictures(HERE / "noise")
    picture = svg(other_folder(), 240, 240)
    (HERE / "noise" / "annotator.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
