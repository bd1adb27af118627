"""Weights fitted to another network: against timm, torch and formulas, and every tensor accounted for."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from ndvit.config import ViTConfig
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.load_report import Change, LoadReport
from ndvit.network import VisionTransformer
from ndvit.network.grid import resample, resize_matrix
from weightfiles import as_model, load_model, save_model

SMALL = dict(embed_dim=24, depth=2, num_heads=2, num_classes=5)
CONFIGS = {
    "1d": dict(input_size=(32,), patch_size=4, in_channels=2),
    "2d": dict(input_size=(16, 24), patch_size=4),
    "3d": dict(input_size=(8, 8, 16), patch_size=4, in_channels=1),
    "distilled": dict(input_size=(16, 16), patch_size=4, distilled=True, num_registers=2),
    "registers": dict(input_size=(16, 16), patch_size=4, num_registers=2, pos_embed_prefix=False, layer_scale=0.1),
    "average": dict(input_size=(16, 16), patch_size=4, pooling="avg", qkv_bias=False),
    "representation": dict(input_size=(16, 16), patch_size=4, representation_size=24),
    "map": dict(input_size=(16, 16), patch_size=4, pooling="map", class_token=False),
    "sincos": dict(input_size=(16, 16), patch_size=4, pos_embed="sincos"),
    "rope": dict(input_size=(16, 16), patch_size=4, pos_embed="rope"),
    "hybrid": dict(input_size=(32, 32), patch_size=1, stem="resnet", stem_depths=(1, 2), stem_width=32),
    "root": dict(input_size=(32, 32), patch_size=2, stem="resnet", stem_depths=(), stem_width=32),
}


def trained(name, **values):
    """A network whose tensors all differ from what a new one starts with."""
    torch.manual_seed(sum(name.encode()))
    model = VisionTransformer(ViTConfig(**(SMALL | CONFIGS[name] | values))).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2 if p.ndim > 1 else 0.5)
    return as_model(model, "abcde"[: model.config.num_classes])


@pytest.fixture
def adapted(tmp_path):
    """Save a network and load it adapted: the old one and the new one."""

    def of(model, **values):
        model = trained(model) if isinstance(model, str) else model
        save_model(model, tmp_path / "m.safetensors")
        return model, load_model(tmp_path / "m.safetensors", **values)

    return of


def batch(model, n=2):
    return torch.randn(n, model.config.in_channels, *model.config.input_size)


def grid_of(model):
    """The positions of the patches: (D, *grid)."""
    patches = model.pos_embed.detach()[0, -model.config.num_patches :]
    return patches.T.unflatten(1, model.config.grid)


def same(a, b, *but):
    """Names of tensors that both have with equal values, less those that are expected to differ."""
    a, b = a.state_dict(), b.state_dict()
    return {n for n in a.keys() & b.keys() if torch.equal(a[n], b[n])} - set(but)


# resampling


@pytest.mark.parametrize(("old", "new"), [(8, 4), (4, 8), (7, 3), (3, 7), (14, 24), (24, 14), (1, 5), (5, 1), (2, 9)])
def test_one_axis_is_torchs_interpolation(old, new):
    matrix = resize_matrix(old, new)
    assert matrix.shape == (new, old)
    torch.testing.assert_close(matrix.sum(1), torch.ones(new, dtype=torch.float64))
    x = torch.randn(6, old, dtype=torch.float64)
    row = F.interpolate(x[:, None, None], size=(1, new), mode="bicubic", antialias=True)[:, 0, 0]  # (1, N): right
    torch.testing.assert_close(resample(x, [matrix]), row)
    assert len(set(resample(x, [matrix])[0].tolist())) == (new if old > 1 else 1)  # not copies of the first
    # a symmetric filter commutes with a flip
    torch.testing.assert_close(resample(x.flip(1), [matrix]), row.flip(1))


@pytest.mark.parametrize("n", [1, 2, 7, 14])
def test_equal_sizes_change_nothing(n):
    assert torch.equal(resize_matrix(n, n), torch.eye(n, dtype=torch.float64))
    x = torch.randn(3, n)
    assert torch.equal(resample(x, [resize_matrix(n, n)]), x)


@pytest.mark.parametrize(("old", "new"), [((4, 16), (8, 8)), ((14, 14), (7, 9)), ((5, 6), (12, 3)), ((3, 3), (24, 24))])
def test_axes_one_by_one_are_the_plane(old, new):
    x = torch.randn(2, 3, *old)
    plane = F.interpolate(x.double(), size=new, mode="bicubic", antialias=True)
    separate = resample(x, [resize_matrix(o, n) for o, n in zip(old, new)])
    assert separate.dtype == torch.float32
    torch.testing.assert_close(separate.double(), plane, atol=1e-6, rtol=1e-6)
    assert resample(x.half(), [resize_matrix(o, n) for o, n in zip(old, new)]).dtype == torch.float32


@pytest.mark.parametrize(
    ("old", "new"),
    [((8, 8), (12, 12)), ((8, 8), (3, 3)), ((4, 16), (8, 8)), ((8, 8), (4, 16)), ((14, 14), (7, 20)), ((6, 4), (6, 9))],
)
def test_positions_equal_timms(adapted, old, new):
    from timm.layers import resample_abs_pos_embed

    size = {name: tuple(2 * n for n in grid) for name, grid in (("old", old), ("new", new))}
    model, again = adapted(trained("2d", input_size=size["old"], patch_size=2), input_size=size["new"])
    expected = resample_abs_pos_embed(model.pos_embed, list(new), list(old), num_prefix_tokens=1)
    torch.testing.assert_close(again.pos_embed, expected, atol=1e-5, rtol=1e-5)
    assert (again.pos_embed.shape != model.pos_embed.shape) or not torch.equal(again.pos_embed, model.pos_embed)
    assert torch.equal(again.pos_embed[:, 0], model.pos_embed[:, 0])
    change = next(c for c in again.load_report.adapted if c.name == "pos_embed")
    assert (change.before, change.after) == (tuple(model.pos_embed.shape), tuple(again.pos_embed.shape))
    assert f"{old[0]} x {old[1]} to {new[0]} x {new[1]}" in change.how
    assert same(model, again) == model.state_dict().keys() - {"pos_embed"}


@pytest.mark.parametrize("patch", [(8, 8), (2, 2), (6, 3), (4, 12), (3, 5)])
def test_patches_equal_timms(adapted, patch):
    from timm.layers import resample_patch_embed

    model = trained("2d", input_size=(8, 12))
    model, again = adapted(model, input_size=(2 * patch[0], 3 * patch[1]), patch_size=patch)
    expected = resample_patch_embed(model.patch_embed.proj.weight, list(patch))
    torch.testing.assert_close(again.patch_embed.proj.weight, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(again.pos_embed, model.pos_embed)  # the same grid
    assert same(model, again) == model.state_dict().keys() - {"patch_embed.proj.weight"}


@pytest.mark.parametrize(("name", "patch"), [("1d", (9,)), ("2d", (8, 5)), ("3d", (6, 4, 8))])
def test_larger_patches_answer_resized_inputs_as_before(adapted, name, patch):
    model = trained(name)
    size = tuple(g * p for g, p in zip(model.config.grid, patch))
    model, again = adapted(model, patch_size=patch, input_size=size)
    x = torch.randn(2, model.config.in_channels, *model.config.patch_size)
    resized = resample(x, [resize_matrix(p, q) for p, q in zip(model.config.patch_size, patch)])
    small, large = model.patch_embed.proj.weight.flatten(1), again.patch_embed.proj.weight.flatten(1)
    torch.testing.assert_close(resized.flatten(1) @ large.T, x.flatten(1) @ small.T, atol=2e-4, rtol=1e-4)


def test_smaller_patches_are_the_least_squares_answer(adapted):
    model, again = adapted("1d", patch_size=2, input_size=16)
    old, new = model.patch_embed.proj.weight.double(), again.patch_embed.proj.weight.double()
    matrix = resize_matrix(4, 2)
    error = new @ matrix - old  # <w', R x> - <w, x> as a function of x
    torch.testing.assert_close(error @ matrix.T, torch.zeros(24, 2, 2, dtype=torch.float64), atol=1e-6, rtol=0)


# through files: size, patch, both


def test_no_options_change_nothing(adapted):
    for name in CONFIGS:
        model, again = adapted(name)
        assert same(model, again) == model.state_dict().keys() == again.state_dict().keys(), name
        x = batch(model)
        with torch.no_grad():
            assert torch.equal(again(x), model(x)), name
        report = again.load_report
        assert (report.adapted, report.new, report.ignored, again.untrained) == ((), (), {}, ()), name
        assert set(report.loaded) == model.state_dict().keys()
        assert (again.classes, again.config) == (model.classes, model.config)
    # saying what is so already is no change either
    model, again = adapted("2d", input_size=[16, 24], patch_size=4, in_channels=3, num_classes=5, channels="mean")
    assert same(model, again) == model.state_dict().keys()


def test_an_int_is_the_same_along_every_axis(adapted):
    for name, grid in (("1d", (8,)), ("2d", (8, 8)), ("3d", (8, 8, 8))):
        model, again = adapted(name, input_size=32)
        assert again.config.grid == grid
        expected = resample(grid_of(model), [resize_matrix(o, n) for o, n in zip(model.config.grid, grid)])
        torch.testing.assert_close(grid_of(again), expected)
        assert again(batch(again)).shape == (2, 5)


@pytest.mark.parametrize("name", ["1d", "2d", "3d", "registers", "distilled", "map", "root"])
def test_size_and_patch_at_once(adapted, name):
    model = trained(name)
    dims = len(model.config.input_size)
    token = 6 * model.config.stem_stride
    model, again = adapted(model, input_size=token * 3, patch_size=6)
    assert again.config.grid == (3,) * dims
    patches = [torch.linalg.pinv(resize_matrix(p, 6).T) for p in model.config.patch_size]
    torch.testing.assert_close(again.patch_embed.proj.weight, resample(model.patch_embed.proj.weight, patches))
    places = [resize_matrix(g, 3) for g in model.config.grid]
    torch.testing.assert_close(grid_of(again), resample(grid_of(model), places))
    assert same(model, again) == model.state_dict().keys() - {"patch_embed.proj.weight", "pos_embed"}


def test_what_was_resized_is_saved_exactly(adapted, tmp_path):
    for name in ("2d", "hybrid", "rope", "sincos"):
        _, once = adapted(name, input_size=(64,), num_classes=3, in_channels=1)
        save_model(once, tmp_path / "again.safetensors")
        twice = load_model(tmp_path / "again.safetensors")
        assert same(once, twice) == once.state_dict().keys() == twice.state_dict().keys()
        assert twice.untrained == once.untrained == ("head.weight", "head.bias")
        x = batch(once)
        with torch.no_grad():
            assert torch.equal(once(x), twice(x))


def test_half_precision_is_resampled_in_single(adapted):
    for name, values in (
        ("2d", dict(input_size=(24, 16), patch_size=2, in_channels=2)),
        ("2d", dict(input_size=(40,))),
        ("1d", dict(input_size=(16, 16), in_channels=3)),
        ("distilled", dict(pos_embed_prefix=False)),
    ):
        half = trained(name)
        half.network.half()
        _, from_half = adapted(half, **values)
        half.network.float()
        _, from_single = adapted(half, **values)  # the same values
        assert same(from_half, from_single) == from_single.state_dict().keys()
        assert {t.dtype for t in from_half.state_dict().values()} == {torch.float32}
    half = trained("2d")
    half.network.half()
    _, resized = adapted(half, input_size=(24, 16))
    assert not torch.equal(resized.pos_embed, resized.pos_embed.half().float())  # its digits were not cut


# channels


@pytest.mark.parametrize(("had", "want"), [(3, 1), (1, 3), (3, 12), (3, 4), (2, 5), (5, 2)])
@pytest.mark.parametrize("rule", ["sum", "mean", "repeat", None])
@pytest.mark.parametrize("name", ["2d", "hybrid"])
def test_channels(adapted, had, want, rule, name):
    model, again = adapted(trained(name, in_channels=had), in_channels=want, channels=rule)
    kernel = "patch_embed.backbone.stem.conv.weight" if name == "hybrid" else "patch_embed.proj.weight"
    old, new = (m.state_dict()[kernel] for m in (model, again))
    assert same(model, again) == model.state_dict().keys() - {kernel}
    chosen = rule or ("sum" if want == 1 else "repeat")
    expected = {
        "sum": old.sum(1, keepdim=True).expand_as(new) / want,
        "mean": old.mean(1, keepdim=True).expand_as(new),
        "repeat": torch.stack([old[:, i % had] for i in range(want)], dim=1) * had / want,
    }[chosen]
    torch.testing.assert_close(new, expected)
    if chosen == "sum" or (chosen == "repeat" and want % had == 0):  # channels that are equal are answered as before
        torch.testing.assert_close(new.sum(1), old.sum(1), atol=1e-5, rtol=1e-5)
    (change,) = again.load_report.adapted
    assert str(change) == f"{kernel} {tuple(old.shape)} -> {tuple(new.shape)}: {had} channels to {want} by {chosen}"


def test_a_grey_picture_is_seen_as_before(adapted):
    model, again = adapted("2d", in_channels=1)
    grey = torch.randn(2, 1, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(again(grey), model(grey.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-5)


# other axes


def test_pictures_to_signals_by_hand(adapted):
    model, again = adapted("2d", input_size=(64,))
    assert (again.config.grid, again.config.patch_size) == ((16,), (4,))
    by_hand = VisionTransformer(ViTConfig(**(SMALL | dict(input_size=(64,), patch_size=4)))).eval()
    tensors = dict(model.state_dict())
    tensors["patch_embed.proj.weight"] = tensors["patch_embed.proj.weight"].sum(2)
    rows = tensors["pos_embed"][:, 1:].reshape(1, 4, 6, 24).mean(1)  # over the height
    rows = F.interpolate(rows.mT[:, :, None], size=(1, 16), mode="bicubic", antialias=True)[:, :, 0].mT
    tensors["pos_embed"] = torch.cat([tensors["pos_embed"][:, :1], rows], dim=1)
    by_hand.load_state_dict(tensors)
    x = torch.randn(2, 3, 64)
    with torch.no_grad():
        torch.testing.assert_close(again(x), by_hand(x), atol=1e-5, rtol=1e-5)
        # a picture that does not change along its height has the signal's patches, row by row
        signal = torch.randn(2, 3, 24)
        patches = model.patch_embed(signal[:, :, None].expand(-1, -1, 16, -1)).view(2, 4, 6, 24)
        line = again.patch_embed(signal)[:, None]
        torch.testing.assert_close(patches, line.expand_as(patches), atol=1e-5, rtol=1e-5)
    blocks = {n for n in model.state_dict() if n.startswith("blocks.")}
    assert blocks < same(model, again) == model.state_dict().keys() - {"patch_embed.proj.weight", "pos_embed"}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_every_kind_goes_into_any_number_of_axes(adapted, name, dims):
    model = trained(name)
    size = (6 * model.config.token_size[0],) * dims
    model, again = adapted(model, input_size=size)
    assert again.config.patch_size == model.config.patch_size[:1] * dims
    assert again.untrained == ()
    differ = {"patch_embed.proj.weight", "pos_embed", "rope_periods"}
    differ |= {n for n in model.state_dict() if n.startswith("patch_embed.backbone.") and "conv" in n}
    assert model.state_dict().keys() - same(model, again) <= differ
    x = batch(again)
    with torch.no_grad():
        assert torch.isfinite(again(x)).all()
    if dims > len(model.config.input_size):  # kernels are spread: what is the same along new axes is seen as before
        added = dims - len(model.config.input_size)
        kernel = again.patch_embed.proj.weight.sum(tuple(range(2, 2 + added)))
        torch.testing.assert_close(kernel, model.patch_embed.proj.weight, atol=1e-5, rtol=1e-5)


def test_an_array_of_equal_rows_is_the_signal(adapted):
    """1-D to 2-D and 3-D: every patch of a picture that does not change along its new axis is the signal's patch."""
    for dims in (2, 3):
        model, again = adapted("1d", input_size=(8,) * (dims - 1) + (32,))
        signal = batch(model)
        x = signal.view(2, 2, *[1] * (dims - 1), 32).expand(-1, -1, *again.config.input_size)
        with torch.no_grad():
            tokens = again.patch_embed(x).view(2, -1, 8, 24)
            expected = model.patch_embed(signal)[:, None].expand_as(tokens)
            torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)
            expected = grid_of(model).view(24, *[1] * (dims - 1), 8).expand(-1, *again.config.grid)
            assert torch.equal(grid_of(again), expected)


