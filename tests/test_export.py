"""Exported files: the numbers of the model in every format, the metadata in them, and what is refused."""

import contextlib
import errno
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import ndvit
from exports import exporter, small_model
from ndvit.exporting import export as exporting
from ndvit.exporting import formats, graphs, runtimes
from ndvit.exporting.comparison import compare, load_comparison_data, needs_mask, random_data
from ndvit.exporting.export import export
from ndvit.exporting.formats import ENDINGS, METADATA
from ndvit.exporting.quantize import estimate_saving, quantize_onnx
from ndvit.exporting.runtimes import GraphOptions, open_exported
from ndvit.load_report import LoadReport
from ndvit.model import load_exported, load_model
from ndvit.tasks import Contrastive
from smallnetworks import batch
from tinyruns import QUIET, command, toy

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return exporter(tmp_path_factory)


def probabilities(model, values):
    return [list(prediction.probabilities.values()) for prediction in model.predict(values, **QUIET)]


@pytest.mark.parametrize(
    ("name", "format"),
    [(name, "onnx") for name in ("signal", "volume", "distilled", "merged", "resnet", "inception", "ensemble")]
    + [("resnet", "pt2"), ("distilled", "torchscript")]
    + [
        pytest.param(name, format, marks=pytest.mark.slow)
        for name in ("map", "merged", "committee", "closed_form")
        for format in ENDINGS
        if (name, format) != ("merged", "onnx")
    ],
)
def test_numbers_are_the_models(name, format, exported):
    """Other inputs and batch sizes than those that the graph was traced with; signals also with a mask."""
    model, path, report = exported(name, format)
    runtime, _ = open_exported(path)
    torch.manual_seed(5)
    for n in (1, 3):
        x = batch(model, n)
        torch.testing.assert_close(runtime(x), model(x), atol=1e-4, rtol=1e-4)
    assert report.options.mask == (model.preprocess.kind == "signal")
    if report.options.mask:
        mask = torch.ones(3, *model.preprocess.size, dtype=torch.bool)
        mask[1, ..., model.preprocess.size[-1] // 2 :] = False
        torch.testing.assert_close(runtime(x, mask), model(x, mask), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(runtime(x, mask), runtime(x), atol=1e-2)
    assert report.comparison.difference < 1e-3 * report.comparison.spread
    assert report.comparison.agreement == 1
    assert report.comparison.batches == (1, 8)
    assert "random inputs" in report.inputs
    assert sorted(p.name for p in path.parent.iterdir()) == (
        ["model.bin", "model.xml"] if format == "openvino" else [path.name]
    )


@pytest.mark.parametrize("format", ENDINGS)
def test_the_model_around_the_network_is_in_the_file(format, exported):
    model, path, _ = exported("ensemble" if format == "onnx" else "committee", format)
    found = load_exported(path)
    assert found.task == model.task
    assert found.preprocess == model.preprocess
    assert found.temperature == 1.7
    assert found.provenance == {"source": "nothing"}
    assert found.config == model.config


def test_onnx_files_have_opset_batch_and_metadata(exported):
    _, path, _ = exported("signal")
    made = onnx.load(path)
    assert {imported.domain: imported.version for imported in made.opset_import}[""] == 20
    (x, mask), (logits,) = made.graph.input, made.graph.output
    assert (x.name, mask.name, logits.name) == ("x", "mask", "logits")
    assert [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] == ["batch", 2, 24]
    metadata = json.loads({p.key: p.value for p in made.metadata_props}[METADATA])
    assert metadata["temperature"] == 1.7
    assert metadata["preprocess"]["std"] == [2.0, 0.5]
    assert metadata["provenance"] == {"source": "nothing"}
    assert metadata["export"]["mask"] is True
    assert ndvit.__file__.encode()[:-11] not in path.read_bytes()  # no path of this machine


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_batch_of_one_only(format, exported):
    model, path, report = exported("signal", format, dynamic_batch=False)
    assert report.comparison.batches == (1,)
    assert report.options.batch == 1
    x = batch(model, 3)
    torch.testing.assert_close(open_exported(path)[0](x), model(x), atol=1e-4, rtol=1e-4)
    if format == "onnx":
        assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


def raw_outputs(path, x):
    """What a program without ndvit gets."""
    return open_exported(path)[0].run(torch.from_numpy(x), None)


def test_images_from_0_to_255_to_probabilities_inside_the_graph(exported):
    model, path, _ = exported("image", preprocess="inside", softmax=True)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    expected = (model(model.preprocess(pixels)[None]) / 1.7).softmax(1)
    torch.testing.assert_close(
        raw_outputs(path, pixels.transpose(2, 0, 1)[None].astype(np.float32)), expected, atol=1e-5, rtol=0
    )
    picture = [Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8))]
    found = load_exported(path)
    assert found.temperature == 1  # the graph has already divided by the model's
    np.testing.assert_allclose(probabilities(found, picture), probabilities(model, picture), atol=1e-5)


