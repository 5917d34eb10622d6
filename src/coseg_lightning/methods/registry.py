"""All methods, by name."""

from collections.abc import Sequence
from dataclasses import replace

from coseg_lightning.errors import InputError
from coseg_lightning.methods import (
    adele,
    coseg,
    coteaching,
    dimensionality,
    filter,
    forward_correction,
    gce,
    jocor,
    noise_adaptation,
    pick_and_learn,
    pixel_coteaching,
    reweight,
    sce,
    supervised,
)
from coseg_lightning.methods.method import Method

METHODS: dict[str, Method] = {
    module.METHOD.name: module.METHOD
    for module in (
        coseg,
        coteaching,
        supervised,
        pixel_coteaching,
        jocor,
        gce,
        sce,
        filter,
        adele,
        pick_and_learn,
        reweight,
        forward_correction,
        noise_adaptation,
        dimensionality,
    )
}


def find_method(name: str, stages: Sequence[str] | None = None) -> Method:
    """Find a method by its name, or by its stages.

    Args:
        name: The name of a method, or a new name if stages are given.
        stages: The stages of an existing method, which is returned under the new name. Any module
            may be trained in them.

    Raises:
        InputError: If there is no such method, or no method with such stages.
    """
    if stages is None:
        if name not in METHODS:
            raise InputError(
                f"method={name}: there is no such method; use {', '.join(METHODS)}, or give the "
                "stages of your own method."
            )
        return METHODS[name]
    by_stages = {method.stage_names: method for method in reversed(METHODS.values())}
    if isinstance(stages, str) or tuple(stages) not in by_stages:
        lists = " or ".join(f"[{', '.join(names)}]" for names in sorted(by_stages))
        raise InputError(f"stages={stages} of method={name} must be {lists}.")
    return replace(by_stages[tuple(stages)], name=name, module=None, options={})
