"""`Model`: a network together with what its inputs and outputs mean. The one object that users and all doors hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ndvit.config.recipe import Device
from ndvit.evaluation.base import Evaluation
from ndvit.explain import explain as _explain
from ndvit.explain.explain import Explanation, Target
from ndvit.explain.features import features
from ndvit.explain.methods import Method
from ndvit.exporting.formats import Format
from ndvit.exporting.runtimes import Runtime
from ndvit.inference import embed as _embed
from ndvit.inference import evaluate as _evaluate
from ndvit.inference import predict as _predict
from ndvit.inference.embed import Embeddings
from ndvit.inference.evaluate import Split
from ndvit.inference.predict import Log
from ndvit.inference.watching import INTERVAL, watch_folder
from ndvit.network.committee import Committee
from ndvit.network.fast import only_read_tokens
from ndvit.parts import ModelParts, is_result
from ndvit.tasks.base import Prediction
from ndvit.weights.file import write_model

if TYPE_CHECKING:
    from ndvit.exporting.bundle import BundleReport
    from ndvit.exporting.export import ExportReport


class Model(ModelParts):
    """A model that predicts, evaluates, embeds, exports and saves; see `ModelParts` for its attributes.

    `model.network` is the plain `nn.Module`, for training loops of your own. Attributes that a model lacks, such as
    `eval`, `parameters` or `state_dict`, are those of its network.

    Example:
        >>> import torch
        >>> import ndvit
        >>> network = ndvit.create_model("vit_pico", input_size=(64,), patch_size=8, in_channels=1, num_classes=3)
        >>> model = ndvit.Model(network)
        >>> model(torch.zeros(2, 1, 64)).shape  # raw outputs of preprocessed inputs
        torch.Size([2, 3])
        >>> model.config.input_size
        (64,)
    """

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.input_shape))
        parts = f"{type(self.network).__name__}, input {size}, {self.task and self.task.name}, {self.device}"
        return f"Model({parts}; model(x) are raw outputs, model.predict_proba(x) answers)"

    def __call__(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Raw outputs (B, outputs) of preprocessed inputs: for classification logits, which are no probabilities.

        Their softmax is not what `predict` returns, as it lacks the division by `temperature`: use `predict_proba`. A
        graph that was exported with `softmax` returns the logarithm of probabilities.

        Args:
            x: (B, C, *input_size), as `preprocess` yields them.
            mask: (B, *input_size) boolean, True where a value was observed; None if all were.
        """
        with only_read_tokens(self.network):
            outputs: Tensor = self.network(x, mask)
            return outputs

    def __getattr__(self, name: str) -> Any:
        """The network's attribute of this name, such as `eval`, `parameters` or `forward_features`."""
        if name.startswith("__") or "network" not in self.__dict__:  # as while a copy is made
            raise AttributeError(name)
        try:
            return getattr(self.network, name)
        except AttributeError:
            raise AttributeError(f"neither Model nor its {type(self.network).__name__} has {name!r}") from None

    @property
    def members(self) -> list[Model]:
        """The members of an ensemble as models; the model itself if it is not an ensemble."""
        network = self.network
        if not isinstance(network, Committee):
            return [self]
        if network.combine == "outputs" and self.provenance.get("members") != len(network.members):
            return [self]  # networks of one member
        facts = {k: v for k, v in self.provenance.items() if k != "members" and not is_result(k)}
        models = []
        for i, member in enumerate(network.members):
            prefix = f"members.{i}."
            new = [name.removeprefix(prefix) for name in self.untrained if name.startswith(prefix)]
            models.append(Model(member, self.task, self.preprocess, untrained=new, provenance={**facts, "member": i}))
        return models

    def to(self, device: str | torch.device) -> Model:
        """Move the network to a device and return the model.

        Raises:
            ValueError: for an exported or compiled network, which stays where it was made.
        """
        if isinstance(self.network, Runtime):
            if torch.device(device).type != torch.device(self.network.device).type:
                raise ValueError(f"{self.network.name} runs on the {self.network.device} and cannot be moved")
            return self
        self.network.to(device)
        return self

    def predict(
        self,
        *inputs: Any,
        per_window: bool = False,
        on_fault: Log | None = None,
        batch_size: int = 64,
        device: Device = "auto",
        progress: bool = True,
        log: Log = print,
        **reading: Any,
    ) -> list[Prediction]:
        """Predict new examples. The answer for a recording that is cut into windows is the mean of theirs.

        Args:
            *inputs: pictures, recordings or files of arrays (a file may hold many examples), or folders of such files;
                or arrays (n, time) or (n, channels, time, ...), lists of arrays, lists of PIL images.
            per_window: return the answer for each window instead, with `start` and `end` in seconds where the sample
                rate is known, else in samples.
            on_fault: receives the fault of each file or example that cannot be answered, so that the others are; None
                raises an error.
            batch_size: examples per forward pass.
            device: where to compute.
            progress: show a progress bar.
            log: receives each line about what was read.
            **reading: fields of `FileOptions` (window, skip_bad, ...); by default as in the model's training.

        Returns:
            One prediction for each example; for classification with `name`, `label` and `probabilities`.

        Raises:
            ValueError: if a file cannot be read, or is not of the kind that the model was trained on.
        """
        reading |= {"per_window": per_window, "on_fault": on_fault, "batch_size": batch_size}
        return _predict.predict(self, *inputs, device=self._device(device), progress=progress, log=log, **reading)

    def watch(
        self,
        folder: str | Path,
        output: str | Path,
        *,
        per_window: bool = False,
        once: bool = False,
        interval: float = INTERVAL,
        log: Log = print,
        **options: Any,
    ) -> int:
        """Predict each new file of a folder as soon as it is complete, and append its answers to a CSV.

        Args:
            folder: where files appear, also in folders below.
            output: the CSV. One that exists is continued: what it has is not answered again.
            per_window: as in `predict`.
            once: stop after the files that are there.
            interval: seconds between two looks at the folder.
            log: receives a line for each file.
            **options: batch_size, device, and fields of `FileOptions`, as in `predict`.

        Returns:
            The number of files that were answered. SIGINT and SIGTERM end the call after the file in work.

        Raises:
            ValueError: as in `predict` before the first file; for a CSV of something else.
            FileExistsError: if another process writes to the CSV.
            OSError: if the CSV cannot be written.
        """
        options["device"] = self._device(options.get("device", "auto"))
        return watch_folder(
            self, folder, output, per_window=per_window, once=once, interval=interval, log=log, **options
        )

    def predict_to(
        self,
        *inputs: Any,
        output: str | Path,
        per_window: bool = False,
        force: bool = False,
        on_fault: Log | None = None,
        batch_size: int = 64,
        device: Device = "auto",
        progress: bool = True,
        log: Log = print,
        **reading: Any,
    ) -> int:
        """Predict any number of examples into a table with one row each, in the order of the examples.

        Answers are written in parts into a folder beside the output, so that a call that was killed continues when it
        is repeated; parts of another model or of other examples are not used. The memory that is needed does not depend
        on the number of answers. Several processes of torchrun or SLURM share the examples.

        Args:
            *inputs: as in `predict`.
            output: a .parquet or a .csv.
            per_window: as in `predict`.
            force: replace an existing output.
            on_fault: as in `predict`.
            batch_size: examples per forward pass.
            device: where to compute.
            progress: show a progress bar.
            log: receives each line about what was read.
            **reading: as in `predict`.

        Returns:
            The number of rows; 0 in all processes but the first.

        Raises:
            ValueError: as in `predict`.
            FileExistsError: if the output exists and `force` is not set, or another process writes it.
        """
        from ndvit.inference.to_file import predict_to

        reading |= {"per_window": per_window, "force": force, "on_fault": on_fault, "batch_size": batch_size}
        reading |= {"device": self._device(device), "progress": progress, "log": log}
        return predict_to(self, *inputs, output=output, **reading)

    def predict_proba(
        self,
        *inputs: Any,
        mask: Tensor | None = None,
        batch_size: int = 64,
        device: Device = "auto",
        progress: bool = False,
        log: Log = print,
        **reading: Any,
    ) -> Tensor | np.ndarray:
        """Probabilities (n, classes) in the order of `classes`, the same numbers that `predict` and `evaluate` use.

        They are the activation of the task of the outputs divided by `temperature`; for tasks without probabilities,
        the answers (n, outputs).

        `predict_proba("a.jpg", "b.jpg")` and `predict_proba(array)` read raw examples. `predict_proba(x)` and
        `predict_proba(x, mask)` with a tensor x take inputs of the network, as `model(x, mask)` does.

        Args:
            *inputs: raw examples as in `predict`, except tensors; or one tensor (n, C, *input_size) as `preprocess`
                returns them. Without its mask all its values count as observed.
            mask: (n, *input_size) boolean of a tensor, True where a value was observed; None if all were.
            batch_size: examples per forward pass.
            device: where to compute.
            progress: show a progress bar.
            log: receives each line about what was read.
            **reading: as in `predict`.

        Returns:
            An array, float32; for a tensor a tensor on the device that computed it.

        Raises:
            ValueError: as in `predict`; for a tensor of another shape; for a tensor together with raw examples.
        """
        reading |= {"batch_size": batch_size, "device": self._device(device), "progress": progress, "log": log}
        return _predict.predict_proba(self, *inputs, mask=mask, **reading)

    def evaluate(
        self,
        source: Any,
        *,
        split: Split = "auto",
        predictions: str | Path | None = None,
        force: bool = False,
        batch_size: int = 64,
        device: Device = "auto",
        progress: bool = True,
        log: Log = print,
        **reading: Any,
    ) -> Evaluation:
        """Test the model on data with targets.

        Of recordings that are cut into windows, the results are those per recording, with those per window beside them
        (`windows`, see `RecordingEvaluation`).

        Args:
            source: as in `train`.
            split: "test", "train" or "all". "auto" is the test set if the source has one, or if the model was trained
                on this very source, which is then split as in training; other data is tested as a whole.
            predictions: a .csv to write name, target, group and answer of each example to.
            force: replace that file if it exists.
            batch_size: examples per forward pass.
            device: where to compute.
            progress: show a progress bar.
            log: receives each line about what was read.
            **reading: fields of `ReadingOptions` (skip_bad, group_by, ...). By default as in the model's training;
                skip_bad, drop_copies and group_by only for the same source.

        Raises:
            ValueError: if the targets are not those of the model, or the data is of another kind.
        """
        reading |= {"batch_size": batch_size, "device": self._device(device), "progress": progress, "log": log}
        return _evaluate.evaluate(self, source, split=split, predictions=predictions, force=force, **reading)

    def embed(
        self,
        source: Any,
        *,
        output: str | Path | None = None,
        force: bool = False,
        split: Split = "auto",
        seed: int | None = None,
        batch_size: int = 64,
        device: Device = "auto",
        progress: bool = True,
        log: Log = print,
        **reading: Any,
    ) -> Embeddings:
        """Compute the features that the head reads; for an ensemble, those of all members side by side.

        Args:
            source: data with targets as in `train`, or files and folders as in `predict`.
            output: an .npz or .parquet file to write, see `Embeddings.save`.
            force: replace that file if it exists.
            split: "train", "test", or "all" data with targets; "auto" is all, with targets or without.
            seed: seed of the split of data that has none; None is that of the model's training if it was on this
                source, else 0.
            batch_size: examples per forward pass.
            device: where to compute.
            progress: show a progress bar.
            log: receives each line about what was read.
            **reading: fields of `ReadingOptions`, as in `evaluate`; test_fraction is by default that of the model's
                training if it was on this source, else 0.2.

        Raises:
            ValueError: for data that the network cannot read, an exported model, or weights that lack more than a head.
            FileExistsError: if the output exists and `force` is not set.
        """
        self._refuse_runtime("has no features")
        reading |= {"batch_size": batch_size, "device": self._device(device), "progress": progress, "log": log}
        return _embed.embed(self, source, output=output, force=force, split=split, seed=seed, **reading)

    def explain(
        self,
        *inputs: Any,
        mask: Tensor | None = None,
        target: Target = None,
        method: Method | None = None,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        steps: int = 50,
        occlude: int | Sequence[int] | None = None,
        bands: int | Sequence[float] | None = None,
        batch_size: int = 16,
        device: Device = "auto",
        progress: bool = False,
        log: Log = print,
        **reading: Any,
    ) -> list[Explanation]:
        """Compute the relevance of each sample, pixel or voxel of examples for the model's answers.

        Args:
            *inputs: raw examples as in `predict`, or a tensor of inputs of the network as in `predict_proba`.
            mask: of a tensor, as in `predict_proba`.
            target: index or name of the output that is explained, such as a class, or one for each example; None is the
                highest output for classes, and the first one for numbers.
            method: None is what measures best for the network, see docs/explain.md. "attention" (of the last block),
                "rollout", "gradient_rollout", "midpoint_rollout", "midpoint_gradient_rollout", "gradient" (absolute),
                "gradient_x_input", "integrated_gradients" and "occlusion" (both by captum, `pip install
                'ndvit[explain]'`), or "contributions", which are exact in time, for random convolutions.
            layers: blocks whose attention counts; negative ones count from the end. None is the last block for
                "attention", and all blocks for the rollouts.
            heads: attention heads that count; None is all.
            steps: of integrated gradients.
            occlude: samples along each axis that occlusion replaces at a time; None makes some 32 windows.
            bands: number of octaves of frequency, or rising edges of bands (Hz for recordings, cycles per sample for
                arrays), whose relevance is computed, too; for signals of one axis.
            batch_size: examples in one forward pass.
            device: where to compute.
            progress: show a progress bar.
            log: receives each line about what was read.
            **reading: fields of `FileOptions` (skip_bad, ...); by default as in the model's training.

        Returns:
            One `Explanation` for each example, whose `relevance` is in the coordinates of the example as it was read:
            before it was resized, cropped or padded.

        Raises:
            ValueError: as in `predict`; for an unknown output, or a method that does not exist for the network.
        """
        reading |= {"batch_size": batch_size, "progress": progress, "log": log, "device": self._device(device)}
        how: dict[str, Any] = {"target": target, "method": method, "layers": layers, "heads": heads}
        return _explain.explain(self, *inputs, mask=mask, steps=steps, occlude=occlude, bands=bands, **how, **reading)

    def features(
        self,
        *inputs: Any,
        mask: Tensor | None = None,
        layers: int | Sequence[int] | None = None,
        grid: bool = False,
        prefix: bool = False,
        norm: bool = True,
        batch_size: int = 64,
        device: Device = "auto",
        log: Log = print,
        **reading: Any,
    ) -> Tensor | list[Tensor] | list[tuple[Tensor, Tensor]]:
        """Tokens of chosen blocks, as DINOv2's `get_intermediate_layers` returns them, or the features before the head.

        Args:
            *inputs: raw examples as in `predict`, or a tensor of inputs of the network as in `predict_proba`. Tensors
                keep the graph of autograd.
            mask: of a tensor, as in `predict_proba`.
            layers: indices of blocks, where negative ones count from the end; an int is the number of last blocks. None
                returns what the head reads instead, (B, width).
            grid: return the patches as a grid, (B, D, *grid), instead of (B, N, D). A patch that was merged with others
                has the token that stands for all of them.
            prefix: also return the class, distillation and register tokens: in front of the patches, or with `grid` as
                the second tensor (B, prefix, D) of a pair.
            norm: apply the network's last norm to the tokens of every block.
            batch_size: raw examples in one forward pass.
            device: where raw examples are computed.
            log: receives each line about what was read.
            **reading: fields of `FileOptions` (skip_bad, ...); by default as in the model's training.

        Returns:
            One tensor, or pair, for each block in the order of `layers`.

        Raises:
            ValueError: for blocks that do not exist, and for a model that has not one transformer: an ensemble has
                `members`.
        """
        self._refuse_runtime("has no features")
        how: dict[str, Any] = {"layers": layers, "grid": grid, "prefix": prefix, "norm": norm, **reading}
        return features(self, *inputs, mask=mask, batch_size=batch_size, device=device, log=log, **how)

    def export(
        self,
        path: str | Path | None = None,
        *,
        format: Format = "onnx",
        int8: bool = False,
        fp16: bool = False,
        opset: int | None = None,
        data: Any = None,
        dynamic_batch: bool = True,
        softmax: bool = False,
        preprocess: Literal["beside", "inside"] = "beside",
        mask: bool | None = None,
        force: bool = False,
        min_agreement: float = 0.98,
        min_saving: float = 0.25,
        log: Log = print,
    ) -> ExportReport:
        """Write the model as a file that runs without ndvit, after comparing its answers with the model's.

        See `ndvit.exporting.export.export` for the arguments and errors.
        """
        from ndvit.exporting.export import export

        self._refuse_runtime("is exported already")
        self.warn_of_assumptions()
        return export(
            self,
            path,
            format=format,
            int8=int8,
            fp16=fp16,
            opset=opset,
            data=data,
            dynamic_batch=dynamic_batch,
            softmax=softmax,
            preprocess=preprocess,
            mask=mask,
            force=force,
            min_agreement=min_agreement,
            min_saving=min_saving,
            log=log,
        )

    def export_bundle(self, folder: str | Path, **options: Any) -> BundleReport:
        """Write a folder that answers raw files without ndvit and torch, in Python and in a browser.

        See `ndvit.exporting.bundle.export_bundle` for the options and errors.
        """
        from ndvit.exporting.formats import require

        self._refuse_runtime("is exported already")
        require("a bundle", "onnxruntime", "onnx", "onnxscript")
        from ndvit.exporting.bundle import export_bundle

        return export_bundle(self, folder, **options)

    def save(self, path: str | Path) -> None:
        """Write everything into one .safetensors file, which `load_model` reads.

        The file appears whole or not at all. It holds plain tensors and JSON: nothing in it can be executed.

        Raises:
            ValueError: for an exported or compiled model.
        """
        self._refuse_runtime("has no weights to save")
        write_model(self, path)

    def with_network(self, network: nn.Module) -> Model:
        """A model that differs in its network only."""
        return replace(self, network=network)

    def _device(self, device: Device) -> Device:
        if isinstance(self.network, Runtime):
            own = self.network.device
            if device not in ("auto", own, own.partition(":")[0]):
                raise ValueError(f"{self.network.name} runs on the {own}: leave device {device} out")
            return own.partition(":")[0]  # type: ignore[return-value]
        return device

    def _refuse_runtime(self, reason: str) -> None:
        if isinstance(self.network, Runtime):
            raise ValueError(f"{self.network.name} {reason}: use the model that it was made of")