def test_there_and_back(adapted):
    model, signal = adapted("2d", input_size=(24,))
    assert torch.equal(grid_of(signal), grid_of(model).mean(1))
    _, picture = adapted(signal, input_size=(16, 24))
    _, again = adapted(picture, input_size=(24,))
    assert same(signal, again, "patch_embed.proj.weight") == signal.state_dict().keys() - {"patch_embed.proj.weight"}
    torch.testing.assert_close(again.patch_embed.proj.weight, signal.patch_embed.proj.weight)


def test_a_stem_for_signals(adapted):
    model, again = adapted("hybrid", input_size=(64,))
    stem = {n: t for n, t in model.state_dict().items() if n.startswith("patch_embed.") and t.ndim == 4}
    assert len(stem) == 13  # root, three units of three, two shortcuts, the patches
    for name, kernel in stem.items():
        assert torch.equal(again.state_dict()[name], kernel.sum(2)), name
    assert again(batch(again)).shape == (2, 5)


# heads, tokens, pooling, positions


def test_other_classes_get_a_new_head(adapted):
    model, again = adapted("2d", num_classes=7)
    assert again.untrained == again.load_report.new == ("head.weight", "head.bias")
    assert again.load_report.ignored.keys() == {"head.weight", "head.bias"}
    assert again.classes == ()
    assert again.head.weight.std().item() == pytest.approx(0.01, rel=0.3)
    assert same(model, again) == model.state_dict().keys() - {"head.weight", "head.bias"}
    x = batch(model)
    with torch.no_grad():
        assert torch.equal(again.stages(x).encoded, model.stages(x).encoded)
    model, again = adapted("distilled", num_classes=7)
    assert again.untrained == ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")
    model, bare = adapted("2d", num_classes=0)
    assert (bare.untrained, bare.load_report.new) == ((), ())
    with torch.no_grad():
        # the network computes the class token alone in its last block: rounding differs
        torch.testing.assert_close(bare(x), model.stages(x).encoded[:, 0], atol=1e-5, rtol=1e-5)
    _, grown = adapted(bare, num_classes=3)
    assert grown.untrained == ("head.weight", "head.bias")