def test_signals_are_standardised_inside_the_graph(exported):
    model, path, _ = exported("signal", "torchscript", preprocess="inside", softmax=True, mask=False)
    values = toy(2, (2, 24))[0]
    expected = (model(torch.stack([model.preprocess(v) for v in values])) / 1.7).softmax(1)
    torch.testing.assert_close(raw_outputs(path, values), expected, atol=1e-4, rtol=0)
    np.testing.assert_allclose(probabilities(load_exported(path), values), probabilities(model, values), atol=1e-5)


def test_models_of_padded_signals_have_a_mask_by_default():
    signal = small_model("signal")
    assert needs_mask(signal)
    assert not needs_mask(small_model("signal", preprocess=replace(signal.preprocess, resize="resample")))
    assert not needs_mask(small_model("image"))
    assert not needs_mask(small_model("signal", preprocess=None))


def test_files_without_a_mask_refuse_incomplete_examples(exported):
    model, path, _ = exported("signal", "torchscript", preprocess="inside", softmax=True, mask=False)
    values = toy(4, (2, 24))[0]
    values[1, :, 20:] = np.nan
    with pytest.raises(ValueError, match=r"1 of 4 examples have missing values or padding.*make it with a mask"):
        load_exported(path).predict(values, **QUIET)
    with_mask = load_exported(exported("signal").path)
    np.testing.assert_allclose(probabilities(with_mask, values), probabilities(model, values), atol=1e-5)


def test_incomplete_examples_are_left_out_of_the_comparison():
    model, (values, labels) = small_model("signal", ("0", "1", "2")), toy(30, (2, 24), classes=3)
    values[:10, :, 20:] = np.nan
    data, _ = load_comparison_data(model, (values, labels, values, labels), mask=False, int8=False)
    assert data.x.shape == (20, 2, 24)
    assert len(data.targets) == 20
    assert "10 of 30 examples are incomplete" in data.notes[-1]
    with pytest.raises(ValueError, match=r"no example of .* is fully observed"):
        load_comparison_data(model, values[:10], mask=False, int8=False)


def test_examples_are_those_of_the_data_or_of_the_training(tmp_path, monkeypatch):
    model, (values, labels) = small_model("signal", ("0", "1", "2")), toy(30, (2, 24), classes=3)

    def load(source=None):
        return load_comparison_data(model, source, mask=True, int8=False)[0]

    assert (len(load(values).x), load(values).targets) == (30, None)  # without labels
    other = load((values, np.array(["x", "y", "z"])[labels]))
    assert other.targets is None
    assert other.notes[-1] == "the targets of the data are not the model's: no score is computed"
    model.provenance = {"source": "gunpoint"}
    with pytest.raises(ValueError, match="got 1 channels, expected 2"):
        load()  # data that come with ndvit are read
    np.savez(tmp_path / "data.npz", X=values, y=labels)
    model.provenance = {"source": str(tmp_path / "data.npz")}
    model.load_report = LoadReport(str(tmp_path / "run" / "model.safetensors"), "ndvit", "")
    assert "random inputs" in load().source  # a path in somebody else's file is not followed
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    assert load().source == "the test set of data"
    assert len(load().x) == 6


def test_scores_are_those_of_the_task(tmp_path):
    model, data = small_model("signal", ("0", "1", "2")), toy(30, (2, 24), classes=3)
    path = tmp_path / "model.ts"
    report = export(model, path, format="torchscript", data=data)
    assert report.comparison.examples == 6
    assert report.inputs == "the test set of arrays"
    expected = model.evaluate(data, split="test", **QUIET)
    assert report.comparison.scores == (expected.score, expected.score)
    assert f"score {expected.score:.4f}, the model's {expected.score:.4f}" in str(report)
    found = load_exported(path).evaluate(data, split="test", **QUIET)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)


