"""Structure of a network as plain values: the networks inside it, their sizes, and how their outputs are combined.

A structure is one of

    {"kind": "vit", "config": ViTConfig.to_dict()}
    {"kind": "random_convolutions", "channels": c, "length": n, "features": f, "outputs": k}
    {"kind": "encoder_features", "config": ViTConfig.to_dict(), "channels": c, "length": n, "outputs": k, "local": b}
    {"kind": "level_features", "channels": c, "length": n, "outputs": k}
    {"kind": "committee", "combine": "outputs" or "probabilities", "weights": [...], "members": [structure, ...]}

The tensors of member i of a committee have the prefix `members.i.`.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, TypeVar

from torch import nn

from ndvit.config import ViTConfig
from ndvit.config.bounds import brief
from ndvit.network import VisionTransformer
from ndvit.network.committee import Committee, output_committees
from ndvit.network.encoder_features import EncoderFeatures
from ndvit.network.level_features import LevelFeatures
from ndvit.network.random_convolutions import RandomConvolutions

Structure = dict[str, Any]
T = TypeVar("T")

# Sizes of the networks whose heads are solved, in the order of their arguments (after the config of an encoder).
_SIZES = {
    "random_convolutions": ("channels", "length", "features", "outputs"),
    "encoder_features": ("channels", "length", "outputs"),
    "level_features": ("channels", "length", "outputs"),
}
_KEYS = {
    "vit": ("config",),
    "random_convolutions": _SIZES["random_convolutions"],
    "encoder_features": ("config", *_SIZES["encoder_features"], "local"),
    "level_features": _SIZES["level_features"],
    "committee": ("combine", "weights", "members"),
}
# Files come from strangers: these bounds keep a few bytes of header from building a huge network.
_LARGEST, _MOST_NETWORKS, _DEEPEST = 2**31, 1000, 4


def structure_of(network: nn.Module) -> Structure:
    """The structure of a network.

    Raises:
        ValueError: for a module that no structure describes, such as an exported graph.
    """
    if isinstance(network, VisionTransformer):
        return {"kind": "vit", "config": network.config.to_dict()}
    if isinstance(network, RandomConvolutions):
        sizes: tuple[int, ...] = (*network.shape, network.num_features, network.head.out_features)
        return {"kind": "random_convolutions", **dict(zip(_SIZES["random_convolutions"], sizes))}
    if isinstance(network, EncoderFeatures):
        sizes = (*network.shape, network.head.out_features)
        config = network.encoder.config.to_dict()
        structure = {"kind": "encoder_features", "config": config, **dict(zip(_SIZES["encoder_features"], sizes))}
        return structure | ({"local": True} if network.starts else {})
    if isinstance(network, LevelFeatures):
        sizes = (*network.shape, network.head.out_features)
        return {"kind": "level_features", **dict(zip(_SIZES["level_features"], sizes))}
    if isinstance(network, Committee):
        members = [structure_of(member) for member in network.members]
        return {"kind": "committee", "combine": network.combine, "weights": list(network.weights), "members": members}
    raise ValueError(f"a {type(network).__name__} cannot be stored: use the network that it was made from")


def check_structure(values: Any, depth: int = 0) -> Structure:
    """Check the bounds of a structure that was read from a file, and fill in defaults.

    The constructors of the networks check everything else.

    Raises:
        ValueError, TypeError, KeyError: if the values describe no network, or too many of them.
    """
    kind = values["kind"]
    if unknown := values.keys() - {"kind", *_KEYS.get(kind, values)}:
        raise ValueError(f"a {kind} has no {', '.join(sorted(unknown))[:60]}, it has {', '.join(_KEYS[kind])}")
    if kind not in _KEYS:
        raise ValueError(f"a network is a {', '.join(_KEYS)}; got {str(kind)[:40]!r}")
    if kind != "committee":
        checked: Structure = {"kind": kind}
        if "config" in _KEYS[kind]:
            checked["config"] = ViTConfig.from_dict(values["config"]).to_dict()
        for name in _SIZES.get(kind, ()):
            if type(values[name]) is not int or not 1 <= values[name] <= _LARGEST:
                raise ValueError(f"{name} must be a whole number from 1 to {_LARGEST:,}, got {str(values[name])[:20]}")
            checked[name] = values[name]
        if values.get("local", False) is not False:
            if values["local"] is not True:
                raise ValueError(f"local must be true or false, got {brief(values['local'])}")
            checked["local"] = True
        return checked
    if depth == _DEEPEST or len(list(islice(networks_in(values), _MOST_NETWORKS + 1))) > _MOST_NETWORKS:
        raise ValueError(f"committees nest at most {_DEEPEST} deep and have at most {_MOST_NETWORKS:,} networks")
    members = [check_structure(member, depth + 1) for member in values["members"]]
    if not members:
        raise ValueError("a committee needs at least one member")
    if not isinstance(values["weights"], list | tuple) or any(type(w) not in (int, float) for w in values["weights"]):
        raise ValueError(f"the weights of a committee are a list of numbers, got {brief(values['weights'])}")
    return {"kind": kind, "combine": values["combine"], "weights": list(values["weights"]), "members": members}


def networks_in(structure: Structure, prefix: str = "") -> Iterator[tuple[str, Structure]]:
    """Every network inside that is no committee, in order, behind the prefix of its tensors' names."""
    if structure["kind"] != "committee":
        yield prefix, structure
        return
    for i, member in enumerate(structure["members"]):
        yield from networks_in(member, f"{prefix}members.{i}.")