def test_what_was_untrained_stays_so(adapted):
    _, again = adapted("2d", num_classes=7)
    _, twice = adapted(again, input_size=32)
    assert twice.untrained == ("head.weight", "head.bias")
    assert twice.load_report.new == ()
    _, bare = adapted(again, num_classes=0)
    assert bare.untrained == ()
    _, registers = adapted(again, num_registers=1)
    assert registers.untrained == ("head.weight", "head.bias", "reg_token")


def test_tokens_and_their_positions(adapted):
    model, again = adapted("distilled", distilled=False, num_registers=0)
    old, new = model.pos_embed[0], again.pos_embed[0]
    assert torch.equal(new, torch.cat([old[:1], old[4:]]))
    assert again.load_report.ignored.keys() == {"dist_token", "reg_token", "head_dist.weight", "head_dist.bias"}
    assert again.untrained == ()

    model, again = adapted("2d", num_registers=3)
    assert torch.equal(again.pos_embed[:, 1:4], torch.zeros(1, 3, 24))
    assert torch.equal(again.pos_embed[:, [0, *range(4, 28)]], model.pos_embed)
    assert again.untrained == ("reg_token",)

    model, again = adapted("2d", distilled=True)
    assert again.untrained == ("dist_token", "head_dist.weight", "head_dist.bias")
    assert again.config.num_prefix_tokens == 2

    model, again = adapted("distilled", num_registers=3)
    assert again.untrained == ("reg_token",)
    assert torch.equal(again.pos_embed[:, :2], model.pos_embed[:, :2])
    assert torch.equal(again.pos_embed[:, 5:], model.pos_embed[:, 4:])

    model, again = adapted("2d", class_token=False, pooling="avg")
    assert torch.equal(again.pos_embed, model.pos_embed[:, 1:])
    assert again.load_report.ignored.keys() == {"cls_token"}
    model, again = adapted("2d", class_token=False, num_registers=1, pooling="avg")  # as many, but others
    assert torch.equal(again.pos_embed[:, 1:], model.pos_embed[:, 1:])
    assert torch.equal(again.pos_embed[:, :1], torch.zeros(1, 1, 24))


