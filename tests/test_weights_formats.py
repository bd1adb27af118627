"""Other libraries' checkpoints: recognised, read whole, and answering as the library they come from answers."""

import json
import math
import re

import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import save_file
from torch import nn

from checkpoints import CASES, CLASSES, DEPTH, HEADS, WIDTH, randomise, state, write
from googlefiles import NEW, make_arrays
from ndvit.network import VisionTransformer
from ndvit.weights.layouts.architecture import infer
from ndvit.weights.layouts.finding import choose_network
from ndvit.weights.layouts.formats import FORMATS
from ndvit.weights.layouts.layout import convert
from ndvit.weights.reading.files import read_tensors
from weightfiles import load_model

SMALL = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "num_classes": CLASSES, "img_size": 64}


def difference(ours, reference, *shape):
    x = torch.randn(2, *shape)
    with torch.no_grad():
        expected = reference(x)
        got = ours(x)
    assert got.shape == expected.shape
    return float((got - expected).abs().max())


def timm_file(folder, architecture="vit_base_patch16_224", **arguments):
    model = randomise(timm.create_model(architecture, **SMALL | arguments), 0)
    return model, write(state(model), folder, "safetensors")


# ---- every kind


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
def test_same_answers(name, tmp_path):
    sample = CASES[name](tmp_path, 0)
    chosen = choose_network(read_tensors(sample.path).tensors, sample.path)
    tensors = chosen.tensors
    assert [f.name for f in FORMATS if f.matches(tensors)] == [chosen.format.name] == [sample.kind]

    model = load_model(sample.path, **sample.overrides)
    report = model.load_report
    assert report.kind == sample.kind
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert difference(model, sample.reference, *sample.shape) < sample.tolerance
    assert epsilons(sample.reference) in ({model.config.norm_eps}, set())  # too small to show in answers of order 1

    # every value of the file is in the network, or in a tensor that the report lists as ignored
    converted = convert(tensors, chosen.format)
    ignored_names = {name.removeprefix(chosen.prefix) for name in report.ignored}
    assert ignored_names == converted.ignored.keys()
    read = sum(t.numel() for t in converted.format.prepare(tensors).values())
    ignored = sum(t.numel() for n, t in converted.format.prepare(tensors).items() if n in ignored_names)
    values = {name: t.numel() for name, t in model.state_dict().items()}
    loaded = {*report.loaded, *(change.name for change in report.adapted)}
    computed = set() if tensors_hold_positions(tensors) else {"pos_embed"}
    assert read - ignored + sample.zeros - sample.folded == sum(values[n] for n in loaded - computed)
    assert loaded == set(values) - ({"rope_periods"} - set(report.loaded))
    assert report.new == model.untrained == ()


def epsilons(reference):
    network = getattr(reference, "args", (reference,))[0]
    modules = network.modules() if isinstance(network, nn.Module) else ()
    return {module.eps for module in modules if isinstance(module, nn.LayerNorm)}


def tensors_hold_positions(tensors):
    return any(re.search("pos_embed|position_embedding|pos_encoder|storage|reg", name) for name in tensors)


def test_outputs_are_of_a_size_that_tells(tmp_path):
    """Randomised parameters make every tensor matter: another network's answers are far away."""
    sample = CASES["timm/plain"](tmp_path, 0)
    model = load_model(sample.path, **sample.overrides)
    for name, tensor in model.state_dict().items():
        kept = tensor.clone()
        with torch.no_grad():
            tensor.mul_(1.1)
        # the class token's position and the keys' biases (softmax does not see them) are in larger tensors
        assert difference(model, sample.reference, *sample.shape) > 1e-3, name
        with torch.no_grad():
            tensor.copy_(kept)
    assert difference(load_model(sample.path), sample.reference, *sample.shape) > 0.1  # one head, not two
    assert difference(load_model(sample.path, **sample.overrides, norm_eps=1e-2), sample.reference, 3, 64, 64) > 1e-3
    assert difference(load_model(sample.path, num_heads=2, activation="gelu_tanh"), sample.reference, 3, 64, 64) > 2e-5


