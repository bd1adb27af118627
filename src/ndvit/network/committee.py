"""Several networks of one config that answer as one ("Deep Ensembles", Lakshminarayanan et al., 2017)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ndvit.network.vit import VisionTransformer

MEMBERS = "members."
"""How the names of an ensemble's tensors begin."""


def member_name(member: int, tensor: str) -> str:
    """How an ensemble's state dict names a tensor of a member."""
    return f"{MEMBERS}{member}.{tensor}"


class Ensemble(nn.Module):
    """Networks whose probabilities are averaged; in eval mode from the start, as its members are trained one by one.

    Attributes:
        members: the networks; each is a model of its own, too.
        config: of every member.
        classes, preprocess, provenance, untrained, load_report: as those of `VisionTransformer`, for all members.
        temperature: of the mean; those of the members have no say in it.

    Raises:
        ValueError: if the members differ in anything but their weights, or there is nothing to average.
    """

    temperature: float = 1.0

    def __init__(self, members: Sequence[VisionTransformer]) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs at least one network")
        first = members[0]
        for name in ("config", "classes", "preprocess"):
            for i, member in enumerate(members):
                if getattr(member, name) != getattr(first, name):
                    raise ValueError(
                        f"members of an ensemble must have the same {name}: that of member 0 is "
                        f"{getattr(first, name)!r}, that of member {i} {getattr(member, name)!r}"
                    )
        if not first.config.num_classes:
            raise ValueError("an ensemble averages probabilities, and networks of 0 classes have none")
        self.members = nn.ModuleList(members)
        self.config = first.config
        self.classes: tuple[str, ...] = first.classes
        self.preprocess: Any = first.preprocess
        self.provenance: dict[str, Any] = {}
        self.untrained = tuple(member_name(i, name) for i, m in enumerate(members) for name in m.untrained)
        self.load_report: Any = None
        self.eval()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logarithms (B, classes) of the members' mean probabilities, so that their softmax is that mean.

        Arguments and errors as those of `VisionTransformer.forward`.
        """
        assert not self.training, "an ensemble's members are trained one by one"
        logs = torch.stack([member(x, mask).float().log_softmax(1) for member in self.members])  # (k, B, classes)
        return torch.logsumexp(logs, 0) - torch.tensor(float(len(logs))).log()


Model = VisionTransformer | Ensemble
"""What answers: one network, or several as one."""


def get_member(model: Model, number: int) -> VisionTransformer:
    """One network of an ensemble.

    Raises:
        ValueError: if it is no ensemble, or has no such member.
    """
    if not isinstance(model, Ensemble):
        raise ValueError(f"there is no member {number}: this is a network alone, no ensemble. Leave member out")
    if not 0 <= number < len(model.members):
        raise ValueError(f"there is no member {number}: the ensemble has 0 to {len(model.members) - 1}")
    member = model.members[number]
    assert isinstance(member, VisionTransformer)
    return member