@pytest.mark.parametrize("name", ["2d", "distilled"])
def test_positions_of_the_prefix_may_move_into_its_tokens(adapted, name):
    model, again = adapted(name, pos_embed_prefix=False)
    assert again.pos_embed.shape[1] == model.config.num_patches
    x = batch(model)
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x), atol=1e-5, rtol=1e-5)  # the same function
        _, back = adapted(again, pos_embed_prefix=True)
        assert torch.equal(back(x), again(x))
    assert torch.equal(back.pos_embed[0, 0], torch.zeros(24))
    assert {c.name for c in again.load_report.adapted} >= {"cls_token", "pos_embed"}
    _, resized = adapted(name, pos_embed_prefix=False, input_size=32)
    change = next(c for c in resized.load_report.adapted if c.name == "pos_embed")
    assert change.before == tuple(model.pos_embed.shape)
    assert change.after == (1, 64, 24)
    assert change.how.endswith("resampled bicubically per axis; rows of the prefix tokens fitted")


def test_no_prefix_has_no_positions_to_move(adapted):
    model, again = adapted("map", pos_embed_prefix=False)
    assert again.load_report.adapted == ()
    assert torch.equal(again.pos_embed, model.pos_embed)


def test_the_final_norm_goes_where_the_pooling_wants_it(adapted):
    model, again = adapted("2d", pooling="avg")
    assert torch.equal(again.fc_norm.weight, model.norm.weight)
    assert again.untrained == ()
    _, back = adapted(again, pooling="token")
    assert same(model, back) == model.state_dict().keys()
    model, again = adapted("average", pooling="norm_avg")
    assert torch.equal(again.norm.bias, model.fc_norm.bias)
    assert [str(c) for c in again.load_report.adapted] == [
        f"norm.{leaf}: was fc_norm: the final norm changes its place" for leaf in ("weight", "bias")
    ]


