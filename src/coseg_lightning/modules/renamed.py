"""Attributes of `CoSegModule` under their names of version 0.1."""

from coseg_lightning.errors import renamed


class RenamedOfPeers:
    """Old names, which warn and go in version 0.3."""

    noise_estimate = renamed("noise_estimate", "noise.estimate")
    noise_known = renamed("noise_known", "noise.known")
    estimates_noise = renamed("estimates_noise", "noise.is_estimated")
    settle_noise_level = renamed("settle_noise_level", "noise.set_noise_level_from")
    doubt = renamed("doubt", "selection.exclude")
    never_selected = renamed("never_selected", "selection.waits_for_ranking")
