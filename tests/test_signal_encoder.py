"""The encoder of signals that ndvit ships, its features, and how much it counts beside random convolutions."""

import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ndvit import ViTClassifier, create_model, load_model
from ndvit.config import named_config
from ndvit.config.recipe import Recipe
from ndvit.data.examples import Examples
from ndvit.data.loading import Inputs
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.network import VisionTransformer
from ndvit.network.committee import Committee, network_shape, pruned, solved_networks, transformers
from ndvit.network.encoder_features import EncoderFeatures, resampled, token_features, window_starts
from ndvit.network.random_convolutions import RandomConvolutions
from ndvit.network.stems.difference import DifferenceStem
from ndvit.tasks import Classification
from ndvit.tasks.solvers import ridge_classifier
from ndvit.training import closed_form
from ndvit.training.callbacks.same_run import SameRun
from ndvit.training.closed_form import solve_beside, solve_networks, weigh_networks
from ndvit.training.fit import fit
from ndvit.training.plan import Request, plan
from ndvit.training.run import train
from ndvit.weights.signal_encoder import FILE, signal_encoder
from ndvit.weights.structure import check_structure, make_network, structure_of
from tinyruns import QUIET, UNSPLIT, fit_tiny, toy

TINY = named_config("encoder_small", input_size=32, embed_dim=16, depth=2, num_heads=2, stem_width=8)


def tiny_features(channels=1, length=40, outputs=2, local=True):
    torch.manual_seed(0)
    return EncoderFeatures(TINY, channels, length, outputs, local)


def interpolated(x, size):
    return F.interpolate(x.unsqueeze(2), (1, size), mode="bilinear", antialias=True).squeeze(2)


# the stem


