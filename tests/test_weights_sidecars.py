"""config.json and preprocessor_config.json as transformers, timm and older releases write them."""

import json

import pytest

from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.weights.reading.sidecars import Sidecars, read_sidecars

VIT = {  # as transformers' ViTForImageClassification saves it, shortened
    "architectures": ["ViTForImageClassification"],
    "hidden_act": "gelu",
    "hidden_size": 768,
    "id2label": {"1": "cat", "0": "dog", "2": "owl"},
    "image_size": 224,
    "layer_norm_eps": 1e-12,
    "model_type": "vit",
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "patch_size": 16,
    "qkv_bias": True,
}
PLAIN = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 2, "rescale_factor": 0.00392156862745098}


def facts(config=None, processor=None):
    files = {"config.json": config, "preprocessor_config.json": processor}
    return read_sidecars({name: json.loads(json.dumps(value)) for name, value in files.items() if value is not None})


def test_nothing_is_known_of_nothing():
    assert facts() == Sidecars(None, {}, (), {})
    assert facts({"unrelated": 1}) == Sidecars(None, {}, (), {})


def test_transformers_vit():
    found = facts(VIT)
    assert found.architecture == "ViTForImageClassification"
    assert found.config == {
        "num_heads": 12,
        "norm_eps": 1e-12,
        "activation": "gelu",
        "patch_size": (16, 16),
        "input_size": (224, 224),
        "in_channels": 3,
        "depth": 12,
        "embed_dim": 768,
    }
    assert found.classes == ("dog", "cat", "owl")
    assert found.preprocess == {}


@pytest.mark.parametrize(
    "labels", [{"0": "LABEL_0", "1": "LABEL_1"}, {"0": "a", "2": "b"}, {"x": "a"}, {}, None], ids=str
)
def test_labels_without_meaning(labels):
    assert facts(VIT | {"id2label": labels}).classes == ()


def test_only_what_is_stated():
    assert facts({"model_type": "vit", "image_size": [32, 64]}).config == {"input_size": (32, 64)}
    assert facts({"model_type": "vit", "patch_size": None}).config == {}


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"hidden_act": "gelu"}, "gelu"),
        ({"hidden_act": "gelu_new"}, "gelu_tanh"),
        ({"hidden_act": "gelu_fast"}, "gelu_tanh"),
        ({"hidden_act": "gelu_pytorch_tanh"}, "gelu_tanh"),
        ({"hidden_act": "quick_gelu"}, "quick_gelu"),
        ({"hidden_act": "gelu", "use_swiglu_ffn": True}, "swiglu"),
        ({"hidden_act": "gelu", "use_swiglu_ffn": False}, "gelu"),
        ({"hidden_act": "silu", "use_gated_mlp": True}, "swiglu"),
        ({"hidden_act": "gelu", "use_gated_mlp": False}, "gelu"),
    ],
)
def test_activations(stated, expected):
    assert facts({"model_type": "vit"} | stated).config["activation"] == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "vit", "hidden_act": "relu"}, "activation 'relu' is not among those of ndvit: gelu, "),
        ({"model_type": "vit", "hidden_act": "silu"}, "activation 'silu'"),
        ({"model_type": "vit", "hidden_act": ["gelu"]}, r"activation \['gelu'\]"),
        ({"model_type": "dinov3_vit", "hidden_act": "gelu", "use_gated_mlp": True}, "activation 'a gated gelu'"),
        ({"architecture": "vit", "model_args": {"act_layer": "mish"}}, "activation 'mish'"),
        ({"model_type": "vit", "patch_size": "16"}, "patch_size is 16; expected one or two whole numbers above 0"),
        ({"model_type": "vit", "image_size": [1, 2, 3]}, r"input_size is \[1, 2, 3\]"),
        ({"model_type": "vit", "image_size": True}, "input_size is True"),
        ({"model_type": "vit", "id2label": ["a"]}, "config.json has a value of an unexpected kind"),
        ({"vision_config": "vit"}, "config.json has a value of an unexpected kind"),
        ({"architecture": "vit", "pretrained_cfg": {"mean": 3, "std": 4}}, "has a value of an unexpected kind"),
        ({"architecture": "vit", "pretrained_cfg": {"input_size": [3]}}, r"input_size is \[\]"),
    ],
)
def test_bad_configs(config, message):
    with pytest.raises(ValueError, match=message):
        facts(config)


def test_the_vision_part_of_a_pair():
    part = {"model_type": "siglip_vision_model", "hidden_size": 768}
    found = facts({"model_type": "siglip", "text_config": {"hidden_size": 9}, "vision_config": part})
    assert found.config == {"embed_dim": 768}