def test_a_head_is_new_where_it_would_read_something_else(adapted):
    head = ("head.weight", "head.bias")
    for name, values, new in (
        ("2d", dict(pooling="token_avg"), head),
        ("2d", dict(representation_size=24), ("pre_logits.fc.weight", "pre_logits.fc.bias", *head)),
        ("representation", dict(representation_size=None), head),  # as wide, but what it reads is gone
        ("representation", dict(representation_size=8), ("pre_logits.fc.weight", "pre_logits.fc.bias", *head)),
        ("map", dict(pooling="norm_avg"), head),
    ):
        _, again = adapted(name, **values)
        assert again.untrained == again.load_report.new == new, values
        assert again.load_report.ignored.keys() >= set(head)
        assert again(batch(again)).shape == (2, 5)
    _, again = adapted("2d", pooling="map")
    assert set(again.untrained) == {n for n in again.state_dict() if n.startswith(("attn_pool.", "head."))}


def test_fewer_blocks(adapted):
    model, again = adapted("2d", depth=1)
    assert again.load_report.ignored == {n: "depth is 1" for n in model.state_dict() if n.startswith("blocks.1.")}
    assert again.untrained == ()
    with pytest.raises(ValueError, match="these weights have 2 blocks; depth=3 needs more of them"):
        adapted("2d", depth=3)


def test_biases_that_were_left_out_are_zero(adapted):
    model, again = adapted("average", qkv_bias=True)
    assert again.untrained == ()
    x = batch(model)
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x), atol=1e-6, rtol=1e-5)
    assert [c.name for c in again.load_report.adapted] == ["blocks.0.attn.qkv.bias", "blocks.1.attn.qkv.bias"]


def test_other_kinds_of_positions(adapted):
    model, again = adapted("2d", pos_embed="sincos")
    fresh = VisionTransformer(again.config)
    assert torch.equal(again.pos_embed, fresh.pos_embed)
    assert again.load_report.ignored == {"pos_embed": "positions are computed for the new grid"}
    _, rope = adapted(again, pos_embed="rope")
    assert torch.equal(rope.rope_periods, VisionTransformer(rope.config).rope_periods)
    assert rope.load_report.ignored == {"pos_embed": "positions are rotations in the new network"}
    assert rope.untrained == ()
    _, learned = adapted(rope, pos_embed="learned")
    assert learned.untrained == ("pos_embed",)
    assert learned.load_report.ignored.keys() == {"rope_periods"}
    # sines as the start of learned positions
    model, learned = adapted("sincos", pos_embed="learned")
    assert isinstance(learned.pos_embed, torch.nn.Parameter)
    assert torch.equal(learned.pos_embed, model.pos_embed)
    model, learned = adapted("sincos", pos_embed="learned", num_registers=1)
    assert torch.equal(learned.pos_embed[:, 2:], model.pos_embed[:, 1:])
    assert learned.untrained == ("reg_token",)


