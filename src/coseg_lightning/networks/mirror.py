"""The mirror: a network's own view of mirrored images, in the place of a second network."""

from typing import Any, Self

from torch import Tensor, nn
from typing_extensions import override

from coseg_lightning.errors import InputError
from coseg_lightning.networks.forward import any_size

MIRROR = "mirror"  # its name as the second peer
NO_NETWORK = (
    "A mirror is no network, but a peer of one; give it as the second peer, model@peer_b=mirror, "
    "or CoSegModule(network, 'mirror')."
)


class Mirror(nn.Module):
    """The peer of a network that is trained alone: that network, on images mirrored left to right.

    It has no parameters of its own. Where the network sees a mirrored image otherwise than the
    image itself, it is unsure, as two networks are where they disagree.

    Args:
        network: The network. `CoSegModule` gives its first one to a mirror without any.

    Shape:
        `(N, C, H, W)` to `(N, K, H, W)`.
    """

    def __init__(self, network: nn.Module | None = None) -> None:
        super().__init__()
        self._of = (network,)  # within a tuple it is no submodule, whose weights would count twice

    @property
    def network(self) -> nn.Module:
        """The network.

        Raises:
            InputError: If it has none, since it stands where a network should.
        """
        (network,) = self._of
        if network is None:
            raise InputError(NO_NETWORK)
        return network

    def is_of(self, network: nn.Module) -> bool:
        """Whether this is the mirror of a network, which may have been compiled since."""
        own, given = ({id(w) for w in net.parameters()} for net in (self.network, network))
        return own == given

    @override
    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the network, so that a mirror without the module of both is where it is sent."""
        self.network.to(*args, **kwargs)
        return self

    @override
    def train(self, mode: bool = True) -> Self:
        """Set the network's mode, too."""
        self.network.train(mode)
        return super().train(mode)

    @override
    def forward(self, images: Tensor) -> Tensor:
        return any_size(self.network, images.flip(-1)).flip(-1)
