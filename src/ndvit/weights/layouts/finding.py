"""Find the Vision Transformer in a file, under any prefix and beside anything, and choose one of several.

Training programs store a network under the names of their own modules: `teacher.backbone.`, Lightning's `model.`,
`module.` of DataParallel. A prefix is found by the patch embedding, which every layout has.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ndvit.weights.errors import quantised, some
from ndvit.weights.layouts.formats import FORMATS, unknown_layout
from ndvit.weights.layouts.layout import Format, Tensors
from ndvit.weights.structure import below

_PATCHES = re.compile(
    r"(?:^|\.)(?:patch_embed\.proj|conv_proj|embeddings\.patch_embeddings(?:\.projection)?|embeddings\.patch_embedding"
    r"|tokgen_unit\.linear_encoder\.linear)\.weight$|(?:^|/)embedding/kernel$"
)
# Patch embeddings and tensors in one file: names come from strangers, and all are compared with every layout.
_MOST, _MOST_TENSORS = 20, 50_000
_DEEPEST = 16  # modules around a network
# Wrappers that change nothing but names: of torch.compile, FSDP and activation checkpointing.
_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_CHUNK = re.compile(r"^blocks\.(\d+)\.(\d+)\.(?=(?:norm1|norm2|attn|mlp|ls1|ls2|gamma_1|gamma_2)\b)")
# Modules of other libraries with the tensors of a ViT that compute something else, such as overlapping patches.
_OTHERS = re.compile(r"(?:^|\.)(?:audio_spectrogram_transformer|beit|data2vec_vision|ijepa|vilt|yolos)\.")
# Words in prefixes that mark averaged weights, with a rank: the highest one is what a program evaluates by default.
# Without such a word it is 0: MoCo evaluates its query encoder, BYOL its online network, I-JEPA its target encoder.
_AVERAGED = {"teacher": 2, "ema": 2, "swa": 2, "averaged": 2, "average": 2, "target": 1, "momentum": -1, "k": -1}
_ONLINE = {"online": 3, "current": -1}
_QUANTISED = re.compile(r"\.(?:SCB|qweight|qzeros|absmax|quant_map|weight_scale|zero_point|_packed_params.*)$")


@dataclass(frozen=True)
class Found:
    """A Vision Transformer in a file."""

    prefix: str  # of its names in the file, such as "teacher.backbone."
    format: Format
    tensors: Tensors  # by their names without the prefix


@dataclass(frozen=True)
class Chosen(Found):
    """The one that is read, and what is not."""

    ignored: dict[str, str]  # all other tensors of the file, and why
    note: str  # which one was chosen, and how to choose another; empty if the file holds nothing else


def find_networks(tensors: Mapping[str, Tensor]) -> list[Found]:
    """Every Vision Transformer among tensors, in the order of their names.

    Raises:
        ValueError: if the marks of two layouts overlap, which no tested checkpoint does, or for absurdly many networks.
    """
    anchors = [name for name in tensors if _PATCHES.search(name)]
    if len(anchors) > _MOST:
        raise ValueError(f"there are {len(anchors):,} patch embeddings, and at most {_MOST} are compared")
    if len(tensors) > _MOST_TENSORS:
        raise ValueError(f"there are {len(tensors):,} tensors, and at most {_MOST_TENSORS:,} are compared")
    formats: dict[str, Format] = {}
    for anchor in anchors:
        found = _formats_of(anchor, tensors)
        if len(found) > 1:
            raise ValueError(f"the layout could be {' or '.join(f.name for _, f in found)}: please report it")
        formats |= dict(found)
    networks = []
    for prefix, format in formats.items():
        inner = tuple(p for p in formats if p != prefix and p.startswith(prefix))
        inside = {n: t for n, t in tensors.items() if n.startswith(prefix) and not (inner and n.startswith(inner))}
        networks.append(Found(prefix, format, _unchunk(below(inside, prefix))))
    return networks


def choose_network(
    tensors: Mapping[str, Tensor], where: object, part: str | None = None, ema: bool | None = None, raw: bool = False
) -> Chosen:
    """The Vision Transformer of a file.

    Args:
        tensors: all tensors of the file.
        where: the file, for messages.
        part: its prefix, or the first words of it; None chooses.
        ema: of several copies from one training, the averaged one (a teacher, a moving average) or the other one; None
            is what the program that wrote the file evaluates.
        raw: whether that program evaluates the other one, though it stores an average beside it.

    Raises:
        ValueError: if there is none, or if several remain equally likely.
    """
    tensors = _unwrapped(tensors)
    networks = find_networks(tensors)
    if not networks:
        raise ValueError(unknown_layout(tensors, where))
    chosen = _under(networks, _WRAPPERS.sub("", part), where) if part is not None else _different(networks)
    prefixes = [network.prefix for network in networks]
    averaged = {prefix: _rank(prefix, prefixes, raw) for prefix in prefixes}
    if ema is not None:
        wanted = [network for network in chosen if averaged[network.prefix][0] == ema]
        if not wanted:
            kind = "averaged weights (of a teacher or a moving average)" if ema else "weights that are not averaged"
            raise ValueError(f"{where} has no {kind}: it has {_listed(chosen)}. Leave ema={ema} out")
        chosen = wanted
    if len(chosen) > 1 and len({_architecture(network.tensors) for network in chosen}) == 1:
        best = max(averaged[network.prefix][1] for network in chosen)
        chosen = [network for network in chosen if averaged[network.prefix][1] == best]
    if len(chosen) > 1:
        ways = " or ".join(f"{where}#{network.prefix.removesuffix('.')}" for network in chosen[:5])
        raise ValueError(f"{where} has {_listed(chosen)}, and any of them may be meant: use {ways}")
    found = chosen[0]
    _refuse_parts(found, where)
    return Chosen(
        **vars(found), ignored=_left_out(found, networks, tensors, where), note=_note(found, networks, averaged)
    )


def _formats_of(anchor: str, tensors: Mapping[str, Tensor]) -> list[tuple[str, Format]]:
    """The layouts around a patch embedding, each with the shortest prefix under which all its marks are."""
    starts = ["", *(anchor[: dot.end()] for dot in re.finditer(r"\.", anchor))][:_DEEPEST]
    names = {start: _unchunk(below(tensors, start)) for start in starts}
    found = []
    for format in FORMATS:
        start = next((start for start in starts if format.marked(names[start])), None)
        if start is not None and not format.refuses(names[start]) and not _OTHERS.search(start):
            found.append((start, format))
    return found


def _unwrapped(tensors: Mapping[str, Tensor]) -> Tensors:
    """Tensors without the names of wrappers that change nothing."""
    renamed = {_WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}
    return renamed if len(renamed) == len(tensors) else dict(tensors)


def _unchunk(tensors: Tensors) -> Tensors:
    """Number blocks through that are stored in chunks, `blocks.CHUNK.BLOCK.`, as DINOv2's training does."""
    if not any(map(_CHUNK.match, tensors)) or "blocks.0.norm1.weight" in tensors:
        return tensors
    places = sorted({(int(m[1]), int(m[2])) for m in map(_CHUNK.match, tensors) if m})
    own = len({block for _, block in places}) == len(places)  # each block has its own number already
    numbers = {place: place[1] if own else i for i, place in enumerate(places)}
    return {
        _CHUNK.sub(lambda m: f"blocks.{numbers[int(m[1]), int(m[2])]}.", name): tensor
        for name, tensor in tensors.items()
    }


