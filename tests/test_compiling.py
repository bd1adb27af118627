"""The fastest exact way to run a model: the same numbers in every way, and the least median is taken."""

import shutil

import numpy as np
import pytest
import torch

import ndvit
from ndvit.exporting import compiling
from ndvit.network.committee import Ensemble
from smallnetworks import batch
from test_export import network

QUICK = {"rounds": 1, "say": lambda line: None}
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")


@pytest.fixture
def graphs_alone(monkeypatch):
    """Without torch.compile, which takes seconds."""
    ways = {name: build for name, build in compiling.WAYS.items() if name != "torch.compile"}
    monkeypatch.setattr(compiling, "WAYS", ways)
    monkeypatch.setattr(compiling, "PAUSE", 0.0)


@pytest.fixture
def medians(monkeypatch):
    """What will be measured, by way."""
    found: dict[str, float] = {}
    monkeypatch.setattr(compiling, "_measure", lambda runners, *_: {name: found.get(name, 9.0) for name in runners})
    return found


@pytest.mark.parametrize("name", ["signal", "distilled", "inception"])
@pytest.mark.parametrize("way", ["eager", "onnxruntime", "openvino"])
def test_the_least_median_is_taken_and_its_numbers_are_the_models(name, way, graphs_alone, medians):
    medians[way] = 0.5
    model = network(name).train()
    compiled = ndvit.compile(model, batch_size=2, **QUICK)
    assert (compiled.way, compiled.left_out) == (way, {})
    assert model.training
    assert model.patch_embed.proj.weight.requires_grad
    model.eval()
    x = batch(model, 5)
    shown = torch.ones(5, *model.config.input_size, dtype=torch.bool)
    if len(model.config.input_size) == 1:  # these pad, so that a mask goes with them
        shown[1::2, -6:] = False
        torch.testing.assert_close(compiled(x, shown), model(x, shown), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(compiled(x), model(x, shown | True), atol=1e-4, rtol=1e-4)
    before = compiled(x)
    with torch.no_grad():
        model.head.weight.add_(1)  # what is trained on is another model
    assert torch.equal(compiled(x), before)


def test_what_it_says(graphs_alone, medians):
    medians |= {"eager": 0.2, "onnxruntime": 0.1, "openvino": 0.16}
    lines = []
    compiled = ndvit.compile(network("image"), batch_size=8, rounds=1, say=lines.append)
    assert lines[:2] == ["trying onnxruntime ...", "trying openvino ..."]
    assert lines[2:] == [str(compiled)]
    assert lines[2].splitlines() == [
        "onnxruntime is the fastest at batch 8 (median, times as fast as eager):",
        "  onnxruntime    100.00 ms   2.00×",
        "  openvino       160.00 ms   1.25×",
        "  eager          200.00 ms   1.00×",
    ]


def test_ways_that_lack_or_err_are_left_out(graphs_alone, monkeypatch):
    def wrong(*arguments):
        return lambda x, mask: 1.01 * right(*arguments)(x, mask)

    right = compiling.WAYS["openvino"]
    monkeypatch.setitem(compiling.WAYS, "openvino", wrong)
    monkeypatch.setitem(compiling.PACKAGES, "onnx", ("no_such_package",))
    compiled = ndvit.compile(network("image"), **QUICK)
    assert compiled.way == "eager"
    assert list(compiled.seconds) == ["eager"]
    assert compiled.left_out["openvino"].startswith("differs by up to 0.0")
    assert compiled.left_out["onnxruntime"].endswith("pip install 'ndvit[export]'")
    assert "  onnxruntime left out: onnxruntime needs a package" in str(compiled)


def test_predictions_are_those_of_the_model(graphs_alone):
    model = network("image")
    compiled = ndvit.compile(model, **QUICK)
    pictures = [torch.randint(0, 256, (20, 24, 3), dtype=torch.uint8).numpy() for _ in range(3)]
    from PIL import Image

    images = [Image.fromarray(picture) for picture in pictures]
    expected = [p.probabilities for p in ndvit.predict(model, images, progress=False)]
    found = [p.probabilities for p in ndvit.predict(compiled, images, progress=False)]
    for a, b in zip(expected, found, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    with pytest.raises(ValueError, match=r"runs on the cpu|there is no device cuda"):
        ndvit.predict(compiled, images, device="cuda")


def test_ensembles_and_files(graphs_alone, tmp_path):
    members = [network("image"), network("image")]
    with torch.no_grad():
        members[1].head.weight.mul_(-1)
    model = Ensemble(members)
    ndvit.save_model(model, tmp_path / "both.safetensors")
    compiled = ndvit.compile(tmp_path / "both.safetensors", **QUICK)
    x = batch(members[0], 3)
    torch.testing.assert_close(compiled(x), model(x), atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_by_torch_compile(medians):
    medians["torch.compile"] = 0.5
    model = network("signal")
    compiled = ndvit.compile(model, batch_size=2, mask=True, ways=["torch.compile"], **QUICK)
    assert compiled.way == "torch.compile"
    assert not torch._inductor.config.freezing
    x = batch(model, 5)
    shown = torch.ones(5, 24, dtype=torch.bool)
    shown[0, 12:] = False
    for rows in (slice(0, 2), slice(0, 5)):  # what was compiled, and any other batch
        torch.testing.assert_close(compiled(x[rows], shown[rows]), model(x[rows], shown[rows]), atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@torch._dynamo.config.patch(recompile_limit=1)  # 8 by default, past which torch runs in eager
def test_any_number_of_models_is_compiled_in_a_process(medians):
    medians["torch.compile"] = 0.5
    for size in (1, 2, 3):
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        compiled = ndvit.compile(network("image"), batch_size=size, ways=["torch.compile"], **QUICK)
        assert compiled.way == "torch.compile"
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs + 1


def test_bfloat16_competes(graphs_alone, medians):
    medians["openvino in bfloat16"] = 0.5
    model = network("signal")
    compiled = ndvit.compile(model, batch_size=2, precision="bfloat16", **QUICK)
    assert compiled.way == "openvino in bfloat16"
    assert sorted(compiled.seconds) == sorted(
        ["eager", "onnxruntime", "openvino", "eager in bfloat16", "openvino in bfloat16"]
    )
    assert compiled.differences["eager"] == 0
    assert compiled.differences["openvino"] < 1e-3 < compiled.differences["eager in bfloat16"] < 0.1
    assert "  openvino in bfloat16    500.00 ms  18.00×  answers within " in str(compiled)
    x = batch(model, 5)
    expected = model(x)
    torch.testing.assert_close(compiled(x), expected, atol=0.1 * expected.std().item(), rtol=0)
    assert compiled(x).dtype == torch.float32


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_by_torch_compile_in_bfloat16(medians):
    medians["torch.compile in bfloat16"] = 0.5
    model = network("image")
    compiled = ndvit.compile(model, precision="bfloat16", ways=["torch.compile"], **QUICK)
    assert compiled.left_out == {}
    assert compiled.way == "torch.compile in bfloat16"
    x = batch(model, 1)
    expected = model(x)
    assert 0 < (compiled(x) - expected).abs().max() < 0.1 * expected.std()


def test_ways_are_chosen(graphs_alone):
    assert list(ndvit.compile(network("image"), ways=["openvino"], **QUICK).seconds) == ["eager", "openvino"]
    assert list(ndvit.compile(network("image"), ways=[], **QUICK).seconds) == ["eager"]
    for ways in (["tensorrt"], "openvino"):
        with pytest.raises(ValueError, match="ways must be a list of onnxruntime, openvino on cpu, got "):
            ndvit.compile(network("image"), ways=ways)


def test_models_that_cannot_be_compared(graphs_alone):
    with pytest.raises(ValueError, match=r"takes models in float32, and this one has bfloat16: model\.float\(\)"):
        ndvit.compile(network("image").bfloat16())
    model = network("image")
    with torch.no_grad():
        model.head.bias[0] = torch.nan
    with pytest.raises(ValueError, match="not finite to random inputs"):
        ndvit.compile(model)


def test_complaints(graphs_alone):
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, got 'int8'"):
        ndvit.compile(network("image"), precision="int8")
    with pytest.raises(ValueError, match="batch_size and rounds must be at least 1, got 0 and 15"):
        ndvit.compile(network("image"), batch_size=0)
    compiled = ndvit.compile(network("signal"), mask=False, **QUICK)
    with pytest.raises(ValueError, match=r"expected an input of shape \('batch', 2, 24\), got \(3, 2, 25\)"):
        compiled(torch.zeros(3, 2, 25))
    shown = torch.from_numpy(np.arange(3 * 24).reshape(3, 24) > 5)
    with pytest.raises(ValueError, match="1 of 3 examples have missing values or padding, and the model compiled by"):
        compiled(torch.zeros(3, 2, 24), shown)