def test_google_numerics_differ_from_those_of_ports(tmp_path):
    sample = CASES["Google/hybrid R26+S/32"](tmp_path, 0)
    assert difference(load_model(sample.path, activation="gelu"), sample.reference, *sample.shape) > 1e-4
    assert difference(load_model(sample.path, stem_numerics="timm"), sample.reference, *sample.shape) > 1e-4


# ---- foreign files


def foreign():
    def state_of(model):
        return state(model)

    def bert():
        config = transformers.BertConfig(
            vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
        return state_of(transformers.BertModel(config))

    def clip_classifier():
        sides = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        sides |= {"image_size": 32, "patch_size": 16, "vocab_size": 20}
        config = transformers.CLIPConfig(vision_config=sides, text_config=sides, num_labels=3)
        return state_of(transformers.CLIPForImageClassification(config))

    def named(*names):
        return {name: torch.zeros(2, 2) for name in names}

    def built(name, **arguments):
        return lambda: state_of(timm.create_model(name, num_classes=3, **arguments))

    vision = torchvision.models
    lora = named("base_model.model.vit.layer.0.query.lora_A.weight", "base_model.model.vit.layer.0.query.lora_B.weight")
    pytorch = named("pos_embedding", "cls_token", "to_patch_embedding.1.weight", "transformer.layers.0.0.to_qkv.weight")
    return {
        "ResNet of torchvision": (lambda: state_of(vision.resnet18(num_classes=3)), "a ResNet"),
        "ResNet of timm": (built("test_resnet"), "a ResNet"),
        "Swin of torchvision": (lambda: state_of(vision.swin_t(num_classes=3)), "a Swin Transformer or BEiT"),
        "Swin of timm": (built("swin_tiny_patch4_window7_224", depths=(1, 1)), "a Swin Transformer or BEiT"),
        "ConvNeXt of torchvision": (lambda: state_of(vision.convnext_tiny(num_classes=3)), "a ConvNeXt"),
        "ConvNeXt of timm": (built("convnext_atto"), "a ConvNeXt"),
        "EfficientNet of timm": (built("test_efficientnet"), "an EfficientNet or MobileNet"),
        "VGG": (lambda: named("features.0.weight", "features.0.bias"), "a VGG or AlexNet"),
        "BERT": (bert, "a language model (BERT)"),
        "Llama": (lambda: named("layers.0.self_attn.q_proj.weight", "norm.weight"), "a language model"),
        "LoRA": (lambda: lora, "a LoRA adapter: merge it into its model and save that"),
        "vit-pytorch": (lambda: pytorch, "a Vision Transformer of vit-pytorch, which ndvit cannot read"),
        "OpenCLIP": (lambda: named("visual.conv1.weight", "visual.ln_pre.weight"), "an OpenCLIP model: save its image"),
        "optimiser": (lambda: named("exp_avg.0", "exp_avg_sq.0"), "the state of an optimiser"),
        "BEiT": (built("beit_base_patch16_224", depth=1, embed_dim=32, num_heads=2), "a Swin Transformer or BEiT"),
        "EVA-02": (built("eva02_tiny_patch14_224", depth=1), "an EVA or another Vision Transformer with rotary"),
        "EVA-02, split": (built("eva02_base_patch14_224", depth=1), "an EVA or another Vision Transformer with rotary"),
        "Perception Encoder": (built("vit_pe_core_tiny_patch16_384", depth=1), "with parts that ndvit does not have"),
        "RoPE-ViT, mixed": (built("vit_small_patch16_rope_mixed_ape_224", depth=1), "an EVA or another Vision"),
        "RoPE-ViT, axial": (built("vit_mediumd_patch16_rope_reg1_gap_256", depth=1), "parts that ndvit does not have"),
        "CLIP classifier": (clip_classifier, "a classifier on CLIP, whose head reads tokens before the final norm"),
        "unknown": (lambda: named("encoder.weird"), "has no layout that ndvit knows"),
    }


FOREIGN = foreign()


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_are_refused_with_what_they_look_like(name, tmp_path):
    build, words = FOREIGN[name]
    tensors = build()
    path = tmp_path / "weights.safetensors"
    save_file(tensors, path)
    assert [f.name for f in FORMATS if f.matches(tensors)] == []
    with pytest.raises(ValueError, match="no Vision Transformer that ndvit can read") as error:
        load_model(path)
    message = str(error.value)
    assert words in message
    assert str(path) in message
    assert f"with {len(tensors)} tensors such as {min(tensors)}" in message
    assert "Known layouts: timm, timm CLIP, " in message


def test_a_file_of_nothing_but_an_optimiser(tmp_path):
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}}
    torch.save({"optimizer": {"state": moments, "param_groups": [{"lr": 0.1}]}, "epoch": 3}, tmp_path / "last.pth")
    with pytest.raises(ValueError, match="holds a dict of optimizer, epoch; expected a dict of tensors"):
        load_model(tmp_path / "last.pth")


