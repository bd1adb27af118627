"""Self-supervised pretraining: the objectives against computations by hand, the run, and training from its encoder."""

import json
import math

import numpy as np
import pytest
import torch

from datafiles import arrays, picture, sound
from ndvit import create_model, load_model, pretrain
from ndvit.config.options import split_options
from ndvit.config.pretraining import PRETRAINING_PRESETS, PretrainingOptions, take_pretraining_options
from ndvit.config.recipe import Recipe
from ndvit.data.sources.load import load_source
from ndvit.tasks import Contrastive, Masked, task_from_dict, task_to_dict
from ndvit.tasks.base import Objective
from ndvit.tasks.classification import Classification
from ndvit.tasks.contrastive import info_nce
from ndvit.tasks.masked import MaskedPatches, choose_masked
from ndvit.tasks.self_supervised import Probes
from ndvit.training.plan import Request, plan
from ndvit.training.run import describe_plan, resume, train
from tinyruns import QUIET, TINY, command, different, fit_tiny, same_result, toy

SMALL = {"embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 0}
SIGNAL = {**SMALL, "input_size": (16,), "patch_size": 4, "in_channels": 2}
PICTURE = {**SMALL, "input_size": (6, 9), "patch_size": (2, 3), "in_channels": 2}
VOLUME = {**SMALL, "input_size": (4, 4, 4), "patch_size": 2, "in_channels": 1}
STEM = {**SIGNAL, "stem": "inception", "stem_depths": (1,), "stem_width": 4, "patch_overlap": True}
RELATIVE = {**SIGNAL, "relative_bias": True}
NETWORKS = {"1-D": SIGNAL, "2-D": PICTURE, "3-D": VOLUME, "stem": STEM, "relative": RELATIVE}


def masked_objective(network, ratio=0.5):
    return MaskedPatches(network.config, PretrainingOptions(mask_ratio=ratio, decoder_depth=1))


def batch(network, n=3):
    return torch.randn(n, network.config.in_channels, *network.config.input_size)


# ------------------------------------------------------------------------------------------------- masked patches


def test_a_share_of_the_observed_patches_is_masked():
    observed = torch.ones(4, 8, dtype=torch.bool)
    observed[1, 4:] = False
    observed[2, 1:] = False
    observed[3] = False
    masked, kept, indices = choose_masked(observed, 0.75)
    assert masked.sum(1).tolist() == [6, 3, 0, 0]
    assert kept.sum(1).tolist() == [2, 1, 1, 0]
    assert not (masked & kept).any()
    assert torch.equal(masked | kept, observed)
    assert indices.shape == (4, 2)
    assert (indices[:, 1] > indices[:, 0]).all()
    assert kept.gather(1, indices).sum(1).tolist() == kept.sum(1).tolist()


def test_one_patch_is_masked_and_one_is_kept_whatever_the_ratio():
    for ratio in (0.01, 0.99):
        masked, kept, _ = choose_masked(torch.ones(5, 4, dtype=torch.bool), ratio)
        assert masked.any(1).all()
        assert kept.any(1).all()


def fixed(monkeypatch, objective, masked, prediction):
    """Let an objective mask these patches and predict these values, (B, N, C, P)."""
    observed = torch.ones_like(masked)
    choice = choose_masked(observed, 0.5)._replace(masked=masked, kept=~masked)
    monkeypatch.setattr(objective, "_choose", lambda x, mask: choice)
    monkeypatch.setattr(objective, "_predicted", lambda network, x, mask, choice: prediction)


def test_the_loss_is_the_error_of_masked_patches_normalised_by_themselves(monkeypatch):
    network = create_model("vit_pico", **{**SIGNAL, "in_channels": 1})
    objective, x = masked_objective(network), torch.zeros(1, 1, 16)
    x[0, 0, 4:8] = torch.tensor([1.0, 3.0, 1.0, 3.0])  # mean 2, variance 1
    x[0, 0, 8:] = 100.0  # not masked
    masked = torch.tensor([[False, True, False, False]])
    fixed(monkeypatch, objective, masked, torch.zeros(1, 4, 1, 4))
    loss, metrics = objective(network, x, None)
    assert loss.item() == pytest.approx(1 / 1.01)  # ((1 - 2)^2 + ...) / 4 / (1 + .01)
    assert metrics == {}


def test_partly_observed_patches_are_scored_on_observed_values(monkeypatch):
    network = create_model("vit_pico", **{**SIGNAL, "in_channels": 1})
    objective, x = masked_objective(network), torch.zeros(1, 1, 16)
    x[0, 0, 4:8] = torch.tensor([1.0, 3.0, 77.0, -5.0])
    mask = torch.ones(1, 16, dtype=torch.bool)
    mask[0, 6:8] = False
    prediction = torch.zeros(1, 4, 1, 4)
    prediction[0, 1, 0, 2:] = 1000.0  # predictions for missing values do not count
    fixed(monkeypatch, objective, torch.tensor([[False, True, False, False]]), prediction)
    assert objective(network, x, mask)[0].item() == pytest.approx(1 / 1.01)


def test_unobserved_patches_are_neither_masked_nor_scored():
    network = create_model("vit_pico", **SIGNAL)
    objective, x, mask = masked_objective(network), batch(network), torch.ones(3, 16, dtype=torch.bool)
    mask[:, 8:] = False
    changed = x.clone()
    changed[..., 8:] = 1e3
    losses = []
    for values in (x, changed):
        torch.manual_seed(1)
        losses.append(objective(network, values, mask)[0])
        torch.manual_seed(1)
        assert not objective.show(network, values, mask).marked[:, 8:].any()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_of_masked_values_reaches_the_network(name):
    network = create_model("vit_pico", **NETWORKS[name])
    objective, x = masked_objective(network), batch(network).requires_grad_()
    choice = objective._choose(x, None)
    objective._predicted(network, x, None, choice).square().sum().backward()
    hidden = objective._spread(choice.masked)[:, None].expand_as(x)
    assert not x.grad[hidden].any()
    assert x.grad[~hidden].any()


def test_the_encoder_gets_kept_patches_only(monkeypatch):
    network = create_model("vit_pico", **SIGNAL)
    seen = []
    network.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    masked_objective(network, 0.75)(network, batch(network), None)
    assert seen == [1 + 1]  # the class token and one of four patches


def test_tokens_left_out_and_tokens_masked_give_the_same_features():
    network = create_model("vit_pico", **SIGNAL).eval()
    x, kept = batch(network), torch.tensor([[0, 1, 3]] * 3)  # class token, patches 0 and 2
    mask = torch.zeros(3, 16, dtype=torch.bool)
    mask[:, 0:4] = mask[:, 8:12] = True
    some, all_ = network.stages(x, kept=kept).encoded, network.stages(x, mask).encoded
    assert torch.allclose(some, all_[:, [0, 1, 3]], atol=1e-5)


def test_relative_positions_need_all_tokens():
    network = create_model("vit_pico", **RELATIVE)
    with pytest.raises(ValueError, match="relative_bias needs the complete grid"):
        network.stages(batch(network), kept=torch.tensor([[0, 1]] * 3))


@pytest.mark.parametrize("name", ["1-D", "2-D", "3-D"])
def test_reconstructions_keep_what_was_not_masked(name):
    network = create_model("vit_pico", **NETWORKS[name]).eval()
    objective, x = masked_objective(network), batch(network)
    original, made, marked, about = objective.show(network, x, None)
    hidden = marked[:, None].expand_as(x)
    assert torch.equal(original, x)
    assert torch.equal(made[~hidden], x[~hidden])
    assert not torch.equal(made[hidden], x[hidden])
    assert "50%" in about


@pytest.mark.parametrize("name", ["1-D", "2-D", "3-D"])
def test_cutting_into_patches_is_inverted(name):
    network = create_model("vit_pico", **NETWORKS[name])
    objective, x = masked_objective(network), batch(network)
    patches = objective._patches(x.flatten(0, 1)).unflatten(0, x.shape[:2]).transpose(1, 2)
    assert torch.equal(objective._whole(patches), x)


def test_networks_that_cannot_be_pretrained_by_masks_are_refused():
    options = PretrainingOptions()
    with pytest.raises(ValueError, match="set merge_tokens to 0"):
        Masked().objective(create_model("vit_pico", **SIGNAL, merge_tokens=1).config, Recipe(), options)
    with pytest.raises(ValueError, match="an example is one patch"):
        Masked().objective(create_model("vit_pico", **{**SIGNAL, "patch_size": 16}).config, Recipe(), options)


# ---------------------------------------------------------------------------------------------------- contrastive


def test_info_nce_against_a_direct_computation():
    z, temperature = torch.randn(6, 5), 0.2
    loss, accuracy = info_nce(z, temperature)
    losses, right = [], 0
    for i in range(6):
        cosines = {j: float(z[i] @ z[j] / z[i].norm() / z[j].norm()) for j in range(6) if j != i}
        total = sum(math.exp(c / temperature) for c in cosines.values())
        partner = i + 1 if i % 2 == 0 else i - 1
        losses.append(-math.log(math.exp(cosines[partner] / temperature) / total))
        right += max(cosines, key=cosines.get) == partner
    assert loss.item() == pytest.approx(sum(losses) / 6, abs=1e-5)
    assert accuracy.item() == pytest.approx(right / 6)


def test_a_batch_holds_two_views_of_each_example():
    options = {**{key: value for key, value in TINY.items() if key != "model"}, "batch_size": 8}
    planned = plan(Request(source=toy(), task="contrastive", options=options, model="vit_pico"))
    train, _ = planned.inputs()
    x = next(iter(train.stream(8, 1, 0, 0, 0, planned.recipe.repeats))).x
    assert torch.equal(x[0::2], x[1::2])
    made, _, _ = planned.augmentation.per_batch(x, None, torch.zeros(8, 0))
    assert not torch.equal(made[0::2], made[1::2])


@pytest.mark.parametrize("wrong", [{"repeats": 1}, {"batch_size": 7}, {"batch_size": 2}])
def test_batches_without_pairs_are_refused(wrong):
    with pytest.raises(ValueError, match="two views of at least two examples"):
        fit_tiny(toy(), task="contrastive", steps=1, **wrong)


# --------------------------------------------------------------------------------------------- labels and probes


def test_labels_are_for_probes_only():
    task = Contrastive.from_targets({"train": [*("a", "b") * 5, None]}, "X")
    assert task.labels == Classification(["a", "b"])
    codes = task.encode(["b", None, "a"])
    assert codes.tolist() == [1, -1, 0]
    assert task.decode(codes) == ["b", None, "a"]
    assert task.num_outputs == 0
    assert task_from_dict(json.loads(json.dumps(task_to_dict(task)))) == task


@pytest.mark.parametrize("labels", [["a", "b"], ["a"] * 20, [0.5 * i for i in range(20)], [None] * 20])
def test_without_ten_labels_of_two_classes_there_are_no_probes(labels):
    assert Masked.from_targets({"train": labels}, "X").labels is None


def test_probes_of_separable_and_of_useless_features():
    labels = torch.arange(40) % 2
    known = {"separable": labels[:, None] + 0.1 * torch.randn(40, 3), "useless": torch.ones(40, 3)}
    scores = {}
    for name, features in known.items():
        probes = Probes(Classification("ab"))
        probes.update(features[:30], labels[:30])
        probes.update(features[30:], labels[30:])
        scores[name] = {key: value.item() for key, value in probes.compute().items()}
    assert scores["separable"] == {"linear_accuracy": 1.0, "knn_accuracy": 1.0}
    assert scores["useless"] == {"linear_accuracy": 0.5, "knn_accuracy": 0.5}


def test_labels_do_not_change_what_is_learned():
    x, y = toy()
    with_labels = fit_tiny((x, y), task="masked", steps=3)
    without = fit_tiny((x, [None] * len(y)), task="masked", steps=3)
    assert not different(with_labels, without)
    assert "probe_linear_accuracy" in with_labels.fit.history[-1]
    assert "probe_linear_accuracy" not in without.fit.history[-1]


@pytest.mark.parametrize("objective", ["masked", "contrastive"])
def test_signals_of_different_lengths_with_missing_values(objective):
    x = [np.random.default_rng(i).normal(size=(1, 12 + i)).astype(np.float32) for i in range(8)]
    x[0][0, :6] = np.nan
    fitted = fit_tiny(x, task=objective, steps=2, patch_size=4)
    assert math.isfinite(fitted.fit.history[-1]["train_loss"])


# -------------------------------------------------------------------------------------------------------- sources


def test_examples_without_labels():
    x, y = toy(12)
    source = load_source(x, task="masked")
    assert (len(source.train), len(source.test), source.task.labels) == (12, 0, None)
    assert source.train.targets.tolist() == [-1] * 12
    some = load_source((x, [*y[:11], None]), task="masked")
    assert some.train.targets.tolist() == [*y[:11], -1]


def test_a_folder_of_recordings_without_classes(tmp_path):
    for i in range(4):
        sound(tmp_path / f"{i}.wav", frames=300 + i, pitch=100 + 50 * i)
    source = load_source(str(tmp_path), task="contrastive")
    assert (source.kind, source.dims, len(source.train)) == ("signal", 1, 4)


def test_unlabelled_folders_beside_the_classes_are_used(tmp_path):
    arrays(tmp_path, count=6)
    arrays(tmp_path, classes=("unlabelled",), count=3, shape=(21,))
    source = load_source(str(tmp_path), task="contrastive")
    assert source.train.targets.tolist() == [0] * 6 + [1] * 6 + [-1] * 3
    assert source.classes == ()


def test_test_sets_are_not_read():
    x, y = toy(20)
    source = load_source((x[:12], y[:12], x[12:], y[12:]), task="masked")
    assert (len(source.train), len(source.test)) == (12, 0)
    assert "the test examples of arrays are not used" in source.notes


def test_a_list_of_pictures_without_labels(tmp_path):
    for i in range(3):
        picture(tmp_path / f"{i}.png", (60 * i, 100, 200))
    (tmp_path / "list.csv").write_text("path\n0.png\n1.png\n2.png\n")
    source = load_source(str(tmp_path / "list.csv"), task="contrastive")
    assert (source.kind, source.dims, len(source.train)) == ("image", 2, 3)


def test_an_npz_without_labels(tmp_path):
    np.savez(tmp_path / "a.npz", X=toy(9)[0])
    assert len(load_source(str(tmp_path / "a.npz"), task="masked").train) == 9


def test_what_cannot_be_read_at_all_is_still_refused(tmp_path):
    (tmp_path / "a.txt").write_text("nothing")
    with pytest.raises(ValueError, match="has no file that can be read as an example"):
        load_source(str(tmp_path), task="masked")


# ------------------------------------------------------------------------------------------------------- the run


@pytest.mark.parametrize("objective", ["masked", "contrastive"])
@pytest.mark.parametrize("shape", [(1, 16), (1, 8, 8)], ids=["1-D", "2-D"])
def test_a_run_leaves_the_trained_encoder(tmp_path, objective, shape):
    source = toy(24, shape)
    run = pretrain(source, objective=objective, output=tmp_path / "run", steps=2, language="zh", **TINY, **QUIET)
    model = load_model(tmp_path / "run")
    assert not different(model.network, run.model.network)
    assert model.task is None
    assert model.config.num_classes == 0
    assert model.preprocess is not None
    assert model.provenance["pretraining"] == objective
    assert not [name for name in model.network.state_dict() if "head" in name or "decoder" in name]
    page = (tmp_path / "run/report.html").read_text()
    assert ("重建" if objective == "masked" else "两个视图") in page
    assert "线性探针" in page
    assert "Reconstructions" not in page
    assert set(json.loads((tmp_path / "run/results.json").read_text())) >= {"loss", "linear_accuracy", "knn_accuracy"}


def test_training_starts_from_the_encoder(tmp_path):
    source = toy()
    run = pretrain(source, objective="masked", output=tmp_path / "run", steps=1, **TINY, **QUIET)
    first = plan(Request(source=source, weights=tmp_path / "run", progress=False)).first
    assert first.task == Classification(["0", "1"])
    assert different(first.network, run.model.network) == {"head.weight", "head.bias"}
    embeddings = run.model.embed(source, **QUIET)
    assert embeddings.vectors.shape == (40, 16)


def test_weights_of_a_trained_network_can_be_pretrained_further():
    trained = fit_tiny(toy(), steps=1).model
    again = fit_tiny(toy(), task="masked", weights=trained, steps=1)
    assert again.model.config.num_classes == 0


@pytest.mark.parametrize("objective", ["masked", "contrastive"])
def test_a_resumed_run_equals_the_unbroken_one(tmp_path, monkeypatch, objective):
    from ndvit.training.module import TrainingModule

    step = TrainingModule.training_step

    def breaking(self, batch, batch_idx):
        if batch_idx == 3:
            raise RuntimeError("broken off")
        return step(self, batch, batch_idx)

    options = {**TINY, **QUIET, "objective": objective, "steps": 5, "val_every": 2}
    monkeypatch.setattr(TrainingModule, "training_step", breaking)
    with pytest.raises(RuntimeError, match="broken off"):
        pretrain(toy(), output=tmp_path / "run", **options)
    monkeypatch.undo()
    unfinished = load_model(next((tmp_path / "run/checkpoints").glob("step=2.ckpt")))
    assert unfinished.task is None
    resume(tmp_path / "run", source=toy(), **QUIET)
    pretrain(toy(), output=tmp_path / "whole", **options)
    assert same_result(tmp_path / "run", tmp_path / "whole")


def test_another_objective_is_not_resumed(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    fit_tiny(toy(), folder, task="masked", steps=2, val_every=1)
    (folder / "checkpoints").exists()
    with pytest.raises(ValueError, match=r"mask_ratio was 0.75, is 0.5"):
        fit_tiny(toy(), folder, task="masked", steps=2, val_every=1, mask_ratio=0.5, resume=True)


@pytest.mark.parametrize("option", [{"label_smoothing": 0.2}, {"head": "solved"}, {"mixup": 0.4}, {"early_stop": 3}])
def test_options_that_would_do_nothing_are_refused(option):
    (name,) = option
    with pytest.raises(ValueError, match=f"computes no outputs, and {name} would do nothing"):
        pretrain(toy(), **option, **QUIET)


def test_objectives_are_not_trained_by_train():
    with pytest.raises(ValueError, match="masked learns without labels: use ndvit pretrain SOURCE --objective masked"):
        train(toy(), task="masked", **QUIET)
    with pytest.raises(ValueError, match="objective must be one of masked, contrastive, got 'guess'"):
        pretrain(toy(), objective="guess", **QUIET)
    with pytest.raises(ValueError, match="unknown option 'mask_ratio'"):
        train(toy(), mask_ratio=0.5, **QUIET)


@pytest.mark.parametrize("name", PRETRAINING_PRESETS)
def test_presets_hold_options_that_exist(name):
    options, others = take_pretraining_options(PRETRAINING_PRESETS[name].options(0))
    recipe, network, _ = split_options(others)
    assert network == {}
    assert recipe.mixup == 0
    assert (recipe.repeats == 2) == name.startswith("contrastive")
    assert options.mask_ratio > 0


def test_small_data_has_batches_without_an_example_twice():
    for objective, size in (("contrastive", 80), ("masked", 40)):
        assert plan(Request(source=toy(), task=objective, model="vit_pico")).recipe.batch_size == size


def test_the_plan_describes_what_is_learned():
    text = describe_plan(toy(), objective="masked", progress=False)
    for words in ("75% of the patches are predicted", "40 training, 40 of them for probes", "masked_signal", "MiB"):
        assert words in text
    assert "random convolution" not in text


def test_the_command_line(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", X=toy()[0], y=toy()[1])
    flags = ["--model", "vit_pico", "--steps", 1, "--no-progress", "--mask-ratio", 0.5, "--depth", 1]
    run = tmp_path / "run"
    assert command("pretrain", tmp_path / "a.npz", "--objective", "masked", "--output", run, *flags) == 0
    assert "linear probe" in capsys.readouterr().out
    config = run / "config.yaml"
    assert "mask_ratio: 0.5" in config.read_text()
    assert command("--config", config, "pretrain", "--output", tmp_path / "again", "--no-progress") == 0
    assert not different(run, tmp_path / "again")
    assert command("train", tmp_path / "a.npz", "--weights", run, "--steps", 1, "--no-progress", "--dry-run") == 0


def test_an_objective_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Objective()
