"""Exported files: the same numbers as the model's in every format, what travels in them, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import ndvit
from ndvit.config import ViTConfig
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.exporting import export as exporting
from ndvit.exporting import graphs, runtimes
from ndvit.exporting.runtimes import ENDINGS, NOTE, load_exported
from ndvit.network import VisionTransformer
from ndvit.network.committee import Ensemble
from ndvit.weights.file import save_model
from smallnetworks import batch, spread
from tinyruns import QUIET, command, toy

TINY = {"embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 3}
SIGNAL = {**TINY, "input_size": (24,), "patch_size": 6, "in_channels": 2}
IMAGE = {**TINY, "input_size": (16, 16), "patch_size": 8, "in_channels": 3}
NETWORKS = {
    "signal": SIGNAL,
    "image": IMAGE,
    "volume": {**TINY, "input_size": (4, 8, 8), "patch_size": (2, 4, 4), "in_channels": 1},
    "distilled": {**IMAGE, "distilled": True, "num_registers": 2, "pos_embed": "rope"},
    "registers": {**IMAGE, "num_registers": 2, "pooling": "token_avg", "qk_norm": True, "layer_scale": 0.1},
    "sincos and mean": {**IMAGE, "pos_embed": "sincos", "pooling": "avg", "class_token": False},
    "merged": {**IMAGE, "depth": 2, "input_size": (32, 32), "merge_tokens": 3},
    "map": {**IMAGE, "pooling": "map", "class_token": False},
    "resnet": {
        **IMAGE,
        "input_size": (32, 32),
        "patch_size": 2,
        "stem": "resnet",
        "stem_depths": (1,),
        "stem_width": 32,
    },
    "inception": {
        **SIGNAL,
        "patch_size": 3,
        "stem": "inception",
        "stem_depths": (1, 1),
        "stem_width": 8,
        "pooling": "stem_tokens",
        "stem_head": True,
        "relative_bias": True,
    },
    "rocket": {**SIGNAL, "rocket_features": 4 * 168},
}


def network(name, **changes):
    model = spread(VisionTransformer(ViTConfig(**(NETWORKS[name] | changes)))).eval()
    if model.rocket is not None:
        x = batch(model, 40)
        model.rocket.draw(x, None, torch.Generator().manual_seed(0))
        features = model.rocket.features(x)
        model.rocket.mean.copy_(features.mean(0))
        model.rocket.scale.copy_(1 / features.std(0).clamp(min=0.1))
        model.rocket.head.weight.div_(10)
    size, channels = model.config.input_size, model.config.in_channels
    model.classes = ("ash", "beech", "cedar")
    if len(size) == 2:
        model.preprocess = ImagePreprocess(size, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    else:
        model.preprocess = SignalPreprocess(size, (3.0, -1.0)[:channels], (2.0, 0.5)[:channels])
    model.temperature = 1.7
    model.provenance = {"source": "nothing"}
    return model


def ensemble(*names):
    members = [network(name) for name in names]
    made = Ensemble(members)
    made.temperature = 0.8
    return made


def check(model, path, **options):
    """Export, and compare logits at other batch sizes than the example's, on other inputs than the export's own."""
    report = ndvit.export(model, path, **options)
    found = load_exported(path)
    torch.manual_seed(5)
    for n in (1, 3):
        x = batch(model, n)
        with torch.no_grad():
            assert torch.allclose(found(x), model(x), atol=1e-4, rtol=1e-4)
    assert report.comparison.difference < 1e-3 * report.comparison.spread
    assert report.comparison.agreement == 1
    return report, found


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_of_every_kind_of_network(name, tmp_path):
    model = network(name)
    report, found = check(model, tmp_path / "model.onnx")
    assert found.config == model.config
    assert report.comparison.batches == (1, 8)
    assert "random inputs" in report.inputs


@pytest.mark.parametrize("format", ["openvino", "pt2", "torchscript"])
@pytest.mark.parametrize("name", ["distilled", "resnet", "rocket"])
def test_other_formats(name, format, tmp_path):
    check(network(name), tmp_path / f"model{ENDINGS[format]}", format=format)


@pytest.mark.parametrize("format", ENDINGS)
def test_an_ensemble_and_all_that_travels(format, tmp_path):
    model = ensemble("signal", "signal")
    path = tmp_path / f"model{ENDINGS[format]}"
    _, found = check(model, path, format=format)
    assert found.classes == ("ash", "beech", "cedar")
    assert found.preprocess == model.preprocess
    assert found.temperature == 0.8
    assert found.format == format
    assert sorted(p.name for p in tmp_path.iterdir()) == (
        ["model.bin", "model.xml"] if format == "openvino" else [path.name]
    )


def test_onnx_files_state_opset_batch_and_facts(tmp_path):
    model = network("image")
    ndvit.export(model, tmp_path / "model.onnx")
    made = onnx.load(tmp_path / "model.onnx")
    assert {imported.domain: imported.version for imported in made.opset_import}[""] == 20
    (x,), (logits,) = made.graph.input, made.graph.output
    assert (x.name, logits.name) == ("x", "logits")
    assert [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] == ["batch", 3, 16, 16]
    facts = json.loads({p.key: p.value for p in made.metadata_props}[NOTE])
    assert facts["classes"] == ["ash", "beech", "cedar"]
    assert facts["temperature"] == 1.7
    assert facts["preprocess"]["std"] == [0.2, 0.25, 0.3]
    assert facts["provenance"] == {"source": "nothing"}
    assert facts["config"]["embed_dim"] == 16
    assert ndvit.__file__.encode()[:-11] not in (tmp_path / "model.onnx").read_bytes()  # no path of this machine


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_softmax_is_of_calibrated_logits(format, tmp_path):
    model, path = network("signal"), tmp_path / f"model{ENDINGS[format]}"
    ndvit.export(model, path, format=format, softmax=True)
    x = batch(model)
    with torch.no_grad():
        assert torch.allclose(load_exported(path)(x), (model(x) / 1.7).softmax(1), atol=1e-5)
    values = toy(9, (2, 24))[0]
    told = [list(p.probabilities.values()) for p in ndvit.predict(model, values, **QUIET)]
    found = [list(p.probabilities.values()) for p in ndvit.predict(load_exported(path), values, **QUIET)]
    np.testing.assert_allclose(found, told, atol=1e-5)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_batch_of_one_alone(format, tmp_path):
    model, path = network("signal"), tmp_path / f"model{ENDINGS[format]}"
    report, found = check(model, path, format=format, dynamic_batch=False)
    assert report.comparison.batches == (1,)
    assert found.how.batch == 1
    if format == "onnx":
        assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


def run_onnx(path, *inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    return session.run(None, {given.name: x for given, x in zip(session.get_inputs(), inputs, strict=True)})[0]


def test_pictures_from_0_to_255_are_standardised_inside(tmp_path):
    model, path = network("image"), tmp_path / "model.onnx"
    ndvit.export(model, path, preprocess="inside")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = model(model.preprocess(pixels)[None])
    found = run_onnx(path, pixels.transpose(2, 0, 1)[None].astype(np.float32))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    told, said = (ndvit.predict(m, [picture], **QUIET)[0].probabilities for m in (model, path))
    assert said == pytest.approx(told, abs=1e-5)


def test_signals_are_standardised_inside(tmp_path):
    model, path = network("signal"), tmp_path / "model.onnx"
    ndvit.export(model, path, preprocess="inside", mask=False)
    values = toy(2, (2, 24))[0]
    with torch.no_grad():
        expected = model(torch.stack([model.preprocess(v) for v in values]))
    np.testing.assert_allclose(run_onnx(path, values), expected, atol=1e-4)


@pytest.mark.parametrize(("name", "format"), [("inception", "onnx"), *(("rocket", format) for format in ENDINGS)])
def test_a_second_input_tells_what_was_observed(name, format, tmp_path):
    model, path = network(name), tmp_path / f"model{ENDINGS[format]}"
    ndvit.export(model, path, format=format, mask=True)
    x, shown = batch(model, 4), torch.ones(4, 24, dtype=torch.bool)
    shown[1, 12:], shown[2, :7] = False, False
    found = load_exported(path)
    with torch.no_grad():
        assert torch.allclose(found(x, shown), model(x, shown), atol=1e-4)
        assert torch.allclose(found(x), model(x), atol=1e-4)
        assert not torch.allclose(found(x, shown), found(x), atol=1e-2)


def test_models_of_padded_signals_are_given_a_mask(tmp_path):
    for name, resize, mask in (("signal", "pad", True), ("signal", "resample", False), ("image", None, False)):
        model = network(name)
        if resize:
            model.preprocess = replace(model.preprocess, resize=resize)
        assert ndvit.export(model, tmp_path / "model.onnx", force=True).how.mask is mask


def test_files_for_complete_examples_refuse_others(tmp_path):
    model, values = network("signal"), toy(4, (2, 24))[0]
    values[1, :, 20:] = np.nan
    ndvit.export(model, tmp_path / "model.onnx", mask=False)
    with pytest.raises(ValueError, match=r"1 of 4 examples have missing values or padding.*make it with a mask"):
        ndvit.predict(tmp_path / "model.onnx", values, **QUIET)
    ndvit.export(model, tmp_path / "model.onnx", force=True, data=values)
    told, said = (ndvit.predict(m, values, **QUIET) for m in (model, tmp_path / "model.onnx"))
    assert [p.probabilities for p in said] == [pytest.approx(p.probabilities, abs=1e-5) for p in told]


def test_incomplete_examples_are_left_out_of_the_comparison(tmp_path):
    model, (values, labels) = network("signal"), toy(30, (2, 24), classes=3)
    model.classes = ("0", "1", "2")
    values[:10, :, 20:] = np.nan
    report = ndvit.export(model, tmp_path / "model.onnx", data=(values, labels, values, labels), mask=False)
    assert report.comparison.examples == 20
    assert "10 of 30 examples are incomplete" in report.notes[-1]
    with pytest.raises(ValueError, match=r"no example of .* is fully observed"):
        ndvit.export(model, tmp_path / "other.onnx", data=values[:10], mask=False)


def test_real_data_are_compared_and_accuracies_told(tmp_path):
    model, (values, labels) = network("signal"), toy(30, (2, 24), classes=3)
    model.classes = ("0", "1", "2")
    report = ndvit.export(model, tmp_path / "model.onnx", data=(values, labels))
    assert report.comparison.examples == 6
    assert report.inputs == "the test set of arrays"
    told = ndvit.evaluate(model, (values, labels), split="test", **QUIET)
    assert report.comparison.accuracies == (told.accuracy, told.accuracy)
    said = ndvit.evaluate(tmp_path / "model.onnx", (values, labels), split="test", **QUIET)
    np.testing.assert_allclose(said.probabilities, told.probabilities, atol=1e-5)
    report = ndvit.export(model, tmp_path / "bare.onnx", data=values)  # without labels
    assert (report.comparison.examples, report.comparison.accuracies) == (30, None)
    model.provenance = {"source": "gunpoint"}
    with pytest.raises(ValueError, match="got 1 channels, expected 2"):
        ndvit.export(model, tmp_path / "gunpoint.onnx")  # of what comes with ndvit, the test set is taken unasked


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_int8_agrees_and_is_small(format, tmp_path):
    model, (values, labels) = network("signal", embed_dim=64, depth=2), toy(240, (2, 24), classes=3)
    model.classes = ("0", "1", "2")
    model.temperature = 1.0
    path, whole = tmp_path / f"int8{ENDINGS[format]}", tmp_path / f"whole{ENDINGS[format]}"
    report = ndvit.export(model, path, format=format, int8=True, data=(values, labels), min_agreement=0.5)
    assert report.how.int8
    assert report.comparison.examples == 48
    assert 0.5 <= report.comparison.agreement <= 1
    assert 0 < report.comparison.difference < report.comparison.spread
    assert report.comparison.accuracies is not None
    size = ndvit.export(model, whole, format=format).size
    assert report.size < 0.75 * size
    assert load_exported(path).how.int8
    assert not load_exported(whole).how.int8
    if format == "onnx":
        graph = onnx.load(path).graph
        weights = {tensor.name for tensor in graph.initializer}
        of_weights = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in weights}
        products = [node for node in graph.node if node.op_type == "MatMul"]
        assert len(products) == 12
        assert sum(node.input[1] in of_weights for node in products) == 4  # qkv and fc1 of two blocks


def integers_of_weights(path):
    graph = onnx.load(path).graph
    signed = [numpy_helper.to_array(t) for t in graph.initializer if t.data_type == TensorProto.INT8]
    return max(int(np.abs(values.astype(int)).max()) for values in signed if values.ndim == 2)


@pytest.mark.parametrize(
    ("can", "most"),
    [
        ({"architecture": "x86_64", "avx512_vnni": False, "avx_vnni": True}, 127),
        ({"architecture": "x86_64", "avx512_vnni": False, "avx_vnni": False}, 64),
        ({"architecture": "aarch64"}, 127),
        ({}, 64),
    ],
)
def test_int8_weights_fill_8_bits_where_sums_do_not_overflow(can, most, tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    model, (values, _) = network("signal"), toy(40, (2, 24))
    report = ndvit.export(model, tmp_path / "model.onnx", int8=True, data=values, min_agreement=0)
    assert abs(integers_of_weights(tmp_path / "model.onnx") - most) <= 1
    assert report.how.vnni == (most == 127)
    assert ("CPUs with VNNI" in str(report)) == (most == 127)
    assert load_exported(tmp_path / "model.onnx").how == report.how
    assert not recwarn.list
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64"})
    if report.how.vnni:
        with pytest.warns(UserWarning, match=r"model.onnx has 8-bit weights for CPUs with VNNI, and this one has none"):
            load_exported(tmp_path / "model.onnx")
    else:
        load_exported(tmp_path / "model.onnx")


@pytest.mark.parametrize("name", ["resnet", "rocket"])
def test_int8_leaves_stems_and_random_convolutions_in_float(name, tmp_path):
    model = network(name)
    random = np.random.default_rng(0)
    data: list = [Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(6)]
    if name == "rocket":
        data = list(random.normal(size=(6, 2, 24)).astype(np.float32))
    report = ndvit.export(model, tmp_path / "model.onnx", int8=True, data=data, min_agreement=0)
    assert 0 < report.comparison.difference < report.comparison.spread
    made = onnx.load(tmp_path / "model.onnx").graph
    by_8_bits = {output for node in made.node if node.op_type == "DequantizeLinear" for output in node.output}
    encoders = {"MatMul", "Add", "QuantizeLinear", "Transpose"}  # of a Transpose's keys, too: it moves values alone
    assert {node.op_type for node in made.node if by_8_bits & set(node.input)} <= encoders


def test_int8_that_disagrees_is_refused(tmp_path, monkeypatch):
    def worse(*arguments):
        return replace(compared(*arguments), agreement=0.9)

    compared = exporting.compare
    monkeypatch.setattr(exporting, "compare", worse)
    model, data = network("signal"), toy(40, (2, 24))
    with pytest.raises(ValueError, match=r"int8 names the model's class for 90.00 % of 8 examples.*less than 98 %"):
        ndvit.export(model, tmp_path / "model.onnx", int8=True, data=data)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_numbers_that_differ_leave_no_file(format, tmp_path, monkeypatch):
    forward = graphs.Deployed.forward
    monkeypatch.setattr(graphs.Deployed, "forward", lambda self, x, mask=None: 1.01 * forward(self, x, mask))
    with pytest.raises(ValueError, match=r"differs from the model by up to 0\.\d+.*nothing is written"):
        ndvit.export(network("signal"), tmp_path / f"model{ENDINGS[format]}", format=format)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_replaced_unless_by_force(tmp_path):
    model, path = network("signal"), tmp_path / "model.onnx"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="exists: choose another output"):
        ndvit.export(model, path)
    assert path.read_text() == "precious"
    (tmp_path / "model.bin").write_text("precious, too")
    with pytest.raises(FileExistsError, match=r"model.bin exists: choose another output"):
        ndvit.export(model, tmp_path / "model.xml", format="openvino")
    ndvit.export(model, path, force=True)
    assert load_exported(path).classes == model.classes


def test_a_model_is_as_it_was_after_its_export(tmp_path):
    model = network("rocket").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ndvit.export(model, tmp_path / "model.onnx")
    assert model.training
    assert type(model.rocket).__name__ == "Rocket"
    assert all(p.requires_grad for p in model.blocks.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_command_exports_beside_the_weights_and_predicts(tmp_path, capsys):
    model, values = network("signal"), toy(4, (2, 24))[0]
    save_model(model, tmp_path / "trained.safetensors")
    np.save(tmp_path / "values.npy", values)
    assert command("export", tmp_path / "trained.safetensors", "--format", "openvino") == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / 'trained.xml'}: openvino, float32" in said
    assert "float32, with a mask of what was observed, " in said
    assert "same class as the model's in 100.00 %" in said
    assert "nncf" not in said
    answers = []
    for run in ("trained.safetensors", "trained.xml"):
        assert command("predict", tmp_path / run, tmp_path / "values.npy", "--format", "json") == 0
        answers.append([row["probabilities"] for row in json.loads(capsys.readouterr().out)])
    assert answers[1] == [pytest.approx(row, abs=1e-5) for row in answers[0]]
    assert command("export", tmp_path / "trained.safetensors", "--int8") == 2
    assert "int8 needs examples" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [".pt2", ".ts"])
def test_files_that_may_hold_code_are_opened_by_hand_only(ending, tmp_path):
    model, path, values = network("signal"), tmp_path / f"model{ending}", toy(3, (2, 24))[0]
    format = next(format for format, own in ENDINGS.items() if own == ending)
    ndvit.export(model, path, format=format)
    with pytest.raises(ValueError, match="can run code of whoever made them: export to onnx or openvino"):
        ndvit.predict(path, values, **QUIET)
    assert ndvit.predict(load_exported(path), values, **QUIET)[0].label in model.classes


def test_exported_files_run_on_the_cpu(tmp_path):
    ndvit.export(network("signal"), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"runs on the CPU|there is no device"):
        ndvit.predict(tmp_path / "model.onnx", toy(3, (2, 24))[0], device="cuda", **QUIET)
    with pytest.raises(ValueError, match=r"expected an input of shape \('batch', 2, 24\), got \(1, 2, 25\)"):
        load_exported(tmp_path / "model.onnx")(torch.zeros(1, 2, 25))


def foreign(path, note=None, location=None):
    """An ONNX file of another maker: y = x + w, with w in another file if `location` is given."""
    w = helper.make_tensor("w", TensorProto.FLOAT, [4], np.ones(4, np.float32).tobytes(), raw=True)
    if location:
        w.ClearField("raw_data")
        w.data_location = TensorProto.EXTERNAL
        w.external_data.add(key="location", value=location)
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy")
    made = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [w])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if note is not None:
        helper.set_model_props(model, {NOTE: note})
    path.write_bytes(model.SerializeToString())
    return path


def test_files_of_others_are_refused(tmp_path):
    with pytest.raises(ValueError, match="was not written by ndvit export"):
        load_exported(foreign(tmp_path / "a.onnx"))
    for note in ("[]", "{}", '{"export": {"batch": "2"}}', '{"export": {"softmax": 1}}', "[" * 100_000):
        with pytest.raises(ValueError, match="does not say how it was exported"):
            load_exported(foreign(tmp_path / "a.onnx", note))
    with pytest.raises(ValueError, match="the header does not describe a model"):
        load_exported(foreign(tmp_path / "a.onnx", '{"export": {}}'))
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.ones(4, np.float32).tobytes())
    (tmp_path / "given").mkdir()
    with pytest.raises(ValueError, match="cannot be read as onnx"):
        load_exported(foreign(tmp_path / "given" / "a.onnx", location="../secret.bin"))
    with pytest.raises(ValueError, match="cannot be read as onnx"):
        load_exported(foreign(tmp_path / "given" / "a.onnx", location=str(secret)))
    for ending in ENDINGS.values():
        (tmp_path / f"b{ending}").write_bytes(b"nonsense")
        with pytest.raises(ValueError, match="cannot be read as"):
            load_exported(tmp_path / f"b{ending}")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_exported(tmp_path / "c.onnx")
    with pytest.raises(ValueError, match=r"exported files end in .onnx, .xml, .pt2, .ts, got c.txt"):
        load_exported(tmp_path / "c.txt")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"format": "tflite"}, "format must be one of onnx, openvino, pt2, torchscript, got 'tflite'"),
        ({"preprocess": "none"}, 'preprocess must be "beside" or "inside"'),
        ({"int8": True}, "int8 needs examples"),
        ({"int8": True, "format": "pt2"}, "int8 is of onnx and openvino"),
        ({"format": "openvino"}, "openvino files end in .xml"),
        ({"path": None}, "where to\\? Give the path of a .onnx file"),
        ({"min_agreement": 2}, "min_agreement is a share from 0 to 1, got 2"),
        ({"data": (np.zeros((4, 3, 24)), [0, 1, 0, 1])}, "3 channels"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, complaint, tmp_path):
    with pytest.raises(ValueError, match=complaint):
        ndvit.export(network("signal"), **{"path": tmp_path / "model.onnx"} | options)
    assert list(tmp_path.iterdir()) == []


def test_what_the_model_must_know(tmp_path):
    model = network("signal")
    model.preprocess = None
    with pytest.raises(ValueError, match=r"not know its preprocessing: set model.preprocess, or leave it beside"):
        ndvit.export(model, tmp_path / "model.onnx", preprocess="inside")
    with pytest.raises(ValueError, match="does not know its preprocessing, which data need"):
        ndvit.export(model, tmp_path / "model.onnx", data=toy(8, (2, 24)))
    with pytest.raises(FileNotFoundError, match="make it first"):
        ndvit.export(model, tmp_path / "nowhere" / "model.onnx")
    model.reset_head(0)
    with pytest.raises(ValueError, match="softmax is of classes"):
        ndvit.export(model, tmp_path / "model.onnx", softmax=True)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None)
    for format in ("onnx", "openvino"):
        with pytest.raises(ValueError, match=r"needs a package that is not installed: pip install 'ndvit\[export\]'"):
            ndvit.export(network("signal"), tmp_path / f"model{ENDINGS[format]}", format=format)


def test_tensors_of_more_than_onnx_holds_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="an ONNX file holds 2 GB"):
        ndvit.export(network("signal"), tmp_path / "model.onnx")