@pytest.mark.parametrize("architecture", ["vit_base_resnet26d_224", "vit_dwee_patch16_reg1_gap_256"])
def test_relatives_with_other_parts_are_refused(architecture, tmp_path):
    """timm's hybrids with another ResNet, and its differential attention, have the names of a ViT and more."""
    tensors = state(timm.create_model(architecture, num_classes=3, depth=2))
    save_file(tensors, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"tensors do not fit the config: .*unexpected"):
        load_model(tmp_path / "weights.safetensors")


# ---- damaged files


def test_tensors_that_are_missing_or_too_many(tmp_path):
    _, path = timm_file(tmp_path)
    tensors = read_tensors(path).tensors
    del tensors["blocks.1.norm2.bias"]
    tensors["blocks.1.extra.weight"] = torch.zeros(3)
    broken = write(tensors, tmp_path, "pth")
    with pytest.raises(
        ValueError, match=r"1 missing \(blocks\.1\.norm2\.bias\); 1 unexpected \(blocks\.1\.extra\.weight"
    ):
        load_model(broken, num_heads=2)


def test_wrong_shape(tmp_path):
    _, path = timm_file(tmp_path)
    tensors = read_tensors(path).tensors
    tensors["blocks.1.mlp.fc1.weight"] = torch.zeros(128, WIDTH)
    words = r"blocks\.1\.mlp\.fc1\.weight is \(128, 64\), the config needs \(256, 64\)"
    with pytest.raises(ValueError, match=words):
        load_model(write(tensors, tmp_path, "pth"), num_heads=2)


@pytest.mark.parametrize("part", ["q_proj.weight", "k_proj.weight", "v_proj.weight", "q_proj.bias", "v_proj.bias"])
def test_a_missing_part_of_a_fused_tensor_is_not_made_up(part, tmp_path):
    sample = CASES["transformers/ViT classification, live keys"](tmp_path, 0)
    tensors = read_tensors(sample.path).tensors
    del tensors[f"vit.layers.1.attention.{part}"]
    with pytest.raises(ValueError, match=rf"missing \(blocks\.1\.attn\.qkv\.{part[7:]}\); 2 unexpected"):
        load_model(write(tensors, tmp_path, "pth"), num_heads=2)


@pytest.mark.parametrize(
    ("name", "lost", "words"),
    [
        ("transformers/DINOv3 gated, live keys", r"0\.mlp\.gate_proj", "layout lacks blocks.0.mlp.fc1.weight"),
        (
            "transformers/ViT classification, live keys",
            "position_embeddings",
            r"has no positions \(pos_embed\), which its",
        ),
        ("MAE release, full", r"^model\.pos_embed$", r"has no positions \(pos_embed\)"),
        ("Google/ViT-B/16, old numbering", "encoderblock_0/.*LayerNorm_0", "lacks blocks.0.norm1.weight"),
    ],
)
def test_parts_that_every_network_has(name, lost, words, tmp_path):
    sample = CASES[name](tmp_path, 0)
    tensors = {n: t for n, t in read_tensors(sample.path).tensors.items() if not re.search(lost, n)}
    if name.startswith("Google"):
        tensors = {n: t for n, t in tensors.items() if "encoderblock_0/LayerNorm_0" not in n}
    with pytest.raises(ValueError, match=words):
        load_model(write(tensors, tmp_path, "pth"), num_heads=2)