def configs_in(structure: Structure) -> list[ViTConfig]:
    """The configs of all transformers inside, in order, without those of frozen encoders."""
    return [ViTConfig.from_dict(part["config"]) for _, part in networks_in(structure) if part["kind"] == "vit"]


def inputs_of(structure: Structure) -> tuple[int, tuple[int, ...]]:
    """Channels and size of the inputs."""
    _, first = next(networks_in(structure))
    if first["kind"] == "vit":
        return first["config"]["in_channels"], tuple(first["config"]["input_size"])
    return first["channels"], (first["length"],)


def outputs_of(structure: Structure) -> int:
    """Number of outputs."""
    _, first = next(networks_in(structure))
    outputs: int = first["config"]["num_classes"] if first["kind"] == "vit" else first["outputs"]
    return outputs


def below(entries: Mapping[str, T], prefix: str) -> dict[str, T]:
    """The entries whose names have a prefix, under their names without it."""
    return {name.removeprefix(prefix): entry for name, entry in entries.items() if name.startswith(prefix)}


def make_network(structure: Structure) -> nn.Module:
    """A new network of this structure.

    Raises:
        ValueError: if the structure makes no network.
    """
    if structure["kind"] == "vit":
        return VisionTransformer(ViTConfig.from_dict(structure["config"]))
    if structure["kind"] in _SIZES:
        sizes = [structure[name] for name in _SIZES[structure["kind"]]]
        if structure["kind"] == "random_convolutions":
            return RandomConvolutions(*sizes)
        if structure["kind"] == "level_features":
            return LevelFeatures(*sizes)
        local = structure.get("local", False)  # files of earlier versions have none
        channels, length, outputs = sizes
        return EncoderFeatures(ViTConfig.from_dict(structure["config"]), channels, length, outputs, local)
    members = [make_network(member) for member in structure["members"]]
    return Committee(members, structure["weights"], structure["combine"])


def summary(structure: Structure) -> str:
    """The network in one line."""
    if structure["kind"] == "committee":
        lines = [summary(member) for member in structure["members"]]
        if structure["combine"] == "outputs":
            return ", with ".join(lines)
        return f"{len(lines)} members, {f'each {lines[0]}' if len(set(lines)) == 1 else '; '.join(lines)}"
    if structure["kind"] == "random_convolutions":
        return f"{structure['features']:,} random convolution features"
    if structure["kind"] == "encoder_features":
        config = ViTConfig.from_dict(structure["config"])
        return f"a frozen encoder, {config.embed_dim} wide, {config.depth} blocks"
    if structure["kind"] == "level_features":
        return "level and spread of each channel"
    config = ViTConfig.from_dict(structure["config"])
    size = times((config.in_channels, *config.input_size))
    stem = f", {config.stem} stem {config.stem_depths}" if config.stem != "none" else ""
    merged = f", {config.merge_tokens} tokens merged in each block" if config.merge_tokens else ""
    return (
        f"{config.embed_dim} wide, {config.depth} blocks, {config.num_heads} heads, input {size}{stem}, patch "
        f"{times(config.patch_size)}, {config.num_classes} outputs{merged}"
    )


def describe_weights(network: nn.Module) -> str:
    """How much each member of a network counts in its answer, in one line."""
    committees = output_committees(network)
    if not committees:
        return summary(structure_of(network))
    members = zip(committees[0].members, committees[0].weights)
    parts = [f"{summary(structure_of(member))}: {100 * weight:.0f} %" for member, weight in members]
    first = "first member: " if len(committees) > 1 else ""
    return first + "; ".join(parts)


def times(sizes: tuple[int, ...]) -> str:
    """Sizes along several axes in words, such as 16 x 16."""
    return " x ".join(map(str, sizes))