def test_a_single_output_is_compared_by_its_spread_over_examples():
    data = random_data(small_model("signal"), 16, mask=False)
    found = compare(lambda x, mask: x[:, 0, :1], lambda x, mask: x[:, 0, :1] + 1e-4, data, (4,))
    assert found.spread == pytest.approx(data.x[:, 0, 0].std(correction=0).item())
    assert found.same


def cpu(monkeypatch, vnni):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", "avx_vnni": vnni})


@pytest.mark.parametrize(("format", "vnni"), [("onnx", True), ("openvino", False)])
def test_int8_agrees_and_is_small(format, vnni, tmp_path, monkeypatch, recwarn):
    cpu(monkeypatch, vnni)
    model, path = small_model("wide", ("0", "1", "2"), temperature=1.0), tmp_path / f"int8{ENDINGS[format]}"
    data = toy(60, (2, 24), classes=3)
    report = export(model, path, format=format, int8=True, data=data, min_agreement=0.5, min_saving=0, log=QUIET["log"])
    assert (report.options.int8, report.options.vnni) == (True, vnni)
    assert report.comparison.examples == 12
    assert 0.5 <= report.comparison.agreement <= 1
    assert 0 < report.comparison.difference < report.comparison.spread
    assert report.comparison.scores is not None
    tensors = path.with_suffix(".bin") if format == "openvino" else path
    assert tensors.stat().st_size < 0.75 * 4 * sum(p.numel() for p in model.network.parameters())
    assert report.size == sum(part.stat().st_size for part in tmp_path.iterdir())
    assert ("CPUs with VNNI" in str(report)) == vnni
    assert open_exported(path)[0].options == report.options
    assert not recwarn.list
    if vnni:
        cpu(monkeypatch, vnni=False)
        with pytest.warns(UserWarning, match=r"int8.onnx has 8-bit weights for CPUs with VNNI, and this one has none"):
            open_exported(path)
        products, largest = int8_products(path)
        assert products == [True, False, False, False, True, False] * 2  # qkv and fc1 of two blocks
        assert largest == 127


def int8_products(path):
    """Which matrix products have 8-bit weights, in order, and the largest of their integers."""
    graph = onnx.load(path).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    of_weights = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in weights}
    integers = [numpy_helper.to_array(t) for t in weights.values() if t.data_type == TensorProto.INT8]
    largest = max(int(np.abs(values.astype(int)).max()) for values in integers if values.ndim == 2)
    return [node.input[1] in of_weights for node in graph.node if node.op_type == "MatMul"], largest