def test_two_tensors_for_one_place(tmp_path):
    sample = CASES["torchvision/ViT"](tmp_path, 0)
    tensors = read_tensors(sample.path).tensors
    tensors["encoder.layers.encoder_layer_0.mlp.linear_1.weight"] = torch.zeros(128, WIDTH)
    with pytest.raises(ValueError, match=r"and another tensor of the file are both blocks\.0\.mlp\.fc1\.weight"):
        load_model(write(tensors, tmp_path, "pth"), num_heads=2)


# ---- what the shapes tell, and what they do not


def test_heads_that_the_file_tells_cannot_be_changed(tmp_path):
    sample = CASES["Google/ViT-B/16, old numbering"](tmp_path, 0)
    assert load_model(sample.path).config.num_heads == 2
    with pytest.raises(ValueError, match="num_heads is 2 in these weights and cannot be 4"):
        load_model(sample.path, num_heads=4)
    (tmp_path / "hf").mkdir()
    sample = CASES["transformers/ViT classification, folder"](tmp_path / "hf", 0)
    with pytest.raises(ValueError, match=r"num_heads is 2 in these weights and cannot be 4"):
        load_model(sample.path, num_heads=4)


def test_heads_of_the_text_side_are_not_those_of_the_pictures(tmp_path):
    sample = CASES["SigLIP/map, scanned"](tmp_path, 0)
    model = load_model(sample.path)
    assert model.config.num_heads == 2
    assert set(model.load_report.ignored.values()) == {"the text side of an image-text model"}


def test_heads_that_nothing_tells(tmp_path):
    _, path = timm_file(tmp_path)
    model = load_model(path)
    assert "num_heads 1, usual at width 64; set num_heads=" in model.load_report.assumed
    assert not any("num_heads" in line for line in load_model(path, num_heads=2).load_report.assumed)
    with pytest.raises(ValueError, match="embed_dim 64 is not divisible by num_heads 3"):
        load_model(path, num_heads=3)
    _, path = timm_file(tmp_path, embed_dim=48)
    with pytest.raises(ValueError, match="a width of 48 has no usual one: set num_heads="):
        load_model(path)
    assert load_model(path, num_heads=2).config.num_heads == 2


def test_what_is_usual_is_stated(tmp_path):
    _, path = timm_file(tmp_path)
    assumed = load_model(path, num_heads=2).load_report.assumed
    assert "norm_eps 1e-06, usual in the timm layout; set norm_eps=" in assumed
    assert "activation gelu, usual in the timm layout; set activation=" in assumed
    assert any(line.startswith("mean (0.485, 0.456, 0.406), std") for line in assumed)
    _, path = timm_file(tmp_path, "vit_base_patch16_clip_224")
    assert "norm_eps 1e-05, usual in the timm CLIP layout; set norm_eps=" in load_model(path).load_report.assumed
    assert load_model(path).preprocess.mean == (0.48145466, 0.4578275, 0.40821073)


def test_grids_that_are_not_square(tmp_path):
    model, path = timm_file(tmp_path, img_size=(32, 96))
    with pytest.raises(
        ValueError, match=r"has 13 positions for 1 prefix tokens and a grid that is not square: set input_size="
    ):
        load_model(path, num_heads=2)
    ours = load_model(path, num_heads=2, input_size=(32, 96))
    assert difference(ours, model, 3, 32, 96) < 2e-5
    assert ours.load_report.adapted == ()
    # the same number of patches on its side: a claim that no tensor refutes
    assert load_model(path, num_heads=2, input_size=(96, 32)).config.grid == (6, 2)


