"""Explanations against naive computations: attention, rollouts, gradients, exact contributions, coordinates, pages."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients
from PIL import Image

from ndvit import Model, create_model
from ndvit.config import named_config
from ndvit.data.examples import Recording
from ndvit.data.preprocess.base import Extent
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.explain import methods
from ndvit.explain.attention import (
    attention,
    gradient_rollout,
    midpoint_gradient_rollout,
    midpoint_rollout,
    rollout,
)
from ndvit.explain.bands import band_relevance, octaves, usual_bands
from ndvit.explain.coordinates import blurred, to_raw, to_samples
from ndvit.explain.reasons import CORRECT, MISTAKES
from ndvit.network.committee import Committee
from ndvit.network.encoder_features import EncoderFeatures
from ndvit.network.layers import rotate
from ndvit.network.positions import rotary_table
from ndvit.network.random_convolutions import RandomConvolutions
from ndvit.tasks import Classification
from ndvit.tasks.regression import Regression
from smallnetworks import batch, patches_to_mask, spread
from tinyruns import command, run_tiny, toy

SIZES = {
    "1d": dict(input_size=(24,), patch_size=2),
    "2d": dict(input_size=(8, 12), patch_size=(2, 4)),
    "3d": dict(input_size=(4, 6, 6), patch_size=(2, 2, 3)),
}
SMALL = dict(in_channels=2, embed_dim=24, depth=3, num_heads=2, num_classes=3)
STEM = dict(stem="inception", stem_depths=(1,), stem_width=8, stem_dilations=(1,), stem_kernel=3)
NETWORKS = {
    "plain": {},
    "distilled": dict(distilled=True),
    "rope": dict(pos_embed="rope", head_dim=12),
    "merged": dict(merge_tokens=2),
    "hybrid": dict(**STEM, patch_size=1, stem_strides=(2,), pooling="stem_tokens", class_token=False),
    "map": dict(pooling="map", class_token=False),
    "mean": dict(pooling="norm_avg", class_token=False),
}
OF_NETWORKS = ("attention", "rollout", "gradient_rollout", "midpoint_rollout", "midpoint_gradient_rollout", "gradient")
OF_NETWORKS += ("gradient_x_input",)
TASK = Classification(("low", "middle", "high"))
dims = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
kinds = pytest.mark.parametrize("kind", NETWORKS)


def build(size, **values):
    torch.manual_seed(0)
    return spread(create_model("vit_pico", **(SMALL | size | values))).eval()


def masked_inputs(network, n=3):
    """Inputs, and a mask of which the second example lacks the first third of the patches."""
    patches = torch.ones(n, network.config.num_patches, dtype=torch.bool)
    patches[1, : network.config.num_patches // 3] = False
    return batch(network, n), patches_to_mask(network, patches)


def naive_attention(network, x, block):
    """softmax(q k^T) of one block, from the tokens that it reads."""
    stages = network.stages(x, blocks=[block - 1]) if block else network.stages(x)
    tokens = stages.blocks[block - 1] if block else stages.tokens
    layer = network.blocks[block]
    q, k, _ = layer.attn.qkv(layer.norm1(tokens)).chunk(3, dim=2)
    q, k = (part.unflatten(2, (network.config.num_heads, -1)).transpose(1, 2) for part in (q, k))
    if network.config.pos_embed == "rope":
        table = rotary_table(network.config.grid, network.rope_periods, network.num_prefix_tokens)
        q, k = rotate(q, table), rotate(k, table)
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(3)


# attention


@dims
@pytest.mark.parametrize("kind", ["plain", "rope"])
def test_attention_is_the_softmax_of_queries_and_keys(size, kind):
    network = build(size, **NETWORKS[kind])
    x = batch(network)
    with torch.no_grad():
        traces = network.stages(x, traced=[0, 2]).traces
        assert list(traces) == [0, 2]
        for block in traces:
            torch.testing.assert_close(traces[block].attention, naive_attention(network, x, block), atol=1e-5, rtol=0)


@dims
@kinds
def test_rows_of_attention_sum_to_one_where_values_were_observed(size, kind):
    network = build(size, **NETWORKS[kind])
    x, mask = masked_inputs(network)
    with torch.no_grad():
        for trace in network.stages(x, mask, traced=range(3)).traces.values():
            torch.testing.assert_close(trace.attention.sum(3), torch.ones(trace.attention.shape[:3]))
            absent = trace.key_mask[:, 0, 0] == 0
            assert not trace.attention.mean((1, 2))[absent].any()


@dims
@kinds
def test_tracing_does_not_change_the_outputs(size, kind):
    network = build(size, **NETWORKS[kind])
    x, mask = masked_inputs(network)
    with torch.no_grad():
        traced = network.outputs(network.stages(x, mask, traced=range(3)))
        torch.testing.assert_close(traced, network(x, mask), atol=1e-4, rtol=1e-4)


def test_attention_of_chosen_layers_and_heads_is_the_row_of_the_class_token():
    network = build(SIZES["1d"])
    x = batch(network)
    with torch.no_grad():
        expected = naive_attention(network, x, 1)[:, 1, 0, 1:]
    torch.testing.assert_close(attention(network, x, None, layers=[1], heads=[1]), expected, atol=1e-5, rtol=0)


def test_rollout_multiplies_attention_with_the_residual():
    network = build(SIZES["2d"])
    x = batch(network)
    flow = torch.eye(13)
    with torch.no_grad():
        for block in range(3):
            flow = (naive_attention(network, x, block).mean(1) + torch.eye(13)) / 2 @ flow
    torch.testing.assert_close(rollout(network, x, None), flow[:, 0, 1:], atol=1e-5, rtol=0)


def test_gradient_rollout_is_that_of_the_paper_for_a_class_token():
    network = build(SIZES["1d"])
    x = batch(network)
    traces = network.stages(x, traced=range(3))
    found = [trace.attention for trace in traces.traces.values()]
    gradients = torch.autograd.grad(network.outputs(traces)[:, 1].sum(), found)
    relevance = torch.eye(13)
    for weights, gradient in zip(found, gradients):
        relevance = relevance + (weights * gradient).relu().mean(1) @ relevance
    made = gradient_rollout(network, x, None, lambda outputs: outputs[:, 1])
    share = relevance[:, 0, 1:].detach()
    torch.testing.assert_close(
        made / made.sum(1, keepdim=True), share / share.sum(1, keepdim=True), atol=1e-5, rtol=1e-4
    )


# every network, every number of dimensions


@dims
@kinds
@pytest.mark.parametrize("method", OF_NETWORKS)
def test_every_method_covers_the_whole_input_and_nothing_masked(size, kind, method):
    model = Model(build(size, **NETWORKS[kind]), TASK)
    x, mask = masked_inputs(model.network)
    found = model.explain(x, mask=mask, method=method)
    channels = 2 if method.startswith("gradient") and "rollout" not in method else 1
    for one in found:
        assert one.relevance.shape == (channels, *size["input_size"])
        assert np.isfinite(one.relevance).all()
        assert one.signed or one.relevance.min() >= 0
    if kind != "hybrid":  # a stem mixes the values of masked patches into their neighbours
        assert not found[1].total[~mask[1].numpy()].any()
    if method != "gradient_rollout":  # which leaves out what lowers the output
        assert np.count_nonzero(found[0].total) > 0.9 * found[0].total.size


@dims
def test_merged_tokens_pass_their_relevance_to_all_patches_of_the_grid(size):
    network = build(size, merge_tokens=2)
    x = batch(network)
    for made in (attention(network, x, None), rollout(network, x, None)):
        assert made.shape == (3, 12)
        assert made.gt(0).all()
    flow = rollout(network, x, None)
    with torch.no_grad():
        stages = network.stages(x, traced=range(3))
        total, tokens = torch.eye(13).expand(3, -1, -1), 13
        for trace in stages.traces.values():
            total = trace.merged @ ((trace.attention.mean(1) + torch.eye(tokens)) / 2) @ total
            tokens = trace.merged.shape[1]
            torch.testing.assert_close(trace.merged.sum(2), torch.ones(3, tokens))
    torch.testing.assert_close(flow, total[:, 0, 1:])


def test_integrated_gradients_are_captums_and_sum_to_the_difference_from_zero():
    model = Model(build(SIZES["2d"]), TASK)
    x = batch(model)
    found = np.stack([one.relevance for one in model.explain(x, target=1, method="integrated_gradients", steps=64)])
    expected = IntegratedGradients(model.network).attribute(x, target=1, n_steps=64).detach()
    assert np.abs(found - expected.numpy()).max() < 1e-4
    with torch.no_grad():
        change = model.network(x)[:, 1] - model.network(torch.zeros_like(x))[:, 1]
    assert found.sum((1, 2, 3)) == pytest.approx(change.numpy(), rel=0.05, abs=0.05)


def test_gradient_times_input_is_signed_and_by_channel():
    model = Model(build(SIZES["1d"]), TASK)
    x = batch(model, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(model.network(x)[:, 2].sum(), x)
    found = model.explain(x.detach(), target="high", method="gradient_x_input")
    torch.testing.assert_close(torch.tensor(found[1].relevance), (gradient * x)[1].detach())


@dims
def test_occlusion_is_the_fall_of_the_output_without_a_window(size):
    model = Model(build(size), TASK)
    x, sides = batch(model, 2), model.config.patch_size
    found = model.explain(x, target=0, method="occlusion", occlude=[1] * len(sides), batch_size=8)
    place = tuple(n // 2 for n in size["input_size"])
    without = x.clone()
    without[(slice(None), slice(None), *place)] = 0
    with torch.no_grad():
        fall = (model.network(x) - model.network(without))[:, 0]
    assert found[1].relevance.shape[0] == 1
    assert [one.relevance[(0, *place)] for one in found] == pytest.approx(fall.tolist(), abs=1e-5)


# members whose heads are solved


def convolutions(channels=2, length=40, outputs=3):
    torch.manual_seed(0)
    network = RandomConvolutions(channels, length, 1000, outputs)
    network.draw(torch.randn(4, channels, length), None, torch.Generator().manual_seed(0))
    network.mean.uniform_()
    network.scale.uniform_()
    torch.nn.init.normal_(network.head.weight)
    torch.nn.init.normal_(network.head.bias)
    return network.eval()


@pytest.mark.parametrize("length", [5, 40])
@pytest.mark.parametrize("gaps", [False, True])
def test_contributions_of_random_convolutions_sum_to_the_output(length, gaps):
    network = convolutions(length=length)
    x, mask = torch.randn(3, 2, length), torch.rand(3, length) > 0.3 if gaps else None
    targets = torch.tensor([0, 2, 1])
    found = network.contributions(x, mask, targets)
    assert found.shape == (3, length)
    expected = network(x, mask).gather(1, targets[:, None])[:, 0] - network.head.bias[targets]
    torch.testing.assert_close(found.sum(1), expected, atol=1e-4, rtol=1e-4)


def test_contributions_are_where_a_single_kernel_is_above_its_bias():
    network = convolutions(channels=1)
    network.head.weight.zero_()[0, 3] = 2.0
    network.mean.zero_()
    network.scale.fill_(1)
    x = torch.randn(1, 1, 40)
    output = F.conv1d(x, network.kernels[3:4, None], padding=4)[0, 0]
    above = output > network.biases[3]
    torch.testing.assert_close(network.contributions(x, None, torch.tensor([0]))[0], 2 * above / 40)


def committee():
    config = named_config("encoder_small", input_size=32, embed_dim=16, depth=1, num_heads=2, stem_width=8)
    frozen = EncoderFeatures(config, 2, 40, 3)
    spread(frozen.encoder)
    torch.nn.init.normal_(frozen.head.weight)
    return Committee([convolutions(), frozen.eval()], [0.25, 0.75])


def test_a_committee_is_explained_by_the_sum_of_its_members_by_weight():
    both = committee()
    x = torch.randn(2, 2, 40)
    found = np.stack([one.total for one in Model(both, TASK).explain(x, target=1)])
    parts = [np.stack([one.total for one in Model(member, TASK).explain(x, target=1)]) for member in both.members]
    shares = [part / np.abs(part).sum(1, keepdims=True) for part in parts]
    assert found == pytest.approx(0.25 * shares[0] + 0.75 * shares[1], abs=1e-6)


def test_the_default_of_a_frozen_encoder_is_gradient_times_input_over_the_stretch_of_a_token():
    network = committee().members[1]
    x = torch.randn(2, 2, 40)
    width = network.token_length
    assert width == 40 * network.encoder.config.token_size[0] // 32 == 20
    each = [Model(network, TASK).explain(x, target=i, method="gradient_x_input")[0].total for i in range(3)]
    sharp = each[1] - (each[0] + each[2]) / 2
    soft = Model(network, TASK).explain(x, target=1)[0].total
    assert soft[20] == pytest.approx(sharp[11:31].mean(), abs=1e-6)
    assert soft.sum() == pytest.approx(sharp.sum(), abs=1e-5)


@pytest.mark.parametrize("method", ["gradient_x_input", "integrated_gradients"])
@pytest.mark.parametrize("constant", [0.0, 5e-5, 0.3, 1.0])
def test_a_constant_half_has_little_relevance(constant, method):
    """The encoder divides each half by its spread: that of rounding errors must not be enlarged, nor a root of 0."""
    x = torch.randn(1, 2, 40)
    x[..., 20:] = constant
    relevance = np.abs(Model(committee().members[1], TASK).explain(x, method=method)[0].relevance)
    assert 0 <= relevance[:, 20:].sum() < relevance[:, :20].sum() < 1e4  # numpy compares NaN as false


def test_answers_that_are_not_finite_are_not_explained():
    x = torch.randn(2, 2, 40)
    x[1, 0, 5] = float("inf")
    with pytest.raises(ValueError, match=r"for \[1\] is NaN or infinite"):
        Model(committee(), TASK).explain(x)


def test_blurring_keeps_sums_at_the_ends():
    made = blurred(torch.tensor([[[6.0, 0, 0, 0, 12]]]), 3)
    assert made.tolist() == [[[3, 3, 0, 6, 6]]]


def test_members_of_one_kind_are_added_in_units_of_the_output():
    networks = [build(SIZES["1d"]), build(SIZES["1d"], depth=2)]
    x = batch(networks[0], 2)
    whole = Model(Committee(networks, [0.3, 0.7]), TASK).explain(x, target=0, method="gradient_x_input")
    each = [Model(one, TASK).explain(x, target=0, method="gradient_x_input") for one in networks]
    assert whole[1].relevance == pytest.approx(0.3 * each[0][1].relevance + 0.7 * each[1][1].relevance, abs=1e-5)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("gradient", "gradient does not exist for RandomConvolutions: .* use occlusion"),
        ("rollout", "rollout does not exist for RandomConvolutions"),
        ("contributions", "contributions does not exist for EncoderFeatures"),
    ],
)
def test_a_method_that_a_member_lacks_is_refused(method, message):
    with pytest.raises(ValueError, match=message):
        Model(committee(), TASK).explain(torch.randn(1, 2, 40), method=method)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(method="lime"), "method must be one of attention, .*got 'lime'"),
        (dict(target="huge"), "target must be an output from 0 to 2 or its name .*'huge'"),
        (dict(target=[0, 1]), "one for each example; got 2"),
        (dict(layers=[3], method="attention"), "layers must be some of 0 to 2, got"),
        (dict(heads=[-1], method="rollout"), "heads must be some of 0 to 1, got"),
        (dict(steps=0), "steps must be at least 1"),
        (dict(occlude=30, method="occlusion"), "occlude must be one number for each axis"),
        (dict(bands=0), "bands must be at least 1"),
        (dict(bands=[3.0, 1.0]), "rising frequencies"),
    ],
)
def test_wrong_questions_are_refused(values, message):
    model = Model(build(SIZES["1d"]), TASK)
    with pytest.raises(ValueError, match=message):
        model.explain(batch(model), **values)


def test_the_default_target_is_the_highest_output_and_targets_can_differ():
    model = Model(build(SIZES["1d"]), TASK)
    x = batch(model, 3)
    found = model.explain(x, batch_size=2)
    assert [one.target for one in found] == model.network(x).argmax(1).tolist()
    assert [one.label for one in model.explain(x, target=["high", 0, "middle"], batch_size=2)] == [
        "high",
        "low",
        "middle",
    ]
    assert found[0].answers == pytest.approx(model.predict_proba(x)[0].detach().numpy(), abs=1e-6)


# coordinates


def test_tokens_are_spread_over_their_samples_and_overlaps_add_up():
    made = to_samples(torch.tensor([[6.0, 3.0, 9.0]]), (8,), (3,), (2,))
    assert made.tolist() == [[2, 2, 3, 1, 4, 3, 3, 0]]


@pytest.mark.parametrize(
    ("extent", "expected"),
    [
        (Extent(0, 8, 8), [0.5, 0.5, 1, 1, 1.5, 1.5, 2, 2]),  # reduced by 2
        (Extent(0, 2, 2), [3, 7]),  # enlarged by 2
        (Extent(2, 6, 8), [0, 0, 1, 2, 3, 4, 0, 0]),  # cropped
        (Extent(-1, 3, 2), [2, 3]),  # padded on both sides
        (Extent(0.5, 4.5, 5), [0.5, 1.5, 2.5, 3.5, 2]),  # between samples
    ],
)
def test_relevance_is_mapped_back_to_the_raw_samples(extent, expected):
    assert to_raw(np.array([[1.0, 2, 3, 4]]), [extent])[0] == pytest.approx(expected)


def marked(size, box, value=255):
    """A dark grey picture of (height, width) with one bright box (top, left, bottom, right)."""
    pixels = np.zeros(size, dtype=np.uint8)
    pixels[box[0] : box[2], box[1] : box[3]] = value
    return Image.fromarray(pixels)


@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
@pytest.mark.parametrize("size", [(40, 80), (80, 40), (16, 16)])
def test_extents_of_pictures_lead_back_to_the_pixels(resize, size):
    preprocess = ImagePreprocess((16, 16), (0.0,), (1.0,), "L", resize=resize)
    box = tuple(round(f * n) for f, n in zip((0.45, 0.45, 0.6, 0.6), size * 2))
    picture = marked(size, box)
    back = to_raw(preprocess(picture).numpy(), preprocess.extents(picture))[0]
    rows, columns = (np.arange(n) + 0.5 for n in size)
    centre = (back.sum(1) @ rows / back.sum(), back.sum(0) @ columns / back.sum())
    assert centre == pytest.approx(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), abs=1.5)


def test_a_cropped_picture_has_no_relevance_outside_of_the_crop():
    network = build(dict(input_size=(8, 8), patch_size=2), in_channels=1)
    model = Model(network, TASK, ImagePreprocess((8, 8), (0.5,), (0.3,), "L"))
    (one,) = model.explain([marked((16, 40), (4, 18, 12, 24))], log=print)
    assert one.relevance.shape == (1, 16, 40)
    assert one.values.shape == (1, 16, 40)
    assert not one.total[:, :12].any()
    assert not one.total[:, 28:].any()
    assert np.abs(one.total[:, 12:28]).min() > 0


@pytest.mark.parametrize(
    ("length", "resize", "extent"),
    [(30, "pad", (0, 30, 30)), (6, "pad", (0, 12, 6)), (6, "resample", (0, 6, 6)), (12, "pad", (0, 12, 12))],
)
def test_extents_of_signals_are_those_of_padding_and_resampling(length, resize, extent):
    preprocess = SignalPreprocess((12,), (0.0,), (1.0,), resize=resize)
    assert preprocess.extents(np.zeros((1, length), np.float32)) == (Extent(*extent),)


def test_a_recording_at_another_rate_keeps_its_own_samples():
    preprocess = SignalPreprocess((100,), (0.0,), (1.0,), sample_rate=100.0)
    recording = Recording(np.zeros((1, 100), np.float32), 200.0)  # half a second, 50 samples at 100 Hz
    assert preprocess.extents(recording) == (Extent(0.0, 200.0, 100),)
    assert preprocess.upright(recording).shape == (1, 100)


def test_a_recording_in_windows_has_the_mean_of_their_relevance():
    model = Model(build(SIZES["1d"]), TASK, SignalPreprocess((24,), (0.0, 0.0), (1.0, 1.0)))
    x = np.random.default_rng(0).normal(size=(1, 2, 60)).astype(np.float32)
    (whole,) = model.explain(x, window=24, method="gradient_x_input", bands=2)
    starts = (0, 24, 36)  # the last window ends with the recording
    parts = [x[0, :, start : start + 24] for start in starts]
    each = model.explain(np.stack(parts), target=whole.target, method="gradient_x_input", bands=2)
    expected = np.zeros((2, 60))
    for start, one in zip(starts, each):
        expected[:, start : start + 24] += one.relevance / 3
    assert whole.target == np.mean([one.answers for one in each], axis=0).argmax()
    assert whole.relevance == pytest.approx(expected, abs=1e-6)
    assert whole.values == pytest.approx(x[0])
    assert whole.bands.relevance == pytest.approx(np.mean([one.bands.relevance for one in each], axis=0), abs=1e-5)


# frequencies


def test_octaves_double_up_to_the_highest_frequency():
    assert octaves(4, 8.0) == [0, 1, 2, 4, 8]
    assert [usual_bands(n) for n in (1, 2, 24, 65_536)] == [1, 1, 4, 6]
    assert octaves(usual_bands(24), 0.5)[1] > 1 / 24  # the frequencies of 24 samples are 1/24 apart


def test_the_band_of_a_tone_is_the_relevant_one():
    class Power(torch.nn.Module):
        """The power of 0.2 to 0.3 cycles per sample."""

        def forward(self, x, mask=None):
            inside = torch.fft.rfft(x)[:, :, 13:19].abs().square().sum((1, 2), keepdim=True)[:, :, 0]
            return torch.cat([inside, -inside, -inside], 1)

    time = torch.arange(64)
    x = torch.cos(2 * torch.pi * 0.25 * time)[None, None] + torch.cos(2 * torch.pi * 0.03 * time)
    found = band_relevance(Power(), x, None, torch.tensor([0]), [octaves(4, 0.5)])[0]
    assert found.argmax() == 3  # 0.25 to 0.5: an edge belongs to the band above it
    assert found[:3].abs().max() < 1e-2 * found[3]


def test_edges_of_bands_are_in_cycles_per_sample():
    model = Model(build(SIZES["1d"]), TASK)
    (one,) = model.explain(batch(model, 1), bands=3)
    assert one.bands.edges == pytest.approx([0, 0.125, 0.25, 0.5])
    assert one.bands.relevance.shape == (3,)


# features of blocks


@dims
def test_tokens_of_blocks_as_rows_and_as_grids(size):
    network = build(size)
    model, x = Model(network, TASK), batch(network)
    with torch.no_grad():
        blocks = network.stages(x, blocks=range(3)).blocks
        rows = model.features(x, layers=[0, -1], prefix=True)
        assert torch.equal(rows[0], network.norm(blocks[0]))
        assert torch.equal(model.features(x, layers=2, norm=False)[0], blocks[1][:, 1:])
        ((grid, prefix),) = model.features(x, layers=1, grid=True, prefix=True)
    assert grid.shape == (3, 24, *network.config.grid)
    assert torch.equal(grid.flatten(2).mT, rows[1][:, 1:])
    assert torch.equal(prefix, rows[1][:, :1])
    assert torch.equal(model.features(x), network.features(x))


@dims
def test_merged_tokens_fill_the_grid(size):
    model = Model(build(size, merge_tokens=3), TASK)
    x = batch(model)
    with torch.no_grad():
        (grid,), (rows,) = model.features(x, layers=1, grid=True), model.features(x, layers=1)
    assert grid.shape == (3, 24, *model.config.grid)
    assert rows.shape[1] == 12 - 3 - 3 - 3
    distances = torch.cdist(grid.flatten(2).mT, rows)  # (3, patches, tokens)
    assert distances.amin(2).max() < 1e-3  # each patch has one of the tokens
    assert distances.amin(1).max() < 1e-3  # each token stands somewhere


def test_features_of_raw_examples_are_those_of_their_tensors():
    network = build(SIZES["1d"])
    model = Model(network, TASK, SignalPreprocess((24,), (0.0, 1.0), (1.0, 2.0)))
    x = np.random.default_rng(0).normal(size=(3, 2, 24)).astype(np.float32)
    inputs = torch.stack([model.preprocess(one) for one in x])
    with torch.no_grad():
        expected = model.features(inputs, layers=2)
    for made, one in zip(model.features(x, layers=2, batch_size=2), expected):
        torch.testing.assert_close(made, one)


@pytest.mark.parametrize("layers", [0, 4, [3], [-4], []])
def test_blocks_that_do_not_exist_are_refused(layers):
    model = Model(build(SIZES["1d"]), TASK)
    with pytest.raises(ValueError, match="layers"):
        model.features(batch(model), layers=layers)


# the command and its page


@pytest.fixture
def signals(tmp_path):
    """A model file for two channels of 24 samples, and a file of three examples."""
    model = Model(build(SIZES["1d"]), TASK, SignalPreprocess((24,), (0.0, 0.0), (1.0, 1.0)))
    model.save(tmp_path / "model.safetensors")
    np.save(tmp_path / "some.npy", np.random.default_rng(0).normal(size=(3, 2, 20)).astype(np.float32))
    return tmp_path


def test_the_command_writes_a_folder_with_page_arrays_and_table(signals, capsys):
    folder = signals / "why"
    assert (
        command("explain", signals / "model.safetensors", signals / "some.npy", "--output", folder, "--bands", 2) == 0
    )
    rows = json.loads((folder / "explanations.json").read_text())
    assert [row["file"] for row in rows] == ["00000.npy", "00001.npy", "00002.npy"]
    assert np.load(folder / "00002.npy").shape == (1, 20)
    assert len(rows[0]["bands"]["relevance"]) == 2
    page = (folder / "page.html").read_text()
    assert page.count("<svg") == 6
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert "3 examples explained" in capsys.readouterr().out


def test_the_command_writes_one_page_and_does_not_overwrite_it(signals, capsys):
    words = ("explain", signals / "model.safetensors", signals / "some.npy", "--output", signals / "why.html")
    how = ("--target", "high", "--method", "gradient_x_input", "--bands", 0)
    assert command(*words, *how) == 0
    page = (signals / "why.html").read_text()
    assert page.count("<svg") == 3
    assert "high" in page
    assert "speaks against it" in page
    assert command(*words) == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.usefixtures("_drawn")
def test_the_report_of_a_run_tells_what_decided_mistakes_and_correct_answers(tmp_path):
    x, labels = toy(shift=0.3)
    run = run_tiny((x, labels), tmp_path / "run", preset="basic", epochs=1)
    page = run.report.read_text()
    section = page[page.index("What decided") : page.index("Run it again")]
    assert section.count("<li>") == min(6, len(run.evaluation.mistakes)) + min(3, 8 - len(run.evaluation.mistakes))
    assert "midpoint_rollout" in section
    assert "cycles per sample" in section


def test_numbers_are_explained_by_the_first_output_and_in_words():
    task = Regression(("a", "b"), [1.0, 2.0], [3.0, 4.0])
    model = Model(build(SIZES["2d"], num_classes=2), task)
    x = batch(model, 2)
    found = model.explain(x)
    assert [one.label for one in found] == ["a", "a"]
    assert found[0].predicted == task.predictions(found[0].answers[None], [""])[0].text()
    score = midpoint_rollout(model.network, x, None, lambda outputs: outputs[:, 0])
    assert found[1].total[0, 0] == pytest.approx(float(score[1, 0] / 8), rel=1e-4)  # a patch of 2 x 4 pixels


def test_the_report_of_numbers_tells_what_raises_them_and_in_which_units(tmp_path):
    x, labels = toy(shift=0.3)
    run = run_tiny(
        (x, labels + np.linspace(0, 0.5, len(x))), tmp_path / "run", preset="basic", epochs=1, task="regression"
    )
    page = run.report.read_text()
    section = page[page.index("What decided") : page.index("Run it again")]
    for words in ("raises the number", "the largest errors first, then the smallest", "the standard deviation of the"):
        assert words in section
    assert "speaks for" not in section
    assert section.count("<li>") == min(len(run.evaluation), MISTAKES + CORRECT)
    assert "The colour is the true number." in page
    assert "Crosses mark mistakes." not in page


def test_attention_that_does_not_fit_into_memory_is_computed_in_parts_or_not_at_all(monkeypatch):
    network = build(SIZES["1d"])
    x, mask = masked_inputs(network, 5)
    whole = np.stack([one.total for one in Model(network, TASK).explain(x, mask=mask)])
    needed = methods._attention_bytes(network)
    assert needed == 8 * 3 * 2 * 13**2
    monkeypatch.setattr(methods, "_MOST_BYTES", 2 * needed)
    parts = np.stack([one.total for one in Model(network, TASK).explain(x, mask=mask)])
    assert parts == pytest.approx(whole, abs=1e-5)
    monkeypatch.setattr(methods, "_MOST_BYTES", needed - 1)
    assert Model(network, TASK).explain(x)[0].method == "gradient_x_input"
    with pytest.raises(ValueError, match=r"attention of all blocks to 12 patches takes .* use gradient_x_input"):
        Model(network, TASK).explain(x, method="rollout")


@dims
def test_midpoint_gradient_rollout_is_a_product_of_three_maps_at_half_the_input(size):
    network = build(size)
    x = batch(network)

    def score(outputs):
        return outputs[:, 1]

    made = midpoint_gradient_rollout(network, x, None, score).unflatten(1, network.config.grid)
    attended = rollout(network, x / 2, None)
    products = (midpoint_rollout(network, x, None, score) / attended).unflatten(1, network.config.grid)
    weighted = gradient_rollout(network, x / 2, None, score) * attended
    for axis in range(1, products.ndim):
        lines = products.movedim(axis, -1)
        near = [blurred(line.reshape(1, -1, line.shape[-1]), 3).view(line.shape) for line in lines]
        products = torch.stack(near).movedim(-1, axis)
    torch.testing.assert_close(made.flatten(1), products.flatten(1) * weighted, atol=1e-7, rtol=1e-3)


def test_the_default_of_deep_networks_of_pictures_reads_gradients_at_the_attention():
    deep = [methods.default_method(build(SIZES["2d"], depth=depth)) for depth in (7, 8)]
    assert deep == ["midpoint_rollout", "midpoint_gradient_rollout"]
    network = build(SIZES["2d"], depth=8)
    x = batch(network, 2)
    (one, _) = Model(network, TASK).explain(x)
    assert (one.method, one.signed) == ("midpoint_gradient_rollout", True)
    assert one.relevance == pytest.approx(Model(network, TASK).explain(x, method=one.method)[0].relevance)