def test_int8_weights_have_7_bits_where_sums_overflow(exported, tmp_path, monkeypatch):
    cpu(monkeypatch, vnni=False)
    model, path, report = exported("signal")
    data = random_data(model, 6, report.options.mask)
    quantize_onnx(path, open_exported(path)[0], data, tmp_path / "model.onnx", "{}")
    assert abs(int8_products(tmp_path / "model.onnx")[1] - 64) <= 1


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"architecture": "x86_64", "avx512_vnni": True, "avx_vnni": False}, True),
        ({"architecture": "x86_64", "avx512_vnni": False, "avx_vnni": True}, True),
        ({"architecture": "x86_64", "avx512_vnni": False, "avx_vnni": False}, False),
        ({"architecture": "aarch64"}, True),
        ({}, False),
    ],
)
def test_cpus_that_sum_in_32_bits(capabilities, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert runtimes.sums_in_32_bits() is expected


@pytest.mark.parametrize("name", ["resnet", "ensemble"])
def test_int8_leaves_stems_and_random_convolutions_in_float(name, exported, tmp_path):
    model, path, report = exported(name)
    quantize_onnx(path, open_exported(path)[0], random_data(model, 6, report.options.mask), tmp_path / "a.onnx", "{}")
    made = onnx.load(tmp_path / "a.onnx").graph
    by_8_bits = {output for node in made.node if node.op_type == "DequantizeLinear" for output in node.output}
    encoder = {"MatMul", "Add", "QuantizeLinear", "Transpose"}  # a Transpose moves keys without computing
    assert {"MatMul"} <= {node.op_type for node in made.node if by_8_bits & set(node.input)} <= encoder


def test_int8_that_disagrees_is_refused(exported, tmp_path, monkeypatch):
    _, path, _ = exported("signal")
    monkeypatch.setattr(exporting, "compare", lambda *arguments: replace(compare(*arguments), agreement=0.9))
    monkeypatch.setitem(formats.WRITERS, "onnx", lambda *arguments, **options: shutil.copy(path, arguments[3]))
    monkeypatch.setitem(exporting.QUANTIZE, "onnx", lambda source, runtime, data, target, text: source.rename(target))
    options = {"int8": True, "data": toy(40, (2, 24)), "min_saving": 0, "log": QUIET["log"]}
    with pytest.raises(ValueError, match=r"int8 predicts the model's class for 90.00 % of 8 examples.*less than 98 %"):
        export(small_model("signal"), tmp_path / "model.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_differ_leave_no_file(tmp_path, monkeypatch):
    forward = graphs.Deployed.forward
    monkeypatch.setattr(graphs.Deployed, "forward", lambda self, x, mask=None: 1.01 * forward(self, x, mask))
    with pytest.raises(ValueError, match=r"differs from the model by up to 0\.\d+.*nothing is written"):
        export(small_model("signal"), tmp_path / "model.ts", format="torchscript")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_replaced_unless_forced(tmp_path):
    model, path = small_model("signal"), tmp_path / "model.ts"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="exists: choose another output"):
        export(model, path, format="torchscript")
    assert path.read_text() == "precious"
    (tmp_path / "model.bin").write_text("precious, too")
    with pytest.raises(FileExistsError, match=r"model.bin exists: choose another output"):
        export(model, tmp_path / "model.xml", format="openvino")
    export(model, path, format="torchscript", force=True)
    assert load_exported(path).classes == model.classes


def test_a_model_does_not_change(tmp_path):
    model = small_model("committee")
    network = model.network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modules, trained = list(network.modules()), [p.requires_grad for p in network.parameters()]
    export(model, tmp_path / "model.ts", format="torchscript")
    assert network.training
    assert list(network.modules()) == modules
    assert [p.requires_grad for p in network.parameters()] == trained
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_the_command_exports_beside_the_weights_and_predicts(tmp_path, capsys):
    model, values = small_model("signal"), toy(4, (2, 24))[0]
    model.save(tmp_path / "trained.safetensors")
    np.save(tmp_path / "values.npy", values)
    assert command("export", tmp_path / "trained.safetensors", "--format", "openvino") == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'trained.xml'}: openvino, float32, with a mask, " in printed
    assert "same class as the model's in 100.00 %" in printed
    assert "nncf" not in printed
    found = []
    for run in ("trained.safetensors", "trained.xml"):
        assert command("predict", tmp_path / run, tmp_path / "values.npy", "--format", "json") == 0
        found.append([row["probabilities"] for row in json.loads(capsys.readouterr().out)])
    assert found[1] == [pytest.approx(row, abs=1e-5) for row in found[0]]
    assert command("export", tmp_path / "trained.safetensors", "--int8") == 2
    assert "int8 needs examples" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("run", "run/model-int8.onnx"),
        ("run/best.safetensors", "run/best-int8.onnx"),
        ("hf:owner/name", "name-int8.onnx"),
        ("vit_tiny.augreg", "vit_tiny.augreg-int8.onnx"),
    ],
)
def test_files_are_named_after_the_weights(source, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.safetensors").touch()
    model = small_model("signal", load_report=LoadReport(source, "ndvit", ""))
    assert str(exporting._target(model, None, "onnx", int8=True, force=False)) == expected


def test_openvino_runs_in_bfloat16():
    x = torch.randn(4, 1, 8, 8)
    found, expected = (open_exported(DATA / "network.xml", precision=p)[0](x) for p in ("bfloat16", "float32"))
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0)
    with pytest.raises(ValueError, match=r"runs in float32, and only \.xml files also in bfloat16; got"):
        open_exported(DATA / "signal.onnx", precision="bfloat16")