def test_grids_that_config_json_tells(tmp_path):
    config = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 96}
    config = transformers.ViTConfig(**config, image_size=[16, 64], patch_size=[8, 8])
    model = randomise(transformers.ViTForImageClassification(config), 0)
    model.save_pretrained(tmp_path)
    ours = load_model(tmp_path)  # 16 patches, which could be a square
    assert ours.config.grid == (2, 8)
    assert difference(ours, lambda x: model(x).logits, 3, 16, 64) < 2e-5
    assert ours.config.norm_eps == 1e-12
    assert not any(line.startswith(("num_heads", "norm_eps", "activation")) for line in ours.load_report.assumed)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("hidden_size", 128, "embed_dim is 128 there, and 64 by the tensors"),
        ("num_hidden_layers", 5, "depth is 5 there, and 2 by the tensors"),
        ("patch_size", 8, r"patch_size is \(8, 8\) there, and \(16, 16\) by the tensors"),
        ("num_channels", 1, "in_channels is 1 there, and 3 by the tensors"),
    ],
)
def test_config_json_of_another_model_is_left_aside(name, value, words, tmp_path):
    sample = CASES["transformers/ViT classification, folder"](tmp_path, 0)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value, "layer_norm_eps": 0.1}))
    model = load_model(tmp_path, num_heads=2)
    assert any(re.search(f"describes another model .{words}.* and is not used", n) for n in model.load_report.notes)
    assert difference(model, sample.reference, 3, 64, 64) < 2e-5


def test_config_json_that_is_right_is_believed(tmp_path):
    sample = CASES["transformers/CLIP vision, gelu, folder"](tmp_path, 0)
    model = load_model(tmp_path)
    assert (model.config.activation, model.config.num_heads) == ("gelu", 2)
    assert difference(model, sample.reference, 3, 64, 64) < 2e-5


def test_sizes_that_patches_do_not_divide(tmp_path):
    """SigLIP So400m/14 at 384 has 27 x 27 patches of 14, which leave six pixels uncovered."""
    config = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 96}
    config = transformers.SiglipVisionConfig(**config, image_size=34, patch_size=8)
    model = randomise(transformers.SiglipVisionModel(config), 0)
    model.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert ours.config.input_size == (32, 32)
    assert "trained at (34, 34), of which whole patches cover (32, 32), which is the input size here" in "\n".join(
        ours.load_report.notes
    )
    x = torch.randn(2, 3, 34, 34)
    with torch.no_grad():
        assert (ours(x[:, :, :32, :32]) - model(x).pooler_output).abs().max() < 2e-5


def test_positions_that_are_not_saved(tmp_path):
    sample = CASES["big_vision/gap, sincos2d not saved"](tmp_path, 0)
    report = load_model(sample.path).load_report
    assert "input_size (224, 224): no tensor depends on it; set input_size=" in report.assumed
    assert "the file has no positions: big_vision's fixed sines and cosines were computed" in report.notes


@pytest.mark.parametrize("hidden", [171, 1, 97])
def test_hidden_sizes_are_exact(hidden, tmp_path):
    model, path = timm_file(tmp_path, mlp_ratio=hidden / WIDTH)
    assert model.blocks[0].mlp.fc1.out_features == hidden
    assert difference(load_model(path, num_heads=2), model, 3, 64, 64) < 2e-5