def test_the_stem_reads_differences_and_local_statistics():
    config = named_config("encoder_small", input_size=32)
    stem = DifferenceStem(config)
    x = torch.randn(2, 1, 32)
    out = stem(x)
    assert out.shape == (2, config.stem_channels, 4)
    change = F.pad(x[:, :, 1:] - x[:, :, :-1], (1, 0))
    change = change / (change.var(2, correction=0, keepdim=True).sqrt() + 1e-3)
    both = torch.cat([x, change.clamp(-8, 8)], 1).unflatten(2, (4, 8))
    torch.testing.assert_close(out[:, -4:-2], both.mean(3), atol=1e-5, rtol=1e-4)
    spread = (both.var(3, correction=0) + 1e-8).sqrt()
    torch.testing.assert_close(out[:, -2:], (spread + 1e-2).log(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("size", [(32,), (16, 16), (8, 8, 8)])
def test_the_stem_has_any_number_of_dimensions(size):
    network = create_model("encoder_small", input_size=size, in_channels=2, embed_dim=12, num_heads=2, patch_size=1)
    assert network.stages(torch.randn(2, 2, *size)).encoded.shape == (2, 1 + network.config.num_patches, 12)


def test_the_stem_of_a_constant_input_is_finite_and_so_is_its_gradient():
    stem = DifferenceStem(named_config("encoder_small", input_size=32))
    x = torch.ones(1, 1, 32, requires_grad=True)
    stem(x).sum().backward()
    assert x.grad.isfinite().all()


# features


@pytest.mark.parametrize("length", [5, 24, 100, 700])
def test_whole_signals_are_resampled_as_torch_does_it(length):
    x = torch.randn(3, 2, length)
    whole = resampled(x, torch.zeros(1, 1), torch.full((1, 1), float(length)), 64)
    torch.testing.assert_close(whole[:, :, 0], interpolated(x, 64), atol=1e-5, rtol=1e-4)


def test_parts_of_different_lengths_are_resampled_as_each_by_itself():
    x = torch.randn(3, 2, 50)
    ranges = [(0, 50), (10, 20), (3, 47)]
    start, stop = torch.tensor(ranges, dtype=torch.float32).split(1, 1)
    for row, signal, (first, last) in zip(resampled(x, start, stop, 32), x, ranges):
        torch.testing.assert_close(row[:, 0], interpolated(signal[None, :, first:last], 32)[0], atol=1e-5, rtol=1e-4)


def test_features_are_those_of_the_signal_and_its_halves():
    network = tiny_features(length=40)
    x = torch.randn(3, 1, 40)
    parts = [x, x[:, :, :20], x[:, :, 20:]]
    expected = []
    for part in parts:
        view = interpolated(part, 32)
        view = (view - view.mean(2, keepdim=True)) / view.std(2, correction=0, keepdim=True)
        blocks = network.encoder.stages(view, blocks=(0, 1)).blocks
        tokens = [network.encoder.norm(blocks[i]) for i in (0, 1)]
        expected += [torch.cat([t[:, 0], t[:, 1:].mean(1), t[:, 1:].amax(1)], 1) for t in tokens]
    torch.testing.assert_close(network.features(x), torch.cat(expected, 1), atol=1e-4, rtol=1e-3)


def test_long_signals_are_read_in_local_windows_too():
    network = tiny_features(2, length=80)
    assert network.starts == (0, 24, 48)  # wherever 32 samples fit, half overlapping: 80 is 2.5 times 32
    x = torch.randn(3, 2, 80)
    width = 3 * TINY.depth * TINY.embed_dim
    features = network.features(x).view(3, 2, 6, width)
    for i in range(2):
        channel = x[:, i : i + 1]
        whole = tiny_features(length=80)
        whole.encoder.load_state_dict(network.encoder.state_dict())
        local = torch.stack([whole_view(network, channel[:, :, start : start + 32]) for start in (0, 24, 48)])
        torch.testing.assert_close(features[:, i, 0], whole.features(channel)[:, :width], atol=1e-4, rtol=1e-3)
        pooled = [local.mean(0), local.std(0, correction=0), local.amax(0)]
        torch.testing.assert_close(features[:, i, 3:], torch.stack(pooled, 1), atol=1e-4, rtol=1e-3)


def whole_view(network, window):
    """Features of one window, which is only standardised."""
    view = (window - window.mean(2, keepdim=True)) / window.std(2, correction=0, keepdim=True)
    return token_features(network.encoder, view)


@pytest.mark.parametrize(
    ("length", "count", "last", "shortening"),
    [(47, 0, None, 1), (48, 3, 16, 1), (512, 31, 480, 1), (513, 15, 224, 2), (100_000, 31, 478, 196)],
)
def test_the_number_of_local_windows_is_bounded(length, count, last, shortening):
    starts, factor = window_starts(length, 32)
    assert (len(starts), factor) == (count, shortening)
    if count:
        assert (starts[0], starts[-1]) == (0, last)
        assert last + 32 == length // shortening


def test_local_windows_of_very_long_signals_are_means_of_neighbours():
    network = tiny_features(length=1100)
    assert network.shortening == 3
    x = torch.randn(1, 1, 1100)
    means = x[:, :, : 3 * 366].unflatten(2, (366, 3)).mean(3)
    last = network.local_windows(x)[-1]
    torch.testing.assert_close(last[:, :, 0], means[:, :, -32:], atol=1e-6, rtol=1e-5)


def test_local_windows_without_observed_values_do_not_count():
    """Of 200 samples 100 were observed: windows of which half was observed count, so nothing beyond 116 matters."""
    network = tiny_features(length=200)
    x, mask = torch.randn(3, 1, 200), torch.arange(200).expand(3, 200) < 100
    other = torch.where(torch.arange(200) < 116, x, 5 * torch.randn(3, 1, 200))
    torch.testing.assert_close(network.features(x, mask), network.features(other, mask), atol=1e-4, rtol=1e-3)
    counted = [start for start in network.starts if start + 16 <= 100]
    local = torch.stack([whole_view(network, torch.where(mask[:, None], x, 0)[:, :, s : s + 32]) for s in counted])
    features = network.features(torch.where(mask[:, None], x, 0), mask).view(3, 6, -1)
    torch.testing.assert_close(features[:, 3], local.mean(0), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(features[:, 5], local.amax(0), atol=1e-4, rtol=1e-3)
    nothing = network.features(x, torch.zeros(3, 200, dtype=torch.bool))
    assert nothing.isfinite().all()


def test_models_of_earlier_versions_read_no_local_windows(tmp_path):
    network = EncoderFeatures(TINY, 1, 80, 2, local=False)
    assert network.num_features == tiny_features(length=40).num_features
    assert "local" not in structure_of(network)
    for made in (network, tiny_features(length=80)):
        torch.nn.init.normal_(made.head.weight)
        again = make_network(check_structure(structure_of(made)))
        again.load_state_dict(made.state_dict())
        x = torch.randn(2, 1, 80)
        assert torch.equal(again(x), made(x))
    with pytest.raises(ValueError, match="local must be true or false, got 3"):
        check_structure(structure_of(network) | {"local": 3})


def test_a_run_of_an_earlier_version_is_resumed_only_without_local_windows():
    for length, differs in ((60, False), (400, True)):
        X = np.random.default_rng(0).standard_normal((20, 1, length)).astype(np.float32)
        options = {"rocket_features": 168, "embed_dim": 16, "stem_width": 4, "steps": 2, "val_fraction": 0.0}
        source = (X, np.arange(20) % 2)
        planned = plan(Request(source=source, model="signal_tiny", preset="signal", options=options, progress=False))
        now = SameRun(planned.recipe, planned.first.network, planned.inputs()[0])
        before = dict(now.facts, config={k: v for k, v in now.facts["config"].items() if k != "local_windows"})
        checkpoint = {"callbacks": {now.state_key: before}}
        with pytest.raises(ValueError, match="local_windows was None, is 3") if differs else nullcontext():
            now.check(checkpoint)


def test_scale_level_and_padding_do_not_matter():
    network = tiny_features(2, 60, local=False)
    x = torch.randn(4, 2, 40)
    padded, mask = F.pad(x, (0, 20), "replicate"), torch.arange(60).expand(4, 60) < 40
    alone = EncoderFeatures(TINY, 2, 40, 2, local=False)
    alone.encoder.load_state_dict(network.encoder.state_dict())
    torch.testing.assert_close(network.features(padded, mask), alone.features(x), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(alone.features(5 * x + 3), alone.features(x), atol=1e-4, rtol=1e-3)


def test_channels_are_read_one_by_one_and_many_are_mixed():
    few, one = tiny_features(3), tiny_features(1)
    one.encoder.load_state_dict(few.encoder.state_dict())
    x = torch.randn(2, 3, 40)
    each = torch.cat([one.features(x[:, i : i + 1]) for i in range(3)], 1)
    torch.testing.assert_close(few.features(x), each, atol=1e-5, rtol=1e-4)
    many = tiny_features(20)
    hidden = torch.randn(6, 3, 40)  # 20 channels are mixes of three signals
    mixing = torch.linalg.qr(torch.randn(20, 3)).Q * torch.tensor([3.0, 2.0, 1.0])
    x = mixing @ hidden
    many.draw(x, None, torch.Generator())
    assert many.mix.shape == (8, 20)
    torch.testing.assert_close(many.mix @ many.mix.T, torch.eye(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(many.mix[:3].T @ (many.mix[:3] @ x), x, atol=1e-4, rtol=1e-4)
    assert (many.mix @ x).square().sum((0, 2)).diff().max() < 1e-3  # the largest first
    mask = torch.arange(40).expand(6, 40) < 30
    masked = tiny_features(20)
    masked.draw(torch.where(mask[:, None], x, 100.0), mask, torch.Generator())
    torch.testing.assert_close(masked.mix[:3].T @ (masked.mix[:3] @ x), x, atol=1e-4, rtol=1e-4)
    assert many.features(x).shape == (6, 8 * one.num_features)


def test_features_need_all_tokens_of_the_last_block():
    network = tiny_features()
    x = torch.randn(2, 1, 40)
    before = network.features(x)
    network.encoder.skip_unread_tokens = True
    assert torch.equal(network.features(x), before)


@pytest.mark.parametrize("options", [{"in_channels": 2}, {"input_size": (8, 8), "patch_size": 1}])
def test_an_encoder_reads_one_channel_of_one_axis(options):
    with pytest.raises(ValueError, match="an encoder of signals reads 1 channel of 1 axis and has a class token"):
        EncoderFeatures(named_config("encoder_small", **options), 1, 40, 2)


# the shipped encoder


def test_the_shipped_encoder_is_small_and_has_its_recipe():
    config, tensors = signal_encoder()
    network = VisionTransformer(config)
    network.load_state_dict(tensors)
    assert sum(t.numel() for t in tensors.values()) <= 4_000_000
    assert FILE.stat().st_size <= 10_000_000
    model = load_model(FILE)
    assert model.provenance["licence"] == "MIT"
    assert "pretrain_signals.py" in model.provenance["recipe"]
    features = token_features(network, torch.randn(4, 1, 256))
    assert features.shape == (4, 3 * config.depth * config.embed_dim)
    assert features.isfinite().all()


def test_it_tells_kinds_of_signals_apart_without_training():
    random, time = np.random.default_rng(0), np.linspace(0, 1, 120)
    labels = np.arange(120) % 3
    phase = random.uniform(0, 6, (120, 1))
    waves = np.sin(2 * np.pi * 4 * time + phase)
    shapes = [waves, np.sign(waves), 2 * np.abs(waves) - 1]
    X = np.choose(labels[:, None], shapes) + 0.1 * random.standard_normal((120, 120))
    classifier = ViTClassifier("fast", random_state=0, options={"rocket_features": 0}).fit(X[:30], labels[:30])
    assert classifier.score(X[30:], labels[30:]) > 0.95


# the closed form


def inputs_of(values, labels):
    examples = Examples(list(values), np.asarray(labels))
    return Inputs(examples, SignalPreprocess.fit(examples))


def committee(weights=(2 / 3, 1 / 3), length=40):
    return Committee([RandomConvolutions(1, length, 400, 2), tiny_features(length=length)], weights)


def noisy(n, seed=0):
    random, labels = np.random.default_rng(seed), np.arange(n) % 2
    waves = np.sin(np.linspace(0, 9, 40) * (1 + labels[:, None]) + random.uniform(0, 6, (n, 1)))
    return (waves + random.standard_normal((n, 40)))[:, None].astype(np.float32), labels


TASK = Classification("ab")


def test_networks_are_solved_in_one_pass_as_each_by_itself():
    inputs = inputs_of(*noisy(30))
    together = committee()
    found = solve_networks(solved_networks(together), inputs, TASK, Recipe())
    alone = RandomConvolutions(1, 40, 400, 2)
    solve_networks([alone], inputs, TASK, Recipe())
    torch.testing.assert_close(together.members[0].head.weight, alone.head.weight)
    assert all(one.ridge.left_out.shape == (30, 2) for one in found)
    losses = TASK.losses(found[0].ridge.left_out, found[0].targets)
    assert losses.mean().item() == pytest.approx(found[0].ridge.facts["loss"])


def test_the_parts_of_the_features_are_all_of_them():
    network = tiny_features(2, 80)
    assert [len(part) for part in network.parts] == [192, 384, 576]  # 1, 2 and 3 views of 3 x 2 x 16, two channels
    assert torch.cat(network.parts).sort().values.tolist() == list(range(network.num_features))
    shorter, x = EncoderFeatures(TINY, 2, 80, 2, local=False), torch.randn(3, 2, 80)
    shorter.encoder.load_state_dict(network.encoder.state_dict())
    for part, other in zip(network.parts, shorter.parts):  # whole and halves
        torch.testing.assert_close(network.features(x)[:, part], shorter.features(x)[:, other])


@pytest.mark.parametrize("kind", ["equal", "classes", "examples", "both"])
def test_views_are_solved_by_themselves_where_that_lowers_the_loss(kind):
    chosen = set()
    recipe = Recipe(class_weight=(0.2, 3.0) if kind in ("classes", "both") else None)
    for seed in range(6):
        values, labels = noisy(24, seed)
        network, inputs, own = tiny_features(), inputs_of(values, labels), None
        if kind in ("examples", "both"):
            inputs.examples.weights = np.linspace(0.1, 1.9, 24)
            own = torch.from_numpy(inputs.examples.weights)
        by_class = TASK.example_weights(recipe, torch.from_numpy(labels), torch.from_numpy(labels))
        both = [one for one in (by_class, own) if one is not None]
        each = None if not both else torch.stack(both).prod(0)
        (solved,) = solve_networks([network], inputs, TASK, recipe)
        batch, targets = inputs.__getitems__(list(range(24))), torch.from_numpy(labels)
        features = network.features(batch.x)
        features = (features - features.mean(0)) / features.std(0, correction=0)
        together = ridge_classifier(features, targets, 2, each)
        parts = [ridge_classifier(features[:, part], targets, 2, each) for part in network.parts]
        left_out = together.left_out, torch.stack([one.left_out for one in parts]).mean(0)
        outputs = [features @ together.weight.T.float() + together.bias.float()]
        outputs += [
            sum(features[:, p] @ one.weight.T.float() + one.bias.float() for p, one in zip(network.parts, parts)) / 2
        ]
        counts = torch.ones(24) if each is None else each
        losses = [np.average(TASK.losses(one, targets), weights=counts) for one in left_out]
        split = bool(losses[1] < losses[0])
        torch.testing.assert_close(solved.ridge.left_out, left_out[split], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(network(batch.x), outputs[split], atol=1e-2, rtol=1e-3)
        right = np.average(left_out[split].argmax(1) == targets, weights=counts)
        assert solved.ridge.facts["loss"] == pytest.approx(min(losses), rel=1e-3)
        assert solved.ridge.facts["accuracy"] == pytest.approx(right)
        chosen.add(split)
    assert chosen == {True, False}


def test_an_encoder_that_harms_is_left_out(monkeypatch):
    inputs = inputs_of(*noisy(40))
    kept = committee()
    solve_beside(kept, inputs, TASK, Recipe(), weigh=True)
    assert kept.weights == pytest.approx((2 / 3, 1 / 3), abs=0.15)
    solve = closed_form.solve_networks

    def spoiled(*arguments):
        first, second = solve(*arguments)
        return [first, second._replace(ridge=second.ridge._replace(left_out=-20 * first.ridge.left_out))]

    monkeypatch.setattr(closed_form, "solve_networks", spoiled)
    for weigh, expected in ((True, (1, 0)), (False, (2 / 3, 1 / 3))):
        harmed = committee()
        solve_beside(harmed, inputs, TASK, Recipe(), weigh)
        assert harmed.weights == pytest.approx(expected)
    left = committee((1.0, 0.0))
    assert pruned(left) is left.members[0]


@pytest.mark.parametrize("kind", ["classes", "examples"])
def test_weights_count_where_the_encoder_is_weighed(kind, monkeypatch):
    values, labels = noisy(40)
    labels = (np.arange(40) >= 30).astype(np.int64)  # 30 and 10
    inputs, solve = inputs_of(values, labels), closed_form.solve_networks

    def spoiled(*arguments):  # right for every example of the first class, wrong for the second
        first, second = solve(*arguments)
        right = torch.tensor([3.0, -3.0]).expand(40, 2).double()
        return [
            first._replace(ridge=first.ridge._replace(left_out=torch.zeros(40, 2).double())),
            second._replace(ridge=second.ridge._replace(left_out=right)),
        ]

    monkeypatch.setattr(closed_form, "solve_networks", spoiled)
    shares = []
    for weights in (None, (0.1, 10.0)):
        mean, recipe = committee(), Recipe(class_weight=weights if kind == "classes" else None)
        inputs.examples.weights = np.array(weights)[labels] if weights and kind == "examples" else None
        solve_beside(mean, inputs, TASK, recipe, weigh=True)
        shares.append(mean.weights[1])
    assert shares[0] > 0.3
    assert shares[1] == 0.0


def test_a_trained_network_counts_as_far_as_validation_shows():
    train, val = inputs_of(*noisy(40)), inputs_of(*noisy(60, seed=1))
    convolutions = RandomConvolutions(1, 40, 400, 2)
    solve_networks([convolutions], train, TASK, Recipe())

    class Fixed(torch.nn.Module):
        """Outputs that are right or wrong for every example, with so much confidence."""

        def __init__(self, confidence):
            super().__init__()
            self.confidence, self.unused = confidence, torch.nn.Parameter(torch.zeros(1))

        def forward(self, x, mask=None):
            labels = val.targets[: len(x)]
            return self.confidence * (2 * F.one_hot(labels, 2).float() - 1)

    found, lines = {}, []
    for confidence in (3.0, 0.0, -3.0):
        mean = Committee([Fixed(confidence), convolutions], (0.5, 0.5))
        weigh_networks(mean, val, TASK, Recipe(batch_size=60), train, lines.append)
        assert sum(mean.weights) == pytest.approx(1)
        found[confidence] = mean.weights[0]
    assert found[3.0] > 0.6
    assert found[-3.0] == 0.0
    # Outputs of 0 change the temperature alone, which is fitted beside: nothing speaks against the usual weight.
    assert found[0.0] == pytest.approx(0.5, abs=0.1)
    start = r"the trained network has \d\d % of the answer \(usually 50 %\): on 60 validation examples loss"
    assert re.match(start, lines[0])
    assert lines[2].startswith("the trained network is left out")


def test_few_validation_examples_leave_the_usual_weight_nearly_as_it_is():
    """Of four examples, one that the network answers wrongly must not decide alone."""
    outputs = torch.tensor([[2.0, -2.0]] * 3 + [[-1.0, 1.0]])
    targets = torch.zeros(4, dtype=torch.long)
    shares = []
    for copies in (1, 50):
        trained, beside = outputs.repeat(copies, 1), torch.tensor([[1.5, -1.5]]).repeat(4 * copies, 1)
        shares.append(closed_form.best_share(trained, beside, targets.repeat(copies), TASK, None, 0.5)[0])
    assert 0.35 < shares[0] < 0.5
    assert shares[1] < 0.2


def test_networks_are_counted_without_the_encoders_inside():
    network = Committee([tiny_features(), RandomConvolutions(1, 40, 400, 2)])
    assert not transformers(network)
    assert network_shape(network) == ((1, 40), 2)
    assert len(solved_networks(network)) == 2


def test_the_report_of_a_closed_form_has_its_weights_and_no_curves(tmp_path):
    X, y = toy(24, shape=(2, 30), shift=2)
    options = {"rocket_features": 168, "encoder_weight": 0.4, "levels": False}
    run = train((X, y), preset="fast", output=tmp_path / "run", **options, **QUIET)
    page = run.report.read_text()
    assert "168 random convolution features: 60 %; a frozen encoder, 128 wide, 3 blocks: 40 %" in page
    assert "calibrated by leaving one training example out" in page
    assert "nothing was trained by steps" in page


def test_the_closed_form_is_stored_and_loaded(tmp_path):
    X, y = toy(24, shape=(2, 30), shift=2)
    options = {"rocket_features": 168, "encoder_weight": 0.4, "levels": False}
    request = Request(source=(X, y), preset="fast", options=options, reading=UNSPLIT, progress=False)
    trained = fit(plan(request), **QUIET)
    assert trained.fit.steps == 0
    assert [type(one) for one in solved_networks(trained.model.network)] == [RandomConvolutions, EncoderFeatures]
    trained.model.save(tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    x = torch.randn(3, 2, 30)
    assert torch.equal(loaded(x), trained.model(x))
    with pytest.raises(ValueError, match="no Vision Transformer that was trained"):
        fit_tiny((X, y), weights=tmp_path / "model.safetensors", steps=1)
    other = load_model(tmp_path / "model.safetensors", classes=["0", "1", "2"])
    assert other(x).shape == (3, 3)


def test_solved_networks_learn_from_held_out_examples_too():
    X, y = toy(60, shape=(30,), shift=2)
    options = {"model": "signal_tiny", "embed_dim": 16, "stem_width": 4, "preset": "basic", "steps": 2, "seed": 3}
    options |= {"rocket_features": 168, "encoder": False, "test_fraction": 0}
    trained = fit_tiny((X[:, None], y), val_fraction=0.2, **options).model
    examples = Examples(list(X[:, None]), y)
    twin = RandomConvolutions(1, 30, 168, 2)
    solve_networks([twin], Inputs(examples, trained.preprocess), trained.task, Recipe(seed=3))
    torch.testing.assert_close(solved_networks(trained.network)[0].head.weight, twin.head.weight)
