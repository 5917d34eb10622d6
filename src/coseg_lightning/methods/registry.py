"""The methods by name, and the stages that each goes through."""

from collections.abc import Sequence

from coseg_lightning.errors import InputError

METHODS: dict[str, tuple[str, ...]] = {
    "coseg": ("robust_training", "correction", "retraining"),
    "coteaching": ("robust_training",),
    "supervised": ("supervised_training",),
    # rivals
    "pixel_coteaching": ("robust_training",),
    "jocor": ("robust_training",),
    "gce": ("supervised_training",),
    "sce": ("supervised_training",),
    "filter": ("robust_training", "filtering", "retraining"),
    "adele": ("early_learning",),
    "pick_and_learn": ("supervised_training",),
    "reweight": ("supervised_training",),
    "forward_correction": ("estimation", "supervised_training"),
    "noise_adaptation": ("estimation", "supervised_training"),
    "dimensionality": ("supervised_training",),
}


def stages_of(method: str, given: Sequence[str] | None = None) -> tuple[str, ...]:
    """The stages of a method by its name, or those that are given with the name of another one."""
    if given is None:
        if method not in METHODS:
            raise InputError(
                f"method={method}: there is no such method; take {', '.join(METHODS)}, or give the "
                "stages of your own."
            )
        return METHODS[method]
    known = sorted(set(METHODS.values()))
    if isinstance(given, str) or tuple(given) not in known:
        lists = " or ".join(f"[{', '.join(stages)}]" for stages in known)
        raise InputError(f"stages={given} of method={method} must be {lists}.")
    return tuple(given)