@pytest.mark.parametrize("width", [49, 98, 384, 1152, 1536])
def test_every_hidden_size_survives_its_ratio(width):
    hiddens = range(1, 4 * width + 4, max(3, width // 40))
    if width in (49, 98):  # the quotient of some is rounded down
        assert any(int(width * (hidden / width)) != hidden for hidden in hiddens)
    for hidden in hiddens:
        shapes = {
            "patch_embed.proj.weight": (width, 3, 16, 16),
            "blocks.0.norm1.weight": (width,),
            "blocks.0.mlp.fc1.weight": (hidden, width),
            "blocks.0.mlp.fc2.weight": (width, hidden),
            "pos_embed": (1, 16, width),
        }
        tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        converted = convert(tensors, next(f for f in FORMATS if f.name == "timm"))
        config = infer(converted, {"num_heads": 1}, "a file").config
        assert int(config.embed_dim * config.mlp_ratio) == hidden


# ---- unusual networks under timm's names


@pytest.mark.parametrize(
    ("size", "patch", "channels", "classes"),
    [((48,), (4,), 1, 3), ((48,), (4,), 12, 0), ((16, 16, 16), (8, 8, 8), 1, 3), ((16, 16), (8, 8), 5, 1)],
)
def test_any_number_of_dimensions(size, patch, channels, classes, tmp_path):
    """A file of bare tensors under timm's names, as a fork for signals or volumes would write it."""
    config = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "num_classes": classes}
    from ndvit import ViTConfig

    model = VisionTransformer(ViTConfig(input_size=size, patch_size=patch, in_channels=channels, **config))
    randomise(model, 0)
    ours = load_model(write(state(model), tmp_path, "pth"), num_heads=HEADS)
    assert ours.config.input_size == size
    assert ours.load_report.kind == "timm"
    assert difference(ours, model, channels, *size) < 1e-6
    assert ours.preprocess is None


def test_kernels_of_four_axes_are_refused(tmp_path):
    _, path = timm_file(tmp_path)
    tensors = read_tensors(path).tensors
    tensors["patch_embed.proj.weight"] = torch.zeros(WIDTH, 3, 2, 2, 2, 2)
    with pytest.raises(ValueError, match=r"has shape \(64, 3, 2, 2, 2, 2\); expected \(width, channels, \*patch\)"):
        load_model(write(tensors, tmp_path, "pth"), num_heads=2)


# ---- published sizes, on the meta device

TIMM = {  # checkpoints.md, 3.1, and timm's own counts less what it does not have of them
    "vit_tiny_patch16_224": (5_717_416, 3),
    "vit_small_patch32_224": (22_878_952, 6),
    "vit_small_patch16_224": (22_050_664, 6),
    "vit_small_patch8_224": (22_055_272, 6),
    "vit_base_patch32_224": (88_224_232, 12),
    "vit_base_patch16_224": (86_567_656, 12),
    "vit_base_patch16_384": (86_859_496, 12),
    "vit_base_patch8_224": (86_576_872, 12),
    "vit_large_patch32_224": (306_535_400, 16),
    "vit_large_patch16_224": (304_326_632, 16),
    "vit_huge_patch14_224": (632_045_800, 16),
    "deit_tiny_distilled_patch16_224": (5_910_800, 3),
    "deit_small_distilled_patch16_224": (22_436_432, 6),
    "deit_base_distilled_patch16_224": (87_338_192, 12),
    "deit_base_distilled_patch16_384": (87_630_032, 12),
    "deit3_small_patch16_224": (22_059_496, 6),
    "deit3_medium_patch16_224": (38_849_512, 8),
    "deit3_base_patch16_224": (86_585_320, 12),
    "deit3_large_patch16_224": (304_374_760, 16),
    "deit3_huge_patch14_224": (632_126_440, 16),
    "vit_tiny_r_s16_p8_224": (6_337_704, 3),
    "vit_small_r26_s32_224": (36_431_912, 6),
    "vit_base_r50_s16_224": (98_659_112, 12),
    "vit_base_r50_s16_384": (98_950_952, 12),
    "vit_large_r50_s32_224": (328_994_856, 16),
    "vit_base_patch14_dinov2": (86_579_712, 12),
    "vit_base_patch14_reg4_dinov2": (86_582_016, 12),
    "vit_giant_patch14_dinov2": (1_136_479_232, 24),
    "vit_base_patch16_siglip_224": (92_884_224, 12),
    "vit_giantopt_patch16_siglip_256": (1_163_168_256, 16),
    "vit_so400m_patch14_siglip_224": (427_680_704, 16),
    "vit_base_patch16_clip_224": (86_568_424 + 768, 12),  # with biases of patches
    "vit_small_patch16_dinov3": (21_586_944, 6),  # with biases of qkv
    "vit_base_patch16_dinov3": (85_641_216, 12),
    "vit_huge_plus_patch16_dinov3": (840_509_440, 20),
    "vit_7b_patch16_dinov3": (6_716_030_976, 32),
}


def inferred(tensors, stated=None):
    chosen = choose_network(tensors, "a file")
    config = infer(convert(chosen.tensors, chosen.format), stated or {}, "a file").config
    with torch.device("meta"):
        network = VisionTransformer(config)
    return config, sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", TIMM)
def test_published_sizes_of_timm(name):
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=0 if re.search("dinov|siglip", name) else 1000)
    config, count = inferred(theirs.state_dict())
    assert (count, config.num_heads) == TIMM[name]
    assert config.num_heads == theirs.blocks[0].attn.num_heads
    biases = config.embed_dim if theirs.patch_embed.proj.bias is None else 0
    assert count == sum(p.numel() for p in theirs.parameters()) + biases
    if config.pos_embed == "learned":
        assert config.input_size == tuple(theirs.patch_embed.img_size)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vit_b_16", 86_567_656),
        ("vit_b_32", 88_224_232),
        ("vit_l_16", 304_326_632),
        ("vit_l_32", 306_535_400),
        ("vit_h_14", 632_045_800),
    ],
)
def test_published_sizes_of_torchvision(name, count):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)()
    config, found = inferred(theirs.state_dict())
    heads = theirs.encoder.layers.encoder_layer_0.self_attention.num_heads
    assert (found, config.num_heads, config.input_size) == (count, heads, (224, 224))