def test_sines_are_computed_for_every_grid(adapted):
    for values in (dict(input_size=32), dict(num_registers=2), dict(pos_embed_prefix=False), dict(input_size=(64,))):
        _, again = adapted("sincos", **values)
        assert torch.equal(again.pos_embed, VisionTransformer(again.config).pos_embed)
        assert "pos_embed" not in {c.name for c in again.load_report.adapted}


def test_periods_follow_axes_and_base(adapted):
    model = trained("rope")
    model.rope_periods.mul_(1.01)  # as trained ones are: not what a formula gives
    _, again = adapted(model, input_size=64)
    assert torch.equal(again.rope_periods, model.rope_periods)
    for values in (dict(input_size=(64,)), dict(rope_base=1000.0)):
        _, again = adapted(model, **values)
        assert torch.equal(again.rope_periods, VisionTransformer(again.config).rope_periods)
        assert again.load_report.ignored.keys() == {"rope_periods"}


# what cannot be


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("2d", dict(num_class=3), r"ViTConfig has no field 'num_class': did you mean 'num_classes'\?"),
        ("2d", dict(map_location="cpu"), "ViTConfig has no field 'map_location'"),
        ("2d", dict(embed_dim=32), "embed_dim is 24 in these weights and cannot be 32: the tensors would not fit"),
        ("2d", dict(embed_dim=25), "embed_dim is 24 in these weights and cannot be 25"),
        ("2d", dict(mlp_ratio=2.0), r"mlp_ratio is 4\.0 in these weights and cannot be 2\.0"),
        ("2d", dict(stem="resnet"), "stem is none in these weights and cannot be resnet"),
        ("hybrid", dict(stem="none"), "stem is resnet in these weights and cannot be none"),
        ("hybrid", dict(stem_depths=[1]), r"stem_depths is \(1, 2\) in these weights and cannot be \[1\]"),
        ("hybrid", dict(stem_width=64), "stem_width is 32 in these weights and cannot be 64"),
        ("2d", dict(qk_norm=True), "qk_norm is False in these weights and cannot be True"),
        ("2d", dict(pre_norm=True), "pre_norm is False in these weights"),
        ("2d", dict(patch_norm=True), "patch_norm is False in these weights"),
        ("2d", dict(activation="swiglu"), "activation is gelu in these weights, and swiglu has other tensors"),
        ("2d", dict(layer_scale=0.1), "layer_scale is None in these weights; with 0.1 the network"),
        ("registers", dict(layer_scale=None), "layer_scale is 0.1 in these weights; with None the"),
        ("2d", dict(num_heads=4), "num_heads is 2 in these weights and cannot be 4"),
        ("2d", dict(input_size=30), r"input_size \(30, 30\) is not divisible by patch_size \(4, 4\)"),
        ("2d", dict(input_size=(30,)), r"input_size \(30,\) is not divisible by patch_size \(4,\)"),
        ("2d", dict(input_size=()), "input_size is empty"),
        ("2d", dict(input_size="224"), "input_size must be a whole number of at least 1, got '224'"),
        ("2d", dict(input_size=(8, 8, 8, 8)), "one, two or three dimensions"),
        ("2d", dict(patch_size=(4,) * 3), r"patch_size \(4, 4, 4\) has 3 axes but input_size \(16, 24\) has 2"),
        ("2d", dict(depth="2"), "depth must be a whole number of at least 1, got '2'"),
        ("2d", dict(class_token=False), "pooling='token' reads the class token"),
        ("2d", dict(in_channels=1, channels="average"), "channels must be one of sum, mean, repeat; got 'average'"),
        ("2d", dict(channels="average"), "channels must be one of sum, mean, repeat; got 'average'"),
    ],
)  # fmt: skip
def test_what_cannot_be_says_why(adapted, name, values, message):
    with pytest.raises(ValueError, match=message):
        adapted(name, **values)


def test_rope_where_a_head_is_too_narrow(adapted):
    with pytest.raises(ValueError, match="rope in 3 dimensions needs a head width divisible by 6, got embed_dim 16"):
        adapted(trained("rope", embed_dim=16), input_size=(8, 8, 8))


# the report


OVERRIDES = {
    "nothing": {},
    "size": dict(input_size=64),
    "axes": dict(input_size=(96,)),
    "volume": dict(input_size=(32, 32, 32)),
    "channels": dict(in_channels=7),
    "classes": dict(num_classes=3),
    "tokens": dict(num_registers=1, pos_embed_prefix=False),
    "norms": dict(qkv_bias=True, depth=1, pos_embed="sincos"),
    "all": dict(input_size=(64,), patch_size=2, in_channels=1, num_classes=0, depth=1, num_registers=4, qkv_bias=True),
}


