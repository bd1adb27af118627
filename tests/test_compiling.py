"""The fastest way to run a model: the same numbers in every way, and the least median time wins."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

import ndvit
from exports import small_model
from ndvit.exporting import compiling
from ndvit.exporting.compiling import fastest, write_graph
from ndvit.exporting.formats import ENDINGS, open_graph
from ndvit.exporting.graphs import quiet
from ndvit.exporting.runtimes import GraphOptions
from smallnetworks import batch
from tinyruns import QUIET

QUICK = {"rounds": 1, "log": lambda line: None}
GRAPHS = ["onnxruntime", "openvino"]
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(compiling, "PAUSE", 0.0)


@pytest.fixture
def medians(monkeypatch):
    """The times that will be measured, by way."""
    found: dict[str, float] = {}
    monkeypatch.setattr(compiling, "measure", lambda runtimes, *_: {name: found.get(name, 9.0) for name in runtimes})
    return found


@pytest.fixture
def scales(monkeypatch):
    """Graphs that are the network itself, which takes no time to build; outputs are multiplied by the number here."""
    found: dict[str, float] = {}

    def graph(model, options, format, precision):
        return lambda x, mask: found.get(format, 1) * model.network(x, mask)

    monkeypatch.setattr(compiling, "_graph", graph)
    return found


@pytest.mark.parametrize("way", ["eager", *GRAPHS])
def test_the_least_median_wins_and_its_numbers_are_the_models(way, medians):
    medians[way] = 0.5
    model = small_model("signal")
    model.network.train()
    compiled = fastest(model, batch_size=2, ways=[way], **QUICK)
    assert (compiled.way, compiled.batch_size, compiled.left_out) == (way, 2, {})
    assert model.network.training
    assert model.network.patch_embed.proj.weight.requires_grad
    model.network.eval()
    x, mask = batch(model, 5), torch.ones(5, 24, dtype=torch.bool)
    before = compiled(x)
    torch.testing.assert_close(before, model(x), atol=1e-4, rtol=1e-4)
    mask[1::2, -6:] = False
    torch.testing.assert_close(compiled(x, mask), model(x, mask), atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        model.network.head.weight.add_(1)  # a later change of the model has no effect
    assert torch.equal(compiled(x), before)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
@pytest.mark.parametrize("streams", [0, 2])
def test_several_threads_may_call_a_graph(tmp_path, format, streams):
    model = small_model("signal")
    path = tmp_path / f"model{ENDINGS[format]}"
    with quiet():
        write_graph(model, GraphOptions(), format, path)
    run = open_graph(format, path, streams=streams)
    parts = [batch(model, 1 + i % 3) for i in range(24)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: run(x, None), parts))
    for x, outputs in zip(parts, found):
        torch.testing.assert_close(outputs, model(x), atol=1e-4, rtol=1e-4)


def test_progress_is_logged(scales, medians):
    medians |= {"eager": 0.2, "onnxruntime": 0.1, "openvino": 0.16}
    lines = []
    compiled = fastest(small_model("image"), batch_size=8, ways=GRAPHS, rounds=1, log=lines.append)
    assert lines[:2] == ["trying onnxruntime ...", "trying openvino ..."]
    assert lines[2:] == [str(compiled)]
    assert lines[2].splitlines() == [
        "onnxruntime is the fastest at batch 8 (median, times as fast as eager):",
        "  onnxruntime    100.00 ms   2.00×",
        "  openvino       160.00 ms   1.25×",
        "  eager          200.00 ms   1.00×",
    ]


def test_ways_that_differ_are_left_out(scales):
    scales["openvino"] = 1.01
    compiled = fastest(small_model("image"), ways=GRAPHS, **QUICK)
    assert list(compiled.seconds) == ["eager", "onnxruntime"]
    assert compiled.left_out["openvino"].startswith("differs by up to 0.0")
    assert "  openvino    left out: differs by up to 0.0" in str(compiled)


def test_ways_without_their_package_are_left_out(monkeypatch):
    monkeypatch.setitem(compiling.PACKAGES, "onnx", ("no_such_package",))
    compiled = fastest(small_model("image"), ways=["onnxruntime"], **QUICK)
    assert compiled.way == "eager"
    assert compiled.left_out["onnxruntime"].endswith("pip install 'ndvit[export]'")


def test_a_model_with_a_compiled_network_predicts():
    model = small_model("image")
    compiled = ndvit.compile(model, ways=[], **QUICK)
    pictures = [torch.randint(0, 256, (20, 24, 3), dtype=torch.uint8).numpy() for _ in range(3)]
    images = [Image.fromarray(picture) for picture in pictures]
    for a, b in zip(model.predict(images, **QUIET), compiled.predict(images, **QUIET), strict=True):
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-5)
    with pytest.raises(ValueError, match=r"runs on the cpu|not available"):
        compiled.predict(images, device="cuda", **QUIET)
    with pytest.raises(ValueError, match="the model compiled by eager runs without weights"):
        fastest(compiled)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@torch._dynamo.config.patch(recompile_limit=1)  # The default is 8, past which torch runs in eager mode.
def test_by_torch_compile_any_number_of_times_in_a_process(medians):
    medians["torch.compile in bfloat16"] = 0.5
    model = small_model("signal")
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled = fastest(model, batch_size=2, precision="bfloat16", mask=True, ways=["torch.compile"], **QUICK)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs + 2  # in float32 and in bfloat16
    assert (compiled.way, compiled.left_out) == ("torch.compile in bfloat16", {})
    assert compiled.differences["torch.compile"] < 1e-3 < compiled.differences["torch.compile in bfloat16"] < 0.1
    assert not torch._inductor.config.freezing
    x = batch(model, 5)
    mask = torch.ones(5, 24, dtype=torch.bool)
    mask[0, 12:] = False
    for rows in (slice(0, 2), slice(0, 5)):  # the compiled batch size, and another
        expected = model(x[rows], mask[rows])
        torch.testing.assert_close(compiled(x[rows], mask[rows]), expected, atol=0.1 * expected.std().item(), rtol=0)


def test_bfloat16_competes(scales, medians):
    medians["openvino in bfloat16"] = 0.5
    compiled = fastest(small_model("signal"), batch_size=2, precision="bfloat16", ways=GRAPHS, **QUICK)
    assert compiled.way == "openvino in bfloat16"
    assert list(compiled.seconds) == ["eager", *GRAPHS, "eager in bfloat16", "openvino in bfloat16"]
    assert compiled.differences["eager"] == 0
    assert compiled.differences["openvino"] < 1e-5  # eager computes only the tokens that are read
    assert 1e-3 < compiled.differences["eager in bfloat16"] < 0.1
    assert "  openvino in bfloat16    500.00 ms  18.00×  outputs within " in str(compiled)
    assert compiled(torch.zeros(3, 2, 24)).dtype == torch.float32


def test_ways_are_chosen(scales):
    assert list(fastest(small_model("image"), ways=["openvino"], **QUICK).seconds) == ["eager", "openvino"]
    assert list(fastest(small_model("image"), ways=[], **QUICK).seconds) == ["eager"]
    assert compiling._choose(None, "cuda") == ["torch.compile"]
    for ways in (["tensorrt"], "openvino"):
        with pytest.raises(ValueError, match=r"must be a list of torch\.compile, onnxruntime, openvino on cpu, got "):
            fastest(small_model("image"), ways=ways)


def test_models_that_cannot_be_compared():
    model = small_model("image")
    with torch.no_grad():
        model.network.head.bias[0] = torch.nan
    with pytest.raises(ValueError, match="not finite for random inputs"):
        fastest(model)
    model.network.bfloat16()
    with pytest.raises(ValueError, match=r"in float32, and this one has bfloat16: model\.network\.float\(\)"):
        fastest(model)


def test_wrong_options_and_inputs():
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, got 'int8'"):
        fastest(small_model("image"), precision="int8")
    with pytest.raises(ValueError, match="batch_size and rounds must be at least 1, got 0 and 15"):
        fastest(small_model("image"), batch_size=0)
    compiled = fastest(small_model("signal"), mask=False, ways=[], **QUICK)
    with pytest.raises(ValueError, match=r"expected an input of shape \('batch', 2, 24\), got \(3, 2, 25\)"):
        compiled(torch.zeros(3, 2, 25))
    mask = torch.arange(3 * 24).reshape(3, 24) > 5
    with pytest.raises(ValueError, match="1 of 3 examples have missing values or padding, and the model compiled by"):
        compiled(torch.zeros(3, 2, 24), mask)