_TI = {"width": 192, "depth": 12, "heads": 3, "hidden": 768, "classes": 1000, "tokens": 197}
_S = _TI | {"width": 384, "heads": 6, "hidden": 1536}
_B = _TI | {"width": 768, "heads": 12, "hidden": 3072}
_L = _TI | {"width": 1024, "depth": 24, "heads": 16, "hidden": 4096}
_H = _TI | {"width": 1280, "depth": 32, "heads": 16, "hidden": 5120}
_SIGLIP = _B | {"names": NEW, "positions": "pos_embedding", "tokens": 196, "token": False, "classes": 0}


@pytest.mark.parametrize(
    ("arrays", "count"),
    [
        (_TI, 5_717_416),
        (_S | {"patch": 32, "tokens": 50}, 22_878_952),
        (_S, 22_050_664),
        (_B | {"patch": 32, "tokens": 50}, 88_224_232),
        (_B, 86_567_656),
        (_B | {"patch": 8, "tokens": 785}, 86_576_872),
        (_L, 304_326_632),
        (_H | {"patch": 14, "tokens": 257, "classes": 21843, "representation": 1280}, 660_385_363),
        (_B | {"classes": 21843, "representation": 768}, 103_186_515),
        (_TI | {"units": (), "patch": 8, "tokens": 50}, 6_337_704),
        (_S | {"units": (2, 2, 2, 2), "patch": 1, "tokens": 50}, 36_431_912),
        (_B | {"units": (3, 4, 9), "patch": 1, "tokens": 197}, 98_659_112),
        (_B | {"units": (3, 4, 9), "patch": 1, "tokens": 577}, 98_950_952),
        (_L | {"units": (3, 4, 6, 3), "patch": 1, "tokens": 50}, 328_994_856),
        (_SIGLIP | {"map_head": True}, 92_884_224),
    ],
)
def test_published_sizes_of_google(arrays, count):
    tensors = make_arrays(lambda name, shape: torch.empty(shape, device="meta"), **arrays)
    assert sum(t.numel() for t in tensors.values()) == count
    config, found = inferred(tensors)
    assert (found, config.num_heads) == (count, arrays["heads"])
    side = math.isqrt(arrays["tokens"])
    assert config.input_size == (side * config.token_size[0],) * 2


def renamed(model, *pairs, **extra):
    tensors = dict(model.state_dict())
    for pattern, to in pairs:
        tensors = {re.sub(pattern, to, name): t for name, t in tensors.items()}
    return tensors | {name: torch.empty(shape, device="meta") for name, shape in extra.items()}