SQUARE = {"height": 224, "width": 224}
PROCESSORS = {
    "vit": ({"size": SQUARE}, {"size": (224, 224), "crop_fraction": 1.0, "resize": "stretch"}),
    "vit of 2021": (
        {"size": 224, "feature_extractor_type": "ViTFeatureExtractor"},
        {"size": (224, 224), "crop_fraction": 1.0, "resize": "stretch"},
    ),
    "deit": (
        {"size": {"height": 256, "width": 256}, "crop_size": SQUARE, "do_center_crop": True},
        {"size": (224, 224), "crop_fraction": 0.875, "resize": "stretch"},
    ),
    "deit of 2021": (
        {"size": 256, "crop_size": 224, "do_center_crop": True, "feature_extractor_type": "DeiTFeatureExtractor"},
        {"size": (224, 224), "crop_fraction": 0.875, "resize": "stretch"},
    ),
    "dinov2": (
        {"size": {"shortest_edge": 256}, "crop_size": SQUARE, "do_center_crop": True},
        {"size": (224, 224), "crop_fraction": 0.875, "resize": "cover"},
    ),
    "clip of 2021": (
        {"size": 224, "crop_size": 224, "do_center_crop": True, "feature_extractor_type": "CLIPFeatureExtractor"},
        {"size": (224, 224), "crop_fraction": 1.0, "resize": "cover"},
    ),
    "crop not done": (
        {"size": SQUARE, "crop_size": {"height": 99, "width": 99}, "do_center_crop": False},
        {"size": (224, 224), "crop_fraction": 1.0, "resize": "stretch"},
    ),
    "oblong": (
        {"size": {"height": 32, "width": 64}},
        {"size": (32, 64), "crop_fraction": 1.0, "resize": "stretch"},
    ),
    "shapes kept": ({"size": {"shortest_edge": 224}, "do_center_crop": False}, {"resize": "cover"}),
    "not resized": ({"size": SQUARE, "do_resize": False}, {}),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_processors(name):
    stated, expected = PROCESSORS[name]
    found = facts(processor=PLAIN | stated)
    moments = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "interpolation": "bilinear"}
    assert found.preprocess == moments | expected
    if "size" in expected:
        assert ImagePreprocess(**found.preprocess).interpolation == "bilinear"


def test_the_family_tells_what_a_number_means_where_the_processor_has_no_name():
    found = facts({"model_type": "clip", "vision_config": {"model_type": "clip_vision_model"}}, {"size": 224})
    assert found.preprocess["resize"] == "cover"


def test_grey_and_unnormalised():
    assert facts(processor={"image_mean": [0.1], "image_std": [0.3]}).preprocess == {
        "mean": (0.1,),
        "std": (0.3,),
        "mode": "L",
    }
    off = facts(processor=PLAIN | {"do_normalize": False}).preprocess
    assert (off["mean"], off["std"]) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ({"rescale_factor": 1 / 127.5}, r"scales pixels by 0\.0078\d+ \(do_rescale True\); only 1/255"),
        ({"do_rescale": False}, "do_rescale False"),
        ({"resample": 5}, "resample 5 is none of"),
        ({"size": {"longest_edge": 224}}, "is neither height and width nor a shortest_edge"),
        ({"size": [224, 224]}, "is neither height and width nor a shortest_edge"),
        ({"size": {"shortest_edge": 224}, "crop_size": {"height": 200, "width": 100}}, r"cuts \(200, 100\) from"),
        ({"size": {"shortest_edge": 224}, "crop_size": 256}, r"cuts \(256, 256\) from \(224, 224\)"),
        ({"image_mean": 0.5, "image_std": 0.5}, "preprocessor_config.json has a value of an unexpected kind"),
        ({"rescale_factor": "1/255"}, "has a value of an unexpected kind"),
    ],
)
def test_bad_processors(processor, message):
    with pytest.raises(ValueError, match=message):
        facts(processor=processor)


TIMM = {
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 2,
    "model_args": {"num_heads": 3, "act_layer": "gelu_tanh", "img_size": [32, 64], "in_chans": 3, "reg_tokens": 4},
    "pretrained_cfg": {
        "input_size": [3, 32, 64],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "crop_mode": "squash",
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "num_classes": 2,
    },
}


def test_timm():
    found = facts(TIMM | {"label_names": ["n1", "n2"], "label_descriptions": {"n1": "dog"}})
    assert found.architecture == "vit_tiny_patch16_224"
    assert found.config == {
        "num_heads": 3,
        "activation": "gelu_tanh",
        "norm_eps": 1e-6,
        "input_size": (32, 64),
        "in_channels": 3,
    }
    assert found.classes == ("dog", "n2")
    assert found.preprocess == {
        "size": (32, 64),
        "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
        "interpolation": "bicubic",
        "crop_fraction": 0.9,
        "resize": "stretch",
    }
    ImagePreprocess(**found.preprocess)


@pytest.mark.parametrize(("mode", "resize"), [("center", "cover"), ("squash", "stretch"), ("border", "pad")])
def test_timm_crop_modes(mode, resize):
    config = TIMM | {"pretrained_cfg": TIMM["pretrained_cfg"] | {"crop_mode": mode}}
    assert facts(config).preprocess.get("resize") == resize