@pytest.mark.parametrize("overrides", OVERRIDES.values(), ids=OVERRIDES)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_is_accounted_for_once(adapted, name, overrides):
    model, again = adapted(name, **overrides)
    report = again.load_report
    old, new = set(model.state_dict()), set(again.state_dict())
    changed = [c.name for c in report.adapted]
    zeros = {c.name for c in report.adapted if c.how.startswith("zeros")}
    # the file's side
    taken = [*report.loaded, *(n for n in changed if n not in zeros), *report.ignored]
    assert sorted(taken) == sorted(old)
    # the network's side
    computed = {n for n, _ in again.named_buffers()} - {*report.loaded, *changed}
    assert sorted([*report.loaded, *changed, *report.new, *computed]) == sorted(new)
    assert again.untrained == report.new
    for change in report.adapted:
        assert change.after == tuple(again.state_dict()[change.name].shape)
        assert change.name in zeros or change.before == tuple(model.state_dict()[change.name].shape)
    for n in report.loaded:
        assert torch.equal(again.state_dict()[n], model.state_dict()[n]), n
    assert json.loads(json.dumps(report.to_dict()))["loaded"] == len(report.loaded)
    lines = str(report).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 120
    assert again(batch(again)).isfinite().all()


def test_the_report_of_a_large_hybrid_is_one_screen(adapted):
    config = dict(input_size=(64, 64), patch_size=1, stem="resnet", stem_depths=(3, 4, 6, 3), stem_width=32)
    config |= dict(embed_dim=24, num_heads=2, depth=24, num_classes=1000, qkv_bias=False, representation_size=24)
    model = as_model(VisionTransformer(ViTConfig(**config, num_registers=3)))
    wanted = dict(depth=20, qkv_bias=True, representation_size=None, num_registers=1, pooling="avg", num_classes=10)
    _, again = adapted(model, input_size=(512,), in_channels=1, **wanted)
    lines = str(again.load_report).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 120
    text = " ".join(line[9:] for line in lines)
    assert "patch_embed.backbone.stages.0.blocks.0.conv1.weight and 52 more: 2 axes to 1: summed along" in text
    assert (
        "stem.conv.weight (32, 3, 7, 7) -> (32, 1, 7): 2 axes to 1: summed along the first axis; 3 channels to" in text
    )
    assert "blocks.2.attn.qkv.bias and 17 more: zeros, as the weights have no bias" in text
    assert "pos_embed (1, 8, 24) -> (1, 18, 24): grid 2 x 2 to 16: mean along the first axis; resampled" in text
    assert "more: depth is 20" in text
    assert len(json.dumps(again.load_report.to_dict())) < 4000


def test_how_a_report_reads():
    report = LoadReport(
        source="vit.npz",
        kind="google",
        network="24 wide",
        loaded=("norm.weight",),
        adapted=(
            Change("pos_embed", (1, 5, 8), (1, 17, 8), "resampled"),
            *(Change(n, (2,), (2,), "moved") for n in "ab"),
        ),
        new=("head.weight",),
        ignored={"mask_token": "not used", "c": "gone", "d": "gone"},
        assumed=("num_heads 3, usual at width 192; set num_heads=",),
        notes=("a note",),
    )
    assert str(report).splitlines() == [
        "weights  vit.npz: google layout",
        "network  24 wide",
        "note     a note",
        "assumed  num_heads 3, usual at width 192; set num_heads=",
        "loaded   1 tensor unchanged",
        "adapted  pos_embed (1, 5, 8) -> (1, 17, 8): resampled",
        "adapted  a, b: moved",
        "new      head.weight: initialised, to be trained",
        "ignored  mask_token: not used",
        "ignored  c, d: gone",
    ]
    many = LoadReport("x" * 300, "k", "n", ignored={f"{'t' * 30}{i}": f"reason {i}" for i in range(40)})
    lines = str(many).splitlines()
    assert lines[-1] == "ignored  and 36 more such lines"
    assert len(lines) <= 24
    one = LoadReport("s", "k", "n", new=("n" * 200, "m"))
    assert "and 1 more: initialised" in " ".join(str(one).split())


# preprocessing


COLOUR = ImagePreprocess(size=(16, 24), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.1), crop_fraction=0.9)


@pytest.fixture
def pictures(adapted):
    def of(**values):
        model = trained("2d")
        model.preprocess = COLOUR
        return adapted(model, **values)[1]

    return of


def test_preprocessing_follows_the_network(pictures):
    from dataclasses import replace

    assert pictures().preprocess == COLOUR
    assert pictures(input_size=32).preprocess == replace(COLOUR, size=(32, 32))
    grey = pictures(in_channels=1).preprocess
    assert (grey.mode, grey.channels, grey.size, grey.crop_fraction) == ("L", 1, (16, 24), 0.9)
    assert (*grey.mean, *grey.std) == pytest.approx((0.4, 0.2))
    signal = pictures(input_size=(64,))
    assert signal.preprocess is None
    assert "the preprocessing was for another number of axes, and is left out" in signal.load_report.notes
    many = pictures(in_channels=5)
    assert many.preprocess is None
    assert "the preprocessing was for 3 channels, and is left out" in many.load_report.notes