def test_published_sizes_of_the_original_releases():
    with torch.device("meta"):
        mae = {n: timm.create_model(f"vit_{n}_224", num_classes=0) for n in ("base_patch16", "large_patch16")}
        mae["huge_patch14"] = timm.create_model("vit_huge_patch14_224", num_classes=0)
        dinov2 = timm.create_model("vit_base_patch14_dinov2")
        registers = timm.create_model("vit_base_patch14_reg4_dinov2")
        giant = timm.create_model("vit_giant_patch14_dinov2")
        dinov3 = {n: timm.create_model(f"vit_{n}_patch16_dinov3") for n in ("base", "huge_plus")}
    encoders = {"base_patch16": 85_798_656, "large_patch16": 303_301_632, "huge_patch14": 630_764_800}
    decoder = {"mask_token": (1, 1, 512), "decoder_blocks.0.norm1.weight": (512,)}
    for name, count in encoders.items():
        assert inferred(mae[name].state_dict())[1] == count
        config, found = inferred(renamed(mae[name], **decoder))
        assert (found, config.num_classes) == (count, 0)

    mask = {"mask_token": (1, 768)}
    assert inferred(renamed(dinov2, **mask))[1] == 86_580_480 - 768  # the mask is not kept
    folded = {"pos_embed": (1, 1370, 768), "register_tokens": (1, 4, 768), **mask}
    tensors = renamed(registers, **folded)
    del tensors["reg_token"]
    config, found = inferred(tensors)
    assert (found, config.num_registers) == (86_583_552 - 2 * 768, 4)  # nor a position for the class token alone
    config, found = inferred(renamed(giant, (r"mlp\.fc1", "mlp.w12"), (r"mlp\.fc2", "mlp.w3"), mask_token=(1, 1536)))
    assert (found, config.num_heads) == (1_136_480_768 - 1536, 24)
    assert (config.activation, int(config.mlp_ratio * 1536)) == ("swiglu", 4096)

    names = (r"reg_token", "storage_tokens"), (r"gamma_(\d)", r"ls\1.gamma"), ("fc1_g", "w1"), ("fc1_x", "w2")
    for size, (width, depth, heads, count) in {
        "base": (768, 12, 12, 85_669_632),
        "huge_plus": (1280, 32, 20, 840_633_600),
    }.items():
        biases = {f"blocks.{i}.attn.qkv.bias{mask}": (3 * width,) for i in range(depth) for mask in ("", "_mask")}
        stored = {"rope_embed.periods": (16,), "mask_token": (1, width), **biases}
        gated = ((r"mlp\.fc2", "mlp.w3"),) if size == "huge_plus" else ()
        config, found = inferred(renamed(dinov3[size], *names, *gated, **stored))
        assert (found, config.num_heads, config.pos_embed) == (count - width, heads, "rope")


@pytest.mark.parametrize(
    ("name", "config", "count", "stated"),
    [
        ("ViTForImageClassification", {"num_labels": 1000}, 86_567_656, {}),
        ("DeiTForImageClassificationWithTeacher", {"num_labels": 1000}, 87_338_192, {}),
        ("Dinov2Model", {"image_size": 518, "patch_size": 14}, 86_580_480 - 768, {}),
        ("Dinov2WithRegistersModel", {"image_size": 518, "patch_size": 14}, 86_583_552 - 2 * 768, {}),
        ("ViTMAEForPreTraining", {}, 85_798_656, {}),
        ("CLIPVisionModel", {"patch_size": 16}, 85_799_424 + 768, {}),
        ("SiglipVisionModel", {}, 92_884_224, {}),
        ("DINOv3ViTModel", {"num_register_tokens": 4}, 85_660_416 - 768 + 12 * 768, {"num_heads": 12}),
    ],
)
def test_published_sizes_of_transformers(name, config, count, stated):
    base = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    architecture = getattr(transformers, name)
    with torch.device("meta"):
        model = architecture(architecture.config_class(**base | config))
    found, heads = inferred(model.state_dict(), stated)[1], inferred(model.state_dict(), stated)[0].num_heads
    assert (found, heads) == (count, 12)


def test_a_projection_without_bias_gets_zeros(tmp_path):
    sample = CASES["transformers/CLIP vision with projection, live keys"](tmp_path, 0)
    model = load_model(sample.path, **sample.overrides)
    assert isinstance(model.head, nn.Linear)
    assert not model.head.bias.any()
    assert not model.patch_embed.proj.bias.any()