def _under(networks: Sequence[Found], part: str, where: object) -> list[Found]:
    """The networks whose prefix is `part` or begins with it."""
    part = part and part.removesuffix(".") + "."
    exact = [network for network in networks if network.prefix == part]
    found = exact or [network for network in networks if network.prefix.startswith(part)]
    if not found:
        raise ValueError(f"{where} has no Vision Transformer under {part!r}: it has {_listed(networks)}")
    return found


def _different(networks: Sequence[Found]) -> list[Found]:
    """The networks without copies: a module that is stored under two names is one."""
    kept: list[Found] = []
    for network in networks:
        if not any(_same(network.tensors, other.tensors) for other in kept):
            kept.append(network)
    return kept


def _same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(
        (t.data_ptr(), t.shape) == (other[n].data_ptr(), other[n].shape) or torch.equal(t, other[n])
        for n, t in one.items()
    )


def _architecture(tensors: Tensors) -> frozenset[tuple[str, torch.Size]]:
    """The shapes inside the blocks. Those of a student and its average agree; heads and masks may differ."""
    return frozenset((name, tensor.shape) for name, tensor in tensors.items() if re.search(r"\d", name))


def _rank(prefix: str, prefixes: Sequence[str], raw: bool) -> tuple[bool, int]:
    """Whether a prefix is that of averaged weights, and its rank in a choice by default."""
    words = set(re.split(r"[^a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", prefix).lower()))
    # Lightning's WeightAveraging swaps them: the averaged weights are in its state_dict.
    if prefix.startswith("state_dict.") and any(p.startswith("current_model_state.") for p in prefixes):
        return True, 2
    averaged = [rank for word, rank in _AVERAGED.items() if word in words]
    if averaged:
        return True, -1 if raw else averaged[0]
    return False, next((rank for word, rank in _ONLINE.items() if word in words), 0)