def test_grey_preprocessing_becomes_colour(adapted):
    model = trained("2d", in_channels=1)
    model.preprocess = ImagePreprocess(size=(16, 24), mean=(0.5,), std=(0.25,), mode="L")
    _, again = adapted(model, in_channels=3)
    assert (again.preprocess.mode, again.preprocess.mean, again.preprocess.std) == ("RGB", (0.5,) * 3, (0.25,) * 3)


def test_preprocessing_of_signals(adapted):
    model = trained("1d")
    model.preprocess = SignalPreprocess(size=(32,), mean=(0.0, 1.0), std=(1.0, 2.0), sample_rate=8000.0)
    _, again = adapted(model, input_size=64)
    assert (again.preprocess.size, again.preprocess.sample_rate) == ((64,), 8000.0)
    _, again = adapted(model, in_channels=1)
    assert again.preprocess is None


def test_fields_of_preprocessing_can_be_set(pictures, adapted):
    from dataclasses import replace

    again = pictures(preprocess=dict(mean=(0.1, 0.2, 0.3), resize="stretch"), input_size=32)
    assert again.preprocess == replace(COLOUR, size=(32, 32), mean=(0.1, 0.2, 0.3), resize="stretch")
    with pytest.raises(ValueError, match=r"preprocess has no field maen: it has .*mean, std, .*mode"):
        pictures(preprocess=dict(maen=(0.5,) * 3))
    with pytest.raises(ValueError, match="preprocess has no effect: these weights have no preprocessing"):
        adapted("2d", preprocess=dict(mean=(0.5,) * 3))


def test_fields_of_preprocessing_are_set_on_what_was_adapted(pictures):
    assert pictures(in_channels=1, preprocess=dict(mean=(0.5,), std=(0.2,))).preprocess.mode == "L"
    with pytest.raises(ValueError, match="preprocess yields 1 channels, and the network reads 3"):
        pictures(preprocess=dict(mode="L", mean=(0.5,), std=(0.2,)))
    with pytest.raises(ValueError, match="no effect: the preprocessing was for another number of axes"):
        pictures(input_size=(64,), preprocess=dict(mean=(0.5,) * 3))
    with pytest.raises(ValueError, match=r"mean and std need a list of one number for each channel; got mean=0\.5"):
        pictures(preprocess=dict(mean=0.5))


def test_what_was_measured_of_another_network_is_not_kept(adapted):
    model = trained("2d")
    model.provenance = {"test_accuracy": 0.9, "source": "pets"}
    _, again = adapted(model, input_size=32)
    assert again.provenance == {"source": "pets"}


@pytest.mark.parametrize("classes", ["abcde", ["a", "a"]])
def test_names_of_classes_are_a_list_of_different_ones(pictures, classes):
    with pytest.raises(ValueError, match="classes must be a list of different names, got"):
        pictures(classes=classes)


def test_an_adapted_model_keeps_its_classes_where_its_head_is_kept(pictures):
    assert pictures(input_size=32).classes == tuple("abcde")
    assert pictures(num_classes=3).classes == ()


def test_named_classes(pictures):
    assert pictures(classes=list("abcde")).untrained == ()
    for classes in (list("vwxyz"), ["cat", "dog"]):  # as many, but others; fewer
        again = pictures(classes=classes)
        assert again.classes == tuple(classes)
        assert again.untrained == ("head.weight", "head.bias")
        assert again.load_report.ignored.keys() == {"head.weight", "head.bias"}
        assert again.config.num_classes == len(classes)
    with pytest.raises(ValueError, match="num_classes is 3, but the task has 2 outputs"):
        pictures(classes=["cat", "dog"], num_classes=3)


def rows_of(model, name="head.weight"):
    return dict(zip(model.classes, model.network.state_dict()[name]))


def test_classes_of_the_same_name_keep_their_outputs(pictures):
    model, again = pictures(), pictures(classes=["e", "new", "a"])
    for name in ("head.weight", "head.bias"):
        before, after = rows_of(model, name), rows_of(again, name)
        assert torch.equal(after["e"], before["e"])
        assert torch.equal(after["a"], before["a"])
        assert not after["new"].any()
    report = again.load_report
    assert [c.name for c in report.adapted] == ["head.weight", "head.bias"]
    assert report.adapted[0].how == "outputs by name: kept e, a; new at 0 new; left out b, c, d"
    assert (report.new, report.ignored) == ((), {})
    assert again.untrained == ("head.weight", "head.bias")
    assert again.temperature == 1


def test_classes_in_another_order_or_fewer_of_them_need_no_training(pictures):
    model = pictures()
    x = torch.randn(3, 3, *model.config.input_size)
    for classes in ("edcba", "ca"):
        again = pictures(classes=list(classes))
        assert again.untrained == ()
        assert torch.allclose(again(x), model(x)[:, ["abcde".index(name) for name in classes]], atol=1e-6)
    assert "kept c, a; left out b, d, e" in str(again.load_report)


def test_roots_of_grids_are_never_taken(adapted):
    """4 x 16 patches and 8 x 8 are as many, and not the same."""
    model, again = adapted(trained("2d", input_size=(16, 64)), input_size=(32, 32))
    assert model.pos_embed.shape == again.pos_embed.shape == (1, 65, 24)
    assert not torch.equal(model.pos_embed, again.pos_embed)
    assert math.prod(again.config.grid) == 64
