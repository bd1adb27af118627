"""Training that begins with trained weights: what is taken over, what is planned, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from ndvit import VisionTransformer, ViTConfig, WeightsWarning, load_model, predict, save_model
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.training.plan import source_name
from ndvit.training.run import train
from tinyruns import QUIET, command, flags, resume_quietly, run_tiny, same_result, tensors, toy

SMALL = {"input_size": (32, 32), "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}


def published(path, **options):
    """A file as timm would publish it: a 2-D network of five classes, tensors only."""
    torch.manual_seed(5)
    model = VisionTransformer(ViTConfig(**{**SMALL, **options}))
    save_file({n: t + 0.01 for n, t in model.state_dict().items()}, path)
    return path


def tune(source, folder, weights, **options):
    return train(
        source, output=folder, weights=weights, **{"steps": 3, "batch_size": 8, "num_heads": 2, **QUIET, **options}
    )


def photos(n=20, side=40):
    rng = np.random.default_rng(1)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(n)], np.arange(n) % 2


def test_pictures_keep_the_weights_input_and_preprocessing(tmp_path):
    run = tune(photos(), tmp_path / "run", published(tmp_path / "w.safetensors"))
    model = load_model(run.folder)
    assert model.config.input_size == (32, 32)
    assert model.config.num_classes == 2
    assert model.preprocess.mean == (0.485, 0.456, 0.406)  # usual for timm's layout, not computed from noise
    assert model.preprocess.crop_fraction == 0.875
    assert model.untrained == ()
    assert model.provenance["weights"] == str(tmp_path / "w.safetensors")
    assert run.model.load_report.new == ("head.weight", "head.bias")


def test_2d_weights_serve_signals(tmp_path):
    x, y = toy(shape=(3, 50))
    run = tune((x, y), tmp_path / "run", published(tmp_path / "w.safetensors"))
    config = run.model.config
    assert (config.input_size, config.patch_size, config.in_channels) == ((50,), (2,), 3)
    assert [change.name for change in run.model.load_report.adapted] == ["patch_embed.proj.weight", "pos_embed"]
    assert run.model.preprocess.kind == "signal"
    assert predict(run.model, x[:2], progress=False)[0].label in ("0", "1")


def test_the_first_lines_report_the_loading(tmp_path):
    lines = []
    tune(toy(), tmp_path / "run", published(tmp_path / "w.safetensors"), log=lines.append)
    report = lines[0]
    assert report.splitlines()[0].startswith("weights  ")
    assert "new      head.weight, head.bias: initialised, to be trained" in report
    assert any("weights: " in line and "2 adapted, 2 new" in line for line in lines[1:])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "timm layout" in page


def test_a_run_continues_another(tmp_path):
    first = run_tiny(toy(classes=2), tmp_path / "first", steps=4)
    again = tune(toy(classes=2), tmp_path / "again", first.folder, learning_rate=1e-9)
    assert again.model.load_report.new == ()  # the same classes: the head stays
    old, new = tensors(first.folder), tensors(again.folder)
    assert all(torch.allclose(old[n], new[n], atol=1e-5) for n in old)

    x, y = toy(classes=2)
    other = tune((x, np.where(y, "b", "a")), tmp_path / "other", first.folder)
    assert other.model.load_report.new == ("head.weight", "head.bias")  # as many, but other classes
    assert other.model.load_report.ignored["head.weight"] == "its outputs have another meaning"


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_new_classes_are_added_to_the_known_ones(tmp_path, loss):
    x, y = toy(classes=2)
    first = run_tiny((x, np.where(y, "b", "a")), tmp_path / "first", steps=2)
    x, y, lines = *toy(classes=3), []
    names = np.array(["b", "new", "other"])[y]
    options = {"learning_rate": 1e-9, "loss": loss, "log": lines.append}
    again = tune((x, names), tmp_path / "again", first.folder, **options)
    assert "outputs by name: kept b; new at 0 new, other; left out a" in lines[0]
    old, new = tensors(first.folder), tensors(again.folder)
    assert torch.allclose(new["head.weight"][0], old["head.weight"][1], atol=1e-5)
    bias = -np.log(3) if loss == "sigmoid" else 0
    assert new["head.bias"].tolist() == pytest.approx([old["head.bias"][1].item(), bias, bias], abs=1e-5)
    assert again.model.untrained == ()


def test_a_distilled_network_keeps_classes_in_both_heads(tmp_path):
    first = run_tiny(toy(classes=3), tmp_path / "first", steps=2, distilled=True)
    again = load_model(first.folder, classes=["2", "0"])
    for name in ("head.weight", "head_dist.weight"):
        assert torch.equal(again.network.state_dict()[name], tensors(first.folder)[name][[2, 0]])


def test_an_ensemble_and_its_random_convolutions_keep_classes(tmp_path):
    options = {"members": 2, "rocket_features": 168, "steps": 1}
    first = run_tiny(toy(shape=(1, 24), classes=3), tmp_path / "first", **options)
    x = toy(shape=(1, 24))[0][:4]
    before, after = (load_model(first.folder, classes=list(names)) for names in ("012", "20"))
    old, new = (model.predict(x, **QUIET) for model in (before, after))
    assert after.untrained == ()
    for one, other in zip(old, new):
        share = one.probabilities["2"] / (one.probabilities["2"] + one.probabilities["0"])
        assert 0 < other.probabilities["2"] < 1
        assert (other.probabilities["2"] > 0.5) == (share > 0.5)
    grown = load_model(first.folder, classes=list("0123"))
    assert "members.0.members.1.head.weight" in grown.untrained
    with pytest.raises(ValueError, match="newly initialised"):
        grown.predict(x, **QUIET)


def test_another_length_of_signal(tmp_path):
    first = run_tiny(toy(shape=(2, 16)), tmp_path / "first", steps=2)
    run = tune(toy(shape=(4, 31)), tmp_path / "run", first.folder)
    assert (run.model.config.input_size, run.model.config.patch_size) == ((32,), (2,))
    assert run.model.config.in_channels == 4


def test_resuming_a_fine_tuned_run_is_exact(tmp_path, monkeypatch):
    weights = published(tmp_path / "w.safetensors")
    whole = tune(toy(), tmp_path / "whole", weights, steps=6, drop_rate=0.1)
    monkeypatch.setattr("ndvit.training.run.write_results", lambda *args: None)  # it ends before the model is written
    tune(toy(), tmp_path / "broken", weights, steps=6, drop_rate=0.1)
    monkeypatch.undo()
    resume_quietly(tmp_path / "broken", toy())
    assert same_result(whole.folder, tmp_path / "broken")
    settings = yaml.safe_load((tmp_path / "whole" / "config.yaml").read_text())
    assert settings["weights"] == str(weights)
    assert settings["model"] is None


def test_resuming_needs_the_weights_no_more(tmp_path, monkeypatch):
    weights = published(tmp_path / "w.safetensors")
    whole = tune(toy(), tmp_path / "whole", weights, steps=6)
    monkeypatch.setattr("ndvit.training.run.write_results", lambda *args: None)
    tune(toy(), tmp_path / "broken", weights, steps=6)
    monkeypatch.undo()
    weights.unlink()
    run = resume_quietly(tmp_path / "broken", toy())
    assert same_result(whole.folder, tmp_path / "broken")
    assert run.model.load_report == whole.model.load_report
    assert run.model.preprocess == whole.model.preprocess


def test_two_runs_do_not_share_a_folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("first")


def test_weights_are_looked_at_before_the_data(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model at nowhere"):
        tune(tmp_path / "no data either", tmp_path / "run", "nowhere")


def test_a_requested_size_finds_its_patch(tmp_path):
    run = run_tiny(photos(side=100), tmp_path / "run", steps=1, input_size=64)
    assert (run.model.config.input_size, run.model.config.patch_size) == ((64, 64), (8, 8))


def test_loaded_networks_train_in_training_mode(tmp_path):
    model = load_model(published(tmp_path / "w.safetensors"), num_heads=2, drop_rate=0.5)
    assert not model.network.training
    x, y = toy()
    run = tune((x, y), tmp_path / "run", published(tmp_path / "w2.safetensors"), drop_rate=0.5, steps=1)
    assert run.model.config.drop_rate == 0.5
    with_dropout = tensors(run.folder)
    without = tensors(tune((x, y), tmp_path / "other", tmp_path / "w2.safetensors", steps=1).folder)
    assert not torch.equal(with_dropout["head.weight"], without["head.weight"])


def test_fine_tuning_takes_smaller_steps(tmp_path):
    lines = []
    tune(toy(), tmp_path / "run", published(tmp_path / "w.safetensors"), log=lines.append)
    assert any("peak learning rate 0.0004" in line for line in lines)  # 0.0016 / sqrt(16)


REFUSED = {
    "two networks": (
        {"model": "vit_tiny"},
        "weights have their own network: pass model='vit_tiny' or weights, not both",
    ),
    "another width": ({"embed_dim": 32}, "embed_dim is 16 in these weights and cannot be 32"),
    "another stem": ({"stem": "resnet"}, "stem is none in these weights and cannot be resnet"),
    "more blocks": ({"depth": 3}, "these weights have 2 blocks; depth=3"),
    "no such file": ({"weights": "nowhere"}, "no model at nowhere"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, options, message):
    weights = options.pop("weights", published(tmp_path / "w.safetensors"))
    with pytest.raises((ValueError, OSError), match=message):
        tune(toy(), tmp_path / "run", weights, **options)
    assert not (tmp_path / "run").exists()


def test_a_model_with_a_new_head_does_not_predict(tmp_path, capsys):
    model = load_model(published(tmp_path / "w.safetensors"), num_heads=2, classes=("cat", "dog"))
    assert model.classes == ("cat", "dog")
    save_model(model, tmp_path / "new.safetensors")
    assert load_model(tmp_path / "new.safetensors").untrained == ("head.weight", "head.bias")
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    assert command("predict", tmp_path / "new.safetensors", tmp_path / "a.png") == 2
    lines = capsys.readouterr().err
    assert "2 tensors of the model (head.weight, head.bias) are newly initialised" in lines
    assert "train it first" in lines


def test_a_published_file_answers_at_once(tmp_path, capsys):
    model = load_model(published(tmp_path / "w.safetensors", num_classes=1000), num_heads=2)
    assert model.classes[0] == "tench"
    assert len(set(model.classes)) == 1000  # none of two meanings, as "crane" would be
    picture = photos(1)[0][0]
    with pytest.warns(WeightsWarning, match="norm_eps 1e-06, usual in the timm layout; set norm_eps="):
        answer = predict(model, [picture], **QUIET)[0]
    predict(model, [picture], **QUIET)  # the second time in silence
    published(tmp_path / "model.safetensors", num_classes=1000, embed_dim=64)  # whose heads are assumed, too
    with pytest.warns(WeightsWarning, match=r"assumed of .*model\.safetensors .*: num_heads 1, usual at width 64"):
        predict(tmp_path / "model.safetensors", [picture], **QUIET)
    with torch.no_grad():
        scores = model(model.preprocess(picture)[None]).softmax(1)[0]
    assert answer.label == model.classes[int(scores.argmax())]
    assert isinstance(model.preprocess, ImagePreprocess)


def test_commands(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    published(tmp_path / "w.safetensors")
    assert (
        command("train", "digits", "--weights", "w.safetensors", "--num-heads", "2", "--steps", "1", "--no-progress")
        == 0
    )
    assert (tmp_path / "runs" / "digits-w" / "model.safetensors").is_file()
    capsys.readouterr()
    for output in ("runs/digits-w", "runs/digits-w/model.safetensors"):
        assert command("convert", "runs/digits-w", output, "--to", "timm", "--force") == 2
        assert "belongs to a run, whose model would be lost" in capsys.readouterr().err
    assert command("convert", "runs/digits-w", "w.safetensors", "--to", "timm") == 2
    assert "w.safetensors exists: choose another output, or replace it with --force" in capsys.readouterr().err
    assert command("convert", "runs/digits-w", "out", "--to", "timm") == 0
    assert capsys.readouterr().out == "out: 32 tensors in the layout of timm\n"
    assert command("info", "out") == 0
    out = capsys.readouterr().out
    assert "timm layout" in out
    assert "mean" not in out.partition("\n\n")[0]  # the folder's config.json says what is assumed elsewhere
    assert command("convert", "runs/digits-w", "out.pth", "--to", "torchvision") == 0
    options = {"num_heads": 4, "input_size": 64}
    assert command("convert", "w.safetensors", "own.safetensors", "--to", "ndvit", *flags(options)) == 0
    own = load_model("own.safetensors").config
    assert (own.input_size, own.num_heads) == ((64, 64), 4)
    assert command("convert", "w.safetensors", "own", "--to", "ndvit", "--num-heads", "2") == 2
    assert "models of ndvit are .safetensors files, got own" in capsys.readouterr().err
    assert command("info", "w.safetensors") == 2  # 16 wide: the number of heads is unknown
    assert command("info", "w.safetensors", "--num-heads", "2") == 0
    capsys.readouterr()
    assert command("weights", "deit", "tiny") == 0
    assert "deit_tiny_patch16_224.fb_in1k" in capsys.readouterr().out
    assert command("weights", "nonsense") == 2


def test_a_fine_tuned_run_is_repeated_by_its_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    published(tmp_path / "w.safetensors")
    options = flags({"weights": "w.safetensors", "num_heads": 2, "steps": 1, "input_size": 32, "output": "a"})
    assert command("train", "digits", *options, "--no-progress") == 0
    assert command("train", "--config", "a/config.yaml", "--output", "b", "--no-progress") == 0
    assert (tmp_path / "a" / "config.yaml").read_text() == (tmp_path / "b" / "config.yaml").read_text()
    assert same_result(tmp_path / "a", tmp_path / "b")
    received = {}

    def train(source, **settings):
        received.update(settings, source=source)
        return SimpleNamespace(interrupted=False)

    monkeypatch.setattr("ndvit.training.run.train", train)
    assert command("train", "--config", "a/config.yaml") == 0
    written = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())
    usual = {"task": "classification", "members": 1}
    for name, value in written.items():  # none is lost on the way, as one that is named like a command would be
        if value is not None and value != usual.get(name):
            assert received[name] == (tuple(value) if isinstance(received[name], tuple) else value), name


def test_a_stem_is_trained_by_a_flag(tmp_path):
    run = run_tiny(
        toy(shape=(2, 50)), tmp_path / "run", steps=2, stem="resnet", stem_depths=(1,), stem_width=32, batch_size=4
    )
    assert (run.model.config.input_size, run.model.config.patch_size) == ((52,), (1,))
    assert run.model.config.grid == (13,)
    with pytest.raises(
        ValueError, match=r"input_size \(50,\) is not divisible by patch_size \(1,\) behind a stem of stride 4"
    ):
        run_tiny(toy(shape=(2, 50)), tmp_path / "other", stem="resnet", stem_depths=(1,), input_size=50)


def test_names_for_folders(tmp_path):
    assert source_name("hf:timm/vit_tiny.augreg") == "timm-vit_tiny.augreg"
    assert source_name("vit_tiny_patch16_224.augreg_in21k") == "vit_tiny_patch16_224.augreg_in21k"
    assert source_name(published(tmp_path / "W.safetensors")) == "w"
    assert source_name("ucr:Beef") == "beef"


def test_networks_that_only_their_name_tells_apart_are_refused(tmp_path):
    published(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "vit_base_patch16_rope_ape_224", "num_classes": 5}')
    with pytest.raises(ValueError, match="is of vit_base_patch16_rope_ape_224, whose blocks"):
        load_model(tmp_path, num_heads=2)