def test_timm_labels_of_another_length_are_left_out():
    assert facts(TIMM | {"label_names": ["a"]}).classes == ()
    assert facts(TIMM | {"label_names": {"0": "a", "7": "b"}}).classes == ()
    assert facts(TIMM | {"label_descriptions": ["a", "b"]}).classes == ("a", "b")


def test_timm_before_2023_is_flat():
    flat = TIMM["pretrained_cfg"] | {"architecture": "vit_tiny_patch16_224", "labels": ["a", "b"]}
    found = facts(flat)
    assert found.classes == ("a", "b")
    assert found.config == {"in_channels": 3, "input_size": (32, 64), "norm_eps": 1e-6}
    assert found.preprocess["crop_fraction"] == 0.9


def test_timm_pooling_and_what_only_a_name_tells():
    assert facts(TIMM | {"global_pool": "avg"}).config["pooling"] == "avg"
    assert "pooling" not in facts(TIMM | {"global_pool": ""}).config
    with pytest.raises(ValueError, match="global_pool 'avgmax' is not among the poolings of ndvit: token, avg, map"):
        facts(TIMM | {"global_pool": "avgmax"})
    named = TIMM | {"architecture": "vit_base_patch16_clip_quickgelu_224", "model_args": {}}
    assert facts(named).config["activation"] == "quick_gelu"
    assert facts(named).config["norm_eps"] == 1e-5


def test_agrees_with_timm(tmp_path):
    timm = pytest.importorskip("timm")
    model = timm.create_model(
        "vit_tiny_patch16_224", depth=1, num_heads=6, img_size=(32, 64), in_chans=1, num_classes=2
    )
    arguments = {"depth": 1, "num_heads": 6, "img_size": (32, 64)}
    timm.models.save_for_hf(model, tmp_path, model_config={"label_names": ["a", "b"]}, model_args=arguments)
    found = read_sidecars({"config.json": json.loads((tmp_path / "config.json").read_text())})
    assert found.architecture == "vit_tiny_patch16_224"
    stated = {
        "depth": 1,
        "num_heads": 6,
        "input_size": (32, 64),
        "in_channels": 1,
        "pooling": "token",
        "norm_eps": 1e-6,
    }
    assert found.config == stated
    assert found.classes == ("a", "b")
    assert found.preprocess["size"] == (32, 64)
    assert found.preprocess["crop_fraction"] == timm.data.resolve_data_config({}, model=model)["crop_pct"]


HUGGING_FACE = {
    "ViTConfig": {"norm_eps": 1e-12, "activation": "gelu", "patch_size": (16, 16)},
    "DeiTConfig": {"norm_eps": 1e-12, "activation": "gelu", "patch_size": (16, 16)},
    "ViTMAEConfig": {"norm_eps": 1e-12, "activation": "gelu", "patch_size": (16, 16)},
    "Dinov2Config": {"norm_eps": 1e-6, "activation": "gelu", "patch_size": (14, 14)},
    "Dinov2WithRegistersConfig": {"norm_eps": 1e-6},
    "DINOv3ViTConfig": {"norm_eps": 1e-5, "num_heads": 6},
    "CLIPVisionConfig": {"activation": "quick_gelu", "norm_eps": 1e-5, "patch_size": (32, 32)},
    "SiglipVisionConfig": {"activation": "gelu_tanh", "norm_eps": 1e-6},
    "CLIPConfig": {"activation": "quick_gelu", "depth": 12, "embed_dim": 768},
}


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_configs_of_transformers(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    expected = HUGGING_FACE[name]
    getattr(transformers, name)().save_pretrained(tmp_path)
    found = read_sidecars({"config.json": json.loads((tmp_path / "config.json").read_text())})
    assert found.classes == ()
    assert {key: found.config[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "resize", "interpolation", "crop"),
    [
        ("ViTImageProcessor", "squash", "bilinear", 1.0),
        ("DeiTImageProcessor", "squash", "bicubic", 0.875),
        ("BitImageProcessor", "crop", "bicubic", 1.0),
        ("CLIPImageProcessor", "crop", "bicubic", 1.0),
        ("SiglipImageProcessor", "squash", "bicubic", 1.0),
        ("DINOv3ViTImageProcessor", "squash", "bilinear", 1.0),
    ],
)
def test_processors_of_transformers(tmp_path, name, resize, interpolation, crop):
    transformers = pytest.importorskip("transformers")
    getattr(transformers, name)().save_pretrained(tmp_path)
    stated = json.loads((tmp_path / "preprocessor_config.json").read_text())
    preprocess = ImagePreprocess(**read_sidecars({"preprocessor_config.json": stated}).preprocess)
    assert (preprocess.resize, preprocess.interpolation, preprocess.crop_fraction) == (resize, interpolation, crop)
    assert preprocess.size == (224, 224)
    assert preprocess.mean == tuple(stated["image_mean"])
