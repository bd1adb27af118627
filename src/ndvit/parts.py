"""The parts of a model: a network, and what its inputs and outputs mean. `ndvit.model.Model` adds what it can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ndvit.config import ViTConfig
from ndvit.data.messages import warn
from ndvit.data.preprocess.base import Preprocess
from ndvit.load_report import LoadReport, WeightsWarning
from ndvit.network.committee import first_transformer, network_shape
from ndvit.tasks.base import Task


@dataclass(eq=False, repr=False)
class ModelParts:
    """One or several networks, with the task, the preprocessing and everything else that travels in a model file.

    Attributes:
        network: a `VisionTransformer`, a `SolvedNetwork`, a `Committee` of networks, or a `Runtime` that runs an
            exported or compiled network. It is put into eval mode.
        task: what the outputs mean; None if unknown, as for some published weights.
        preprocess: turns examples into inputs of the network; None if unknown.
        temperature: the outputs are divided by it before the task's activation.
        untrained: names of tensors that are newly initialised in a network with trained weights, such as a new head.
        provenance: plain facts about the training, which travel in the model file.
        load_report: what `load_model` did to every tensor; None for a network that was not loaded.

    Raises:
        ValueError: if task or preprocessing do not fit the network.
    """

    network: nn.Module
    task: Task | None = None
    preprocess: Preprocess | None = None
    temperature: float = 1.0
    untrained: Sequence[str] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    load_report: LoadReport | None = None
    _warned = False  # no field: a model with another network warns again

    def __post_init__(self) -> None:
        self.network.eval()
        self.untrained, self.provenance = tuple(self.untrained), dict(self.provenance)
        shape = network_shape(self.network)
        if shape is None:  # a runtime, whose file was checked when it was written
            return
        expected, outputs = shape
        if self.task is not None and self.task.num_outputs != outputs:
            raise ValueError(f"the task has {self.task.num_outputs} outputs, the network {outputs}")
        if self.preprocess is not None and expected != (self.preprocess.channels, *self.preprocess.size):
            yields = (self.preprocess.channels, *self.preprocess.size)
            raise ValueError(f"the preprocessing yields inputs of {yields}, the network takes {expected}")

    @property
    def config(self) -> ViTConfig:
        """Config of the network, or of the first transformer of several.

        Raises:
            ValueError: if there is none.
        """
        config = getattr(self.network, "config", None)
        return config if isinstance(config, ViTConfig) else first_transformer(self.network).config

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Channels and size of an input of the network."""
        shape = network_shape(self.network)
        return self.network.input_shape if shape is None else shape[0]  # type: ignore[return-value]  # of a runtime

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of the outputs; empty if unknown and for other tasks."""
        return getattr(self.task, "classes", ())

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels of the examples that the model was trained on; empty if they had none."""
        names = self.provenance.get("channel_names")
        return tuple(map(str, names)) if isinstance(names, list | tuple) else ()

    def warn_of_assumptions(self) -> None:
        """Raise a `WeightsWarning` at the first use of weights of which something was assumed."""
        if self.load_report is not None and self.load_report.assumed and not self._warned:
            self._warned = True
            assumed = "; ".join(self.load_report.assumed)
            warn(f"assumed of {self.load_report.source} (`ndvit info` says more): {assumed}", WeightsWarning)

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        own = getattr(self.network, "device", None)  # of a runtime, which has no parameters
        return torch.device(own) if own else next((p.device for p in self.network.parameters()), torch.device("cpu"))


def is_result(fact: str) -> bool:
    """Whether a fact of the provenance is a result of a test, which belongs to the very network that was tested."""
    return fact.startswith("test_") and fact != "test_fraction"