@pytest.mark.parametrize("format", ["pt2", "torchscript"])
def test_files_that_may_hold_code_are_not_opened_as_models(format, exported):
    model, path, _ = exported("committee", format)
    with pytest.raises(ValueError, match="can execute the code of their author"):
        load_model(path)
    assert load_exported(path).predict(toy(3, (2, 24))[0], **QUIET)[0].label in model.classes


def test_exported_files_run_on_the_cpu(exported):
    _, path, _ = exported("signal")
    with pytest.raises(ValueError, match=r"runs on the cpu|not available"):
        load_model(path).predict(toy(3, (2, 24))[0], device="cuda", **QUIET)
    with pytest.raises(ValueError, match=r"expected an input of shape \('batch', 2, 24\), got \(1, 2, 25\)"):
        load_model(path)(torch.zeros(1, 2, 25))
    with pytest.raises(ValueError, match=r"model.onnx runs without weights: export or compile the trained model"):
        graphs.Deployed(load_model(path), GraphOptions())


def foreign(path, metadata=None, location=None):
    """An ONNX file of another program: y = x + w, with w in another file if `location` is set."""
    w = helper.make_tensor("w", TensorProto.FLOAT, [4], np.ones(4, np.float32).tobytes(), raw=True)
    if location:
        w.ClearField("raw_data")
        w.data_location = TensorProto.EXTERNAL
        w.external_data.add(key="location", value=location)
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy")
    made = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [w])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if metadata is not None:
        helper.set_model_props(model, {METADATA: metadata})
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    "metadata", ["[]", "{}", '{"export": {"batch": "2"}}', '{"export": {"softmax": 1}}', "[" * 100_000]
)
def test_metadata_that_describe_no_export_are_refused(metadata, tmp_path):
    with pytest.raises(ValueError, match="the metadata does not describe an export"):
        open_exported(foreign(tmp_path / "a.onnx", metadata))


