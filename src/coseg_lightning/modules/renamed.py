"""Old names of version 0.1: attributes of `CoSegModule`, and modules of the methods."""

from coseg_lightning.errors import renamed


class RenamedOfPeers:
    """Old names, which warn and are removed in version 0.3."""

    noise_estimate = renamed("noise_estimate", "noise.estimate")
    noise_known = renamed("noise_known", "noise.known")
    estimates_noise = renamed("estimates_noise", "noise.is_estimated")
    settle_noise_level = renamed("settle_noise_level", "noise.set_noise_level_from")
    doubt = renamed("doubt", "selection.exclude")
    never_selected = renamed("never_selected", "selection.waits_for_ranking")


# Old and new locations of methods that have moved since version 0.1.
MOVED = {
    "coseg_lightning.rivals.dimensionality": "coseg_lightning.methods.dimensionality",
    "coseg_lightning.rivals.early_learning": "coseg_lightning.methods.adele",
    "coseg_lightning.rivals.quality": "coseg_lightning.methods.pick_and_learn",
    "coseg_lightning.rivals.reweighting": "coseg_lightning.methods.reweight",
    "coseg_lightning.rivals.transition": "coseg_lightning.methods.transition",
    "coseg_lightning.rivals.peers.PlainPeers": "coseg_lightning.methods.filter.PlainPeers",
    "coseg_lightning.rivals.peers.JoCoR": "coseg_lightning.methods.jocor.JoCoR",
    "coseg_lightning.rivals.peers.PixelCoTeaching": (
        "coseg_lightning.methods.pixel_coteaching.PixelCoTeaching"
    ),
}


def home_now(name: str) -> str:
    """Return the current full name of a method's class; other names stay unchanged."""
    for before, now in MOVED.items():
        if name == before or name.startswith(f"{before}."):
            return now + name.removeprefix(before)
    return name
