"""Published networks of signals: what they bring along, what they are adapted to, and training that starts there."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import save_file

from checkpoints import randomise, values
from hubserver import HubServer, connect
from mantisnetwork import answer, make_tensors
from ndvit.config import ViTConfig
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.weights.reading import hub as room
from ndvit.weights.reading.hub import resolve
from ndvit.weights.reading.zoo import find_weights
from tinyruns import fit_tiny, toy
from weightfiles import load_model


def tensors_of(version=1, **sizes):
    generator = torch.Generator().manual_seed(0)
    small = {"width": 16, "patches": 4, "head_dim": 4 if version == 1 else 2, **sizes}
    return make_tensors(lambda name, shape: values(name, shape, generator), version, **small)


def published(folder, version=1, **sizes):
    path = folder / "model.safetensors"
    save_file(tensors_of(version, **sizes), path)
    return path


@pytest.mark.parametrize("version", [1, 2])
def test_nothing_is_assumed(version, tmp_path):
    model = load_model(published(tmp_path, version))
    assert model.load_report.assumed == ()
    assert model.preprocess == SignalPreprocess((model.config.input_size[0],), (0.0,), (1.0,), resize="resample")


def test_depth_keeps_the_first_blocks(tmp_path):
    tensors = tensors_of(depth=3)
    save_file(tensors, tmp_path / "model.safetensors")
    model = load_model(tmp_path / "model.safetensors", depth=1, pooling="token_avg")
    first = {name: t for name, t in tensors.items() if ".layers.1." not in name and ".layers.2." not in name}
    x = torch.randn(3, 1, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), answer(first, x, mean=True), atol=1e-5, rtol=1e-5)
    assert model.untrained == ()


@pytest.mark.parametrize("version", [1, 2])
def test_more_patches(version, tmp_path):
    model = load_model(published(tmp_path, version), input_size=128)
    assert model.config.grid == (8,)
    assert model.preprocess.size == (128,)
    assert model(torch.randn(2, 1, 128)).shape == (2, 16)
    assert [change.name for change in model.load_report.adapted] == (["pos_embed"] if version == 1 else [])


def test_any_number_of_windows_is_exact_in_the_second_version(tmp_path):
    tensors, x = tensors_of(2), torch.randn(3, 1, 160)
    save_file(tensors, tmp_path / "model.safetensors")
    with torch.no_grad():
        got = load_model(tmp_path / "model.safetensors", input_size=160)(x)
    torch.testing.assert_close(got, answer(tensors, x), atol=1e-5, rtol=1e-5)


def test_several_channels_are_refused(tmp_path):
    with pytest.raises(ValueError, match="in_channels is 3, but the mantis stem reads one channel: train on one"):
        load_model(published(tmp_path), in_channels=3)


def test_pictures_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the mantis stem of these weights reads 1 axes"):
        load_model(published(tmp_path), input_size=(64, 64))


def test_other_scales_are_refused(tmp_path):
    tensors = tensors_of()
    tensors["tokgen_unit.scalar_encoders.1.scales"] *= 2
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"tokgen_unit\.scalar_encoders\.1\.scales is .*: ndvit has Mantis with the"):
        load_model(tmp_path / "model.safetensors")


def test_the_config_of_the_package(tmp_path):
    published(tmp_path, head_dim=8)
    stated = {"seq_len": 64, "hidden_dim": 16, "transf_depth": 2, "transf_num_heads": 4, "transf_dim_head": 16}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    config = load_model(tmp_path).config
    assert (config.input_size, config.num_heads, config.head_dim) == ((64,), 4, 16)


def test_another_number_of_heads_contradicts_the_second_version(tmp_path):
    published(tmp_path, 2)
    (tmp_path / "config.json").write_text(json.dumps({"transf_num_heads": 4}))
    model = load_model(tmp_path)
    assert model.config.num_heads == 8
    assert any("num_heads is 4 there, and 8 by the tensors" in note for note in model.load_report.notes)


def test_a_missing_tensor_is_named(tmp_path):
    tensors = tensors_of()
    del tensors["tokgen_unit.linear_encoder.layer_norm.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"patch_embed\.norm\.bias"):
        load_model(tmp_path / "model.safetensors")


# ---- training


def test_signals_are_resampled_to_the_length_of_the_weights(tmp_path):
    trained = fit_tiny(toy(20, (1, 25)), weights=published(tmp_path), head="solved", depth=1, pooling="token_avg")
    model = trained.model
    assert (model.config.input_size, model.config.depth) == ((64,), 1)
    assert (model.preprocess.size, model.preprocess.resize) == ((64,), "resample")
    kept = load_model(tmp_path / "model.safetensors").network.state_dict()
    assert torch.equal(model.network.state_dict()["blocks.0.attn.qkv.weight"], kept["blocks.0.attn.qkv.weight"])
    assert model.untrained == ()


def test_a_size_of_the_user_has_precedence(tmp_path):
    trained = fit_tiny(toy(20, (1, 25)), weights=published(tmp_path), head="solved", input_size=32)
    assert trained.model.config.input_size == (32,)


@pytest.mark.parametrize("version", [1, 2])
def test_fine_tuning_with_batch_norm_before_the_head(version, tmp_path):
    weights = published(tmp_path, version)
    trained = fit_tiny(toy(20, (1, 25)), weights=weights, head_norm="batch", steps=2, batch_size=8)
    tensors = trained.model.network.state_dict()
    before = load_model(weights).network.state_dict()
    for name in ("blocks.0.attn.qkv.weight", "patch_embed.backbone.branches.0.conv.weight", "cls_token"):
        assert not torch.equal(tensors[name], before[name])
    assert tensors["head_norm.num_batches_tracked"] == 2


def test_training_on_several_channels_names_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="in_channels is 2, but the mantis stem reads one channel"):
        fit_tiny(toy(20, (2, 25)), weights=published(tmp_path), head="solved")


# ---- spectrograms


def spectrograms(folder, labels=3, **processor):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ASTConfig(**sizes, num_mel_bins=26, max_length=36, num_labels=labels)
    randomise(transformers.ASTForAudioClassification(config), 0).save_pretrained(folder)
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return load_model(folder)


def test_spectrograms_are_standardised_as_stated(tmp_path):
    model = spectrograms(tmp_path, mean=-6.0, std=5.0, num_mel_bins=26, max_length=36)
    assert model.config == ViTConfig(**{**model.config.to_dict(), "patch_stride": (10, 10), "input_size": (26, 36)})
    assert model.preprocess == SignalPreprocess((26, 36), (-6.0,), (10.0,))


def test_audioset_has_several_labels(tmp_path):
    model = spectrograms(tmp_path, labels=527)
    assert model.task.name == "multilabel"


def test_spectrograms_train_a_new_head(tmp_path):
    spectrograms(tmp_path)
    trained = fit_tiny(toy(20, (1, 26, 36)), weights=tmp_path, head="solved", input_size=(26, 36))
    assert trained.model.config.grid == (2, 3)
    assert trained.model.config.head_norm == "layer"


# ---- the hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = HubServer()
    connect(monkeypatch, server, tmp_path)
    yield server
    server.stop()


def test_rows_are_downloaded_and_kept(hub, tmp_path):
    data = published(tmp_path).read_bytes()
    hub.repos["paris-noah/Mantis-8M"] = {"model.safetensors": data, "config.json": b'{"transf_num_heads": 8}'}
    model = load_model("mantis/mantis_8m.real")
    assert model.config.grid == (4,)
    assert model.provenance == {"source": "mantis/mantis_8m.real", "licence": "mit"}
    hub.stop()
    assert load_model("hf:paris-noah/Mantis-8M").config == model.config


def test_a_row_of_one_revision(hub, monkeypatch):
    utica = replace(find_weights("mantis/mantis_8m.utica"), revision="v1")
    monkeypatch.setattr(room, "find_weights", lambda name: utica)
    hub.repos["fegounna/Utica"] = {"pytorch_model.bin": b"1" * 200, "model.safetensors": b"2" * 200}
    path, _ = resolve(utica.name)
    assert path.name == "pytorch_model.bin"
    assert any("/v1/" in place for _, place, _ in hub.requests)
    hub.requests.clear()
    assert resolve(utica.name) == (path, utica)
    assert not hub.requests  # a release does not change