def test_files_of_other_programs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="was not written by ndvit export"):
        open_exported(foreign(tmp_path / "a.onnx"))
    with pytest.raises(ValueError, match="does not describe a model"):
        open_exported(foreign(tmp_path / "a.onnx", '{"export": {}}'))
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.ones(4, np.float32).tobytes())
    (tmp_path / "inner").mkdir()
    for location in ("../secret.bin", str(secret)):
        with pytest.raises(ValueError, match="cannot be read as onnx"):
            open_exported(foreign(tmp_path / "inner" / "a.onnx", location=location))
    for ending in ENDINGS.values():
        (tmp_path / f"b{ending}").write_bytes(b"nonsense")
        with pytest.raises(ValueError, match="cannot be read as"):
            open_exported(tmp_path / f"b{ending}")
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_exported(tmp_path / "c.onnx")
    with pytest.raises(ValueError, match=r"exported files end in .onnx, .xml, .pt2, .ts, got c.txt"):
        open_exported(tmp_path / "c.txt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, "format must be one of onnx, openvino, pt2, torchscript, got 'tflite'"),
        ({"preprocess": "none"}, 'preprocess must be "beside" or "inside"'),
        ({"int8": True}, "int8 needs examples"),
        ({"int8": True, "format": "pt2"}, "int8 exists for onnx and openvino"),
        ({"format": "openvino"}, "openvino files end in .xml"),
        ({"path": None}, "pass the path of the .onnx file"),
        ({"min_agreement": 2}, "min_agreement is a share from 0 to 1, got 2"),
        ({"min_saving": -1}, "min_saving is a share from 0 to 1, got -1"),
        (
            {"int8": True, "data": toy(8, (2, 24))},
            r"int8 can save 0.0 of 0.0 MB \(.* quantise anyway with --min-saving 0",
        ),
        ({"data": (np.zeros((4, 3, 24)), [0, 1, 0, 1])}, "3 channels"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(small_model("signal"), **{"path": tmp_path / "model.onnx"} | options)
    assert list(tmp_path.iterdir()) == []


def test_what_the_model_must_know(tmp_path):
    model, path = small_model("signal", preprocess=None), tmp_path / "model.onnx"
    with pytest.raises(ValueError, match=r"no preprocessing to put inside: set model.preprocess, or leave it beside"):
        export(model, path, preprocess="inside")
    with pytest.raises(ValueError, match="no preprocessing, which data need"):
        export(model, path, data=toy(8, (2, 24)))
    with pytest.raises(FileNotFoundError, match="create it first"):
        export(model, tmp_path / "nowhere" / "model.onnx")
    model.task = Contrastive()
    with pytest.raises(ValueError, match="softmax is for networks with answers such as probabilities"):
        export(model, path, softmax=True)
    model.network.reset_head(0)
    model.task = None
    with pytest.raises(ValueError, match="softmax is for networks with answers such as probabilities"):
        export(model, path, softmax=True)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_missing_packages_are_named(format, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs a package that is not installed: pip install 'ndvit\[export\]'"):
        export(small_model("signal"), tmp_path / f"model{ENDINGS[format]}", format=format)


def test_tensors_of_more_than_onnx_holds_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="an ONNX file holds 2 GB"):
        export(small_model("signal"), tmp_path / "model.onnx")


def test_int8_is_estimated_by_the_layers_that_it_quantises():
    network = graphs.Deployed(small_model("wide"), GraphOptions())
    saving = estimate_saving(network)
    eight = sum(block.attn.qkv.weight.numel() + block.mlp.fc1.weight.numel() for block in network.network.blocks)
    assert saving.saved == 3 * eight == 3 * 2 * (64 * 192 + 64 * 256)
    assert saving.size == 4 * sum(p.numel() for p in network.network.state_dict().values())
    assert 0.5 < saving.work < 0.7
    with_random = estimate_saving(graphs.Deployed(small_model("committee"), GraphOptions()))
    assert with_random.work < 0.1
    assert with_random.share < 0.25


def test_int8_that_saves_enough_is_announced():
    network, lines = graphs.Deployed(small_model("wide"), GraphOptions()), []
    with pytest.raises(ValueError, match="too little to be faster"):
        exporting._check_saving(network, 0.25, lines.append)
    exporting._check_saving(network, 0, lines.append)
    assert lines == [f"{estimate_saving(network)}; the quantisation takes minutes"]


def disk(monkeypatch, *free):
    """A disk with this many bytes free, one number for each look at it."""
    numbers = iter(free)
    monkeypatch.setattr(exporting.shutil, "disk_usage", lambda path: SimpleNamespace(free=next(numbers)))


@pytest.mark.parametrize("free", [(100,), (10**9, 100)])
def test_a_full_disk_is_named_and_nothing_is_lost(free, tmp_path, monkeypatch):
    """Found before the writing, or by an error of a library, as OpenVINO's."""
    path = tmp_path / "model.ts"
    path.write_text("precious")

    def write(network, examples, dynamic, file, metadata):
        file.write_bytes(b"half")
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setitem(formats.WRITERS, "torchscript", write)
    disk(monkeypatch, *free)
    with pytest.raises(
        OSError, match=r"model.ts cannot be written, the disk is full: free some space, or choose another"
    ):
        export(small_model("signal"), path, format="torchscript", force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["model.ts"]
    assert path.read_text() == "precious"


def test_an_error_of_a_library_with_space_left_stays(tmp_path, monkeypatch):
    def write(*arguments):
        raise RuntimeError("a fault of the library")

    monkeypatch.setitem(formats.WRITERS, "torchscript", write)
    with pytest.raises(RuntimeError, match="a fault of the library"):
        export(small_model("signal"), tmp_path / "model.ts", format="torchscript")


@pytest.mark.parametrize("format", ["onnx", "openvino", "pt2", "torchscript"])
def test_a_folder_that_cannot_be_written_is_named(format, tmp_path, monkeypatch):
    def refuse(**options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(exporting, "TemporaryDirectory", refuse)
    with pytest.raises(
        PermissionError, match=r"model\.\w+ cannot be written, permission denied: make its folder writable"
    ):
        export(small_model("signal"), tmp_path / f"model{ENDINGS[format]}", format=format)


@pytest.mark.parametrize("format", ["openvino", "torchscript"])
def test_a_real_full_disk(format, tmp_path):
    mounted = sys.platform == "linux" and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting needs root on Linux")
    try:
        with pytest.raises(OSError, match="the disk is full"):
            export(small_model("signal"), tmp_path / f"model{ENDINGS[format]}", format=format)
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_folder_is_no_output(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder: pass the name of the \.onnx file, such as .*model\.onnx"):
        export(small_model("signal"), tmp_path)


def changed(change, path):
    """A copy of an exported file with other metadata."""
    made = onnx.load(DATA / "signal.onnx")
    metadata = json.loads({p.key: p.value for p in made.metadata_props}[METADATA])
    change(metadata)
    helper.set_model_props(made, {METADATA: json.dumps(metadata)})
    onnx.save(made, path)
    return path


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("size", [1000], r"its preprocessing makes 1 channels of \(1000,\), and its network reads 1 of \(24,\)"),
        ("size", [10**9], r"its preprocessing makes 1 channels of \(1000000000,\)"),
    ],
)
def test_metadata_that_are_not_the_graphs_are_refused(field, value, message, tmp_path):
    path = changed(lambda metadata: metadata["preprocess"].update({field: value}), tmp_path / "a.onnx")
    with pytest.raises(ValueError, match=message):
        open_exported(path)


def test_a_graph_of_other_shapes_than_its_metadata_is_refused(exported, tmp_path):
    _, path, _ = exported("signal")
    text = {p.key: p.value for p in onnx.load(path).metadata_props}[METADATA]
    with pytest.raises(
        ValueError, match=r"the graph takes the shapes \[\(1, 4\)\], and its metadata describe \[\(-1, 2, 24\)"
    ):
        open_exported(foreign(tmp_path / "a.onnx", text))


def test_operators_of_others_are_refused(tmp_path):
    model = onnx.load_from_string(foreign(tmp_path / "a.onnx").read_bytes())
    model.graph.node[0].domain = "evil"
    model.opset_import.append(helper.make_opsetid("evil", 1))
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"cannot be read as onnx: .*evil"):
        open_exported(tmp_path / "a.onnx")


def test_errors_of_a_running_graph_are_one_line(tmp_path):
    run = formats.open_graph("onnx", foreign(tmp_path / "a.onnx"))
    with pytest.raises(ValueError, match=r"a.onnx cannot be computed: [^\n]+$"):
        run(torch.zeros(2, 5), None)


@settings(derandomize=True, max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(format=st.sampled_from(["onnx", "openvino"]), seed=st.integers(0, 2**32 - 1), share=st.floats(0, 0.05))
def test_fuzzed_bytes_are_read_or_refused(format, seed, share, tmp_path_factory):
    """Changed bytes give a model or a ValueError, and nothing else."""
    name, ending = {"onnx": ("signal", ".onnx"), "openvino": ("network", ".xml")}[format]
    random = np.random.default_rng(seed)
    data = bytearray((DATA / f"{name}{ending}").read_bytes())
    for place in random.integers(0, len(data), max(1, int(share * len(data)))):
        data[place] = random.integers(0, 256)
    folder = tmp_path_factory.mktemp("fuzz")
    if format == "openvino":
        shutil.copy(DATA / "network.bin", folder / "network.bin")
    (folder / f"{name}{ending}").write_bytes(bytes(data[: random.integers(1, len(data))] if seed % 5 == 0 else data))
    with contextlib.suppress(ValueError):
        open_exported(folder / f"{name}{ending}")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(derandomize=True, max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), value=PLAIN)
def test_fuzzed_metadata_are_read_or_refused(data, value, reader):
    """One entry, anywhere in the metadata, is replaced by any JSON value."""
    metadata = json.loads(reader.text)
    inner, key = metadata, data.draw(st.sampled_from(sorted(metadata)))
    while isinstance(inner[key], dict) and inner[key] and data.draw(st.booleans()):
        inner = inner[key]
        key = data.draw(st.sampled_from(sorted(inner)))
    inner[key] = value
    reader.metadata = json.dumps(metadata)
    with contextlib.suppress(ValueError):
        open_exported(reader.path)


@pytest.fixture
def reader(monkeypatch, exported):
    """An exported file whose metadata are replaced after it was opened, which takes no time."""
    _, path, _ = exported("signal")
    graph = formats.READERS["onnx"](path, 1, "float32")
    state = SimpleNamespace(path=path, text=graph.metadata, metadata=graph.metadata)
    monkeypatch.setitem(formats.READERS, "onnx", lambda *arguments: graph._replace(metadata=state.metadata))
    return state
