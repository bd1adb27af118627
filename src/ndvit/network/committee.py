"""Several networks that answer as one ("Deep Ensembles", Lakshminarayanan et al., 2017)."""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn

from ndvit.network.solved import SolvedNetwork
from ndvit.network.vit import VisionTransformer

Combine = Literal["outputs", "probabilities"]


class Committee(nn.Module):
    """The weighted mean of the outputs, or of the probabilities, of several networks.

    Committees may be members of committees. A committee is in eval mode from the start, because its members are trained
    one by one.

    Args:
        members: networks with the same input and the same number of outputs. Tensors are named `members.0.…`.
        weights: of the members, which sum to 1; None gives all members the same weight. The attribute is a tuple.
        combine: "outputs" for the mean of the outputs; "probabilities" for the logarithm of the mean of their softmax,
            so that the softmax of the committee's outputs is the mean of its members' probabilities.

    Raises:
        ValueError: if there are no members, if their inputs or outputs differ, or if the weights do not fit.
    """

    def __init__(
        self, members: Sequence[nn.Module], weights: Sequence[float] | None = None, combine: Combine = "outputs"
    ) -> None:
        super().__init__()
        if not members:
            raise ValueError("a committee needs at least one member")
        if combine not in ("outputs", "probabilities"):
            raise ValueError(f"combine must be outputs or probabilities, got {combine!r}")
        weights = [1 / len(members)] * len(members) if weights is None else [float(weight) for weight in weights]
        if len(weights) != len(members) or min(weights) < 0 or not math.isclose(sum(weights), 1, abs_tol=1e-6):
            raise ValueError(
                f"a committee of {len(members)} members needs as many weights, at least 0, that sum to 1; got {weights}"
            )
        self.members = nn.ModuleList(members)
        self.weights, self.combine = tuple(weights), combine
        shapes = sorted({shape for member in self.members if (shape := network_shape(member))})
        if len(shapes) > 1:
            found = " and ".join(f"(channels, *size) {size} with {outputs} outputs" for size, outputs in shapes)
            raise ValueError(f"members of a committee must have the same input and number of outputs, got {found}")
        if combine == "probabilities" and shapes and shapes[0][1] == 0:
            raise ValueError("a committee averages probabilities, but networks with num_classes=0 have none")
        self.eval()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Combined outputs (B, outputs). Arguments and errors as in `VisionTransformer.forward`.

        Raises:
            ValueError: in training mode.
        """
        if self.training:
            raise ValueError("members of a committee are trained one by one: call eval() on the committee")
        return self.combined([member(x, mask) for member in self.members])

    def combined(self, outputs: Sequence[Tensor]) -> Tensor:
        """Combine the outputs of the members, each (B, outputs)."""
        if self.combine == "outputs":
            return reduce(torch.add, [weight * output for weight, output in zip(self.weights, outputs)])
        logs = [output.float().log_softmax(1) for output in outputs]
        if len(set(self.weights)) == 1:
            return torch.logsumexp(torch.stack(logs), 0) - torch.tensor(float(len(logs))).log()
        weighted = [log + math.log(weight) for log, weight in zip(logs, self.weights) if weight]
        return torch.logsumexp(torch.stack(weighted), 0)


def network_shape(network: nn.Module) -> tuple[tuple[int, ...], int] | None:
    """Input (channels, *size) and number of outputs of a network; None if it holds no network of ours."""
    for member in members(network):
        if isinstance(member, VisionTransformer):
            return (member.config.in_channels, *member.config.input_size), member.config.num_classes
        if isinstance(member, SolvedNetwork):
            return member.shape, member.head.out_features
    return None


def members(network: nn.Module) -> list[nn.Module]:
    """A network itself, or the members of a committee and of the committees in it, in order."""
    if isinstance(network, Committee):
        return [inner for member in network.members for inner in members(member)]
    return [network]


def transformers(network: nn.Module) -> list[VisionTransformer]:
    """The `VisionTransformer` among the members of a network, in order; not the frozen encoders inside others."""
    return [member for member in members(network) if isinstance(member, VisionTransformer)]


def solved_networks(network: nn.Module) -> list[SolvedNetwork]:
    """The members of a network whose heads are solved in closed form, in order."""
    return [member for member in members(network) if isinstance(member, SolvedNetwork)]


def output_committees(network: nn.Module) -> list[Committee]:
    """The committees in a network that average outputs: a trained network with the solved ones beside it."""
    if not isinstance(network, Committee):
        return []
    if network.combine == "outputs":
        return [network]
    return [inner for member in network.members for inner in output_committees(member)]


def pruned(network: nn.Module) -> nn.Module:
    """A network without the members of weight 0; a committee of which one member is left becomes that member."""
    if not isinstance(network, Committee):
        return network
    kept = [(pruned(member), weight) for member, weight in zip(network.members, network.weights) if weight]
    if len(kept) == 1:
        return kept[0][0]
    return Committee([member for member, _ in kept], [weight for _, weight in kept], network.combine)


def first_transformer(network: nn.Module) -> VisionTransformer:
    """The first `VisionTransformer` in a network.

    Raises:
        ValueError: if there is none.
    """
    found = transformers(network)
    if not found:
        raise ValueError(f"there is no VisionTransformer in this {type(network).__name__}")
    return found[0]