def _refuse_parts(found: Found, where: object) -> None:
    """Refuse adapters and quantised weights, without which the network would compute something else."""
    names = list(found.tensors)
    if adapters := [name for name in names if "lora_" in name]:
        raise ValueError(
            f"{where} has LoRA adapters that are not merged into the weights ({some(adapters)}): call "
            "merge_and_unload() of its library and save that model"
        )
    for name, tensor in found.tensors.items():
        small = tensor.ndim > 1 and tensor.dtype in (torch.int8, torch.uint8)
        if small or _QUANTISED.search(name) or str(tensor.dtype).startswith("torch.float8"):
            raise ValueError(quantised(where, name, tensor.dtype))


def _left_out(found: Found, networks: Sequence[Found], tensors: Tensors, where: object) -> dict[str, str]:
    """The tensors outside of the network, and why they are not used."""
    others = {network.prefix: network.prefix.removesuffix(".") for network in networks if network is not found}
    ignored = {}
    for name in tensors:
        owner = max((p for p in [found.prefix, *others] if name.startswith(p)), key=len, default=None)
        if owner in others:
            ignored[name] = f"of another Vision Transformer in the file, which FILE#{others[owner]} reads"
        elif owner is None:
            ignored[name] = "beside the Vision Transformer in the file"
    return ignored


def _note(found: Found, networks: Sequence[Found], averaged: Mapping[str, tuple[bool, int]]) -> str:
    under = f"the Vision Transformer under {found.prefix!r} was read" if found.prefix else ""
    rest = [network for network in networks if network is not found]
    if not rest:
        return under
    kind = "averaged weights" if averaged[found.prefix][0] else "weights"
    switch = [n for n in rest if averaged[n.prefix][0] != averaged[found.prefix][0]]
    how = f"; ema={not averaged[found.prefix][0]} reads those under {switch[0].prefix!r}" if switch else ""
    return (
        f"of {len(networks)} Vision Transformers in the file, the {kind} under {found.prefix!r} were read{how}, and "
        f"FILE#PREFIX those under any prefix"
    )


def _listed(networks: Sequence[Found]) -> str:
    several = f"{len(networks)} Vision Transformers" if len(networks) > 1 else "a Vision Transformer"
    return f"{several}, under {some([repr(network.prefix) for network in networks])}"
