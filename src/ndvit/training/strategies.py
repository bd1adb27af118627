"""How Lightning runs a training on several devices: with copies of the network (DDP), or with parts of it (FSDP2)."""

import ndvit._torchvision  # noqa: F401  (lightning imports torchvision)

# isort: split
from inspect import signature
from typing import Any

import torch
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ndvit.config.recipe import Recipe
from ndvit.processes import size, started
from ndvit.training.module import TrainingModule


def distributed_settings(strategy: str) -> dict[str, Any]:
    """Arguments of Lightning's Trainer for the processes that have joined, see `processes.joined`."""
    if not (distributed.is_available() and distributed.is_initialized()):
        # Without it, Lightning would take a job of SLURM for a training on all of its tasks.
        return {"devices": 1, "plugins": [LightningEnvironment()]}
    place = started()
    assert place is not None
    environment: ClusterEnvironment = TorchElasticEnvironment()
    if place.by == "SLURM":
        environment = SLURMEnvironment(auto_requeue=False)
    kind: DDPStrategy | ModelParallelStrategy
    if strategy == "fsdp":
        kind = Sharded(data_parallel_size=size(), tensor_parallel_size=1, save_distributed_checkpoint=False)
    else:
        # Buffers need no copies from the first process: the statistics of BatchNorm are computed over all processes.
        known = signature(DistributedDataParallel).parameters
        copies: dict[str, Any] = {
            "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False
        }
        # Gradients live in the memory that is sent, which saves a copy of them, and their memory a second time.
        kind = DDPStrategy(gradient_as_bucket_view=True, **copies)
    return {"devices": place.devices, "num_nodes": place.nodes, "strategy": kind, "plugins": [environment]}


def check_sharding(recipe: Recipe) -> None:
    """Raise a ValueError for options that a network in parts does not have."""
    if recipe.strategy != "fsdp":
        return
    without = {
        "ema_decay": recipe.ema_decay is not None,
        "lora": recipe.lora is not None,
        "precision": recipe.precision == "16-mixed",
        "optimizer": recipe.optimizer == "lamb",
    }
    if idle := [f"{name}={getattr(recipe, name)}" for name, used in without.items() if used]:
        raise ValueError(
            f"{' and '.join(idle)}: not with strategy fsdp, in which each device has a part of the weights; leave it "
            "out (optimizer: adamw), or use strategy ddp"
        )


class Sharded(ModelParallelStrategy):
    """FSDP2 with checkpoints of one file that hold what those of other strategies hold, so that any of them resumes.

    Lightning numbers the parameters in the state of an optimizer in the order of the module here, and in the order of
    the optimizer's groups elsewhere.
    """

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state of an optimizer in the first process; nothing in the others."""
        assert self.model is not None
        names = self._names(optimizer)
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        found: dict[str, Any] = get_optimizer_state_dict(self.model, optimizer, options=options)
        return _renamed(found, {name: i for i, name in enumerate(names)}) if found else {}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint, and give each process its part of weights and optimizer states."""
        assert self.model is not None
        options = StateDictOptions(full_state_dict=True)
        checkpoint: dict[str, Any] = torch.load(checkpoint_path, map_location="cpu", weights_only=True, mmap=True)
        set_model_state_dict(self.model, checkpoint.pop("state_dict"), options=options)
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            named = _renamed(state, dict(enumerate(self._names(optimizer))))
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict=named, options=options)
        return checkpoint

    def _names(self, optimizer: Optimizer) -> list[str]:
        """Names of the parameters in the groups of an optimizer."""
        assert self.model is not None
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _renamed(state: dict[str, Any], names: dict[Any, Any]) -> dict[str, Any]:
    """The state of an optimizer with other keys for its parameters."""
    groups = [{**group, "params": [names[one] for one in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[one]: values for one, values in state["state"].items()}, "param_groups": groups}


class ShardedModule(TrainingModule):
    """`TrainingModule` of which each process has a part of every weight; a block is whole while it is computed."""

    def configure_model(self) -> None:
        """Shard the blocks of the transformer, what is around them, and an objective."""
        assert self.device_mesh is not None
        mesh = self.device_mesh["data_parallel"]
        for block in self.trained.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(self.trained, mesh=mesh)
        for name in ("features", "stages"):  # objectives call these instead of forward
            register_fsdp_forward_method(self.trained, name)
        if self.objective is not None:
            fully_shard(self.objective, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """A tensor in parts as a whole one, in all processes, which call this together; others unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module, whose tensors may be in parts, on the CPU."""
    return {name: whole(tensor.detach()).cpu() for name, tensor in module.state_dict().items()}
