"""Bundles: preprocessing inside the graph, and programs that answer as the model does without torch."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx_ir.tape import Tape
from PIL import Image

from exports import TINY, small_model
from ndvit.config import ViTConfig
from ndvit.config.spectrogram import SpectrogramOptions
from ndvit.data.examples import Examples, Recording
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.data.preprocess.spectrograms import SpectrogramPreprocess
from ndvit.exporting import bundle as bundles
from ndvit.exporting.formats import ENDINGS
from ndvit.exporting.onnx_nodes import INT, Array, name_values
from ndvit.exporting.raw_inputs import prepared, raw_input, reads_rate
from ndvit.model import Model, load_exported
from ndvit.network import VisionTransformer
from ndvit.tasks import Multilabel, Regression
from smallnetworks import spread
from tinyruns import QUIET, command

RNG = np.random.default_rng(0)
LOG = {"log": lambda line: None}


def graph_of(preprocess):
    """A function that runs the nodes of a preprocessing by ONNX Runtime."""
    kind, tape = raw_input(preprocess), Tape()
    raw, ratio = ir.val("raw", kind.type, kind.shape), ir.val("ratio", INT, (2,))
    inputs = [raw, *[ratio] * reads_rate(preprocess)]
    x, mask = prepared(Array(tape, raw, kind.type), Array(tape, ratio, INT) if len(inputs) > 1 else None, preprocess)
    outputs = [array for array in (x, mask) if array is not None]
    for name, array in zip(("x", "mask"), outputs):
        array.value.name, array.value.dtype = name, array.type
    graph = ir.Graph(inputs, [a.value for a in outputs], nodes=tape.nodes, opset_imports={"": 18}, name="g")
    name_values(graph, "v")
    session = onnxruntime.InferenceSession(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString())

    def run(example, rate=None):
        wanted = Fraction(preprocess.sample_rate) / Fraction(rate) if rate else Fraction(1)
        more = {"ratio": np.array(wanted.as_integer_ratio())} if len(inputs) > 1 else {}
        return [out[0] for out in session.run(None, {"raw": example, **more})]

    return run


def assert_same(preprocess, run, raw, example=None, tolerance=1e-5):
    """The nodes return what the preprocessing does."""
    x, mask = preprocess.masked(raw)
    rate = raw.rate if isinstance(raw, Recording) else None
    found, observed = run(raw.values if rate else raw if example is None else example, rate)
    np.testing.assert_allclose(found, x.numpy(), atol=tolerance)
    np.testing.assert_array_equal(observed, True if mask is None else mask.numpy())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"interpolation": "bilinear", "crop_fraction": 0.875},
        {"resize": "pad", "interpolation": "lanczos"},
        {"resize": "squash", "interpolation": "nearest", "unused_channels": (1,)},
        {"mode": "L", "mean": (0.4,), "std": (0.2,), "resize": "pad"},
    ],
)
def test_pictures_are_resized_inside_the_graph_as_by_pillow(options):
    preprocess = ImagePreprocess(**{"size": (32, 40), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25), **options})
    run = graph_of(preprocess)
    for shape in ((50, 70), (20, 90), (32, 40), (10, 7), (1, 300)):  # with an aspect of 300 only a box is resized
        pixels = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
        expected = preprocess(Image.fromarray(pixels)).numpy()
        (found,) = run(pixels)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("size", [(24,), (5, 8), (3, 4, 6)])
@pytest.mark.parametrize("options", [{}, {"resize": "resample", "unused_channels": (1,)}])
def test_signals_are_filled_resampled_and_padded_inside_the_graph(size, options):
    preprocess = SignalPreprocess(size, (1e5, -1.0), (2.0, 0.5), **options)
    run = graph_of(preprocess)
    grids = [size, [n - 1 for n in size], [n + 3 for n in size], [2 * n for n in size], [2, *size[1:]]]
    for grid in grids:
        for missing in (0, 0.3, 0.8):
            values = RNG.normal(size=(2, *grid)) + np.array([1e5, -1]).reshape(2, *[1] * len(grid))
            values[RNG.random(values.shape) < missing] = np.nan
            if not np.isnan(values[0]).all():
                assert_same(preprocess, run, values.astype(np.float32))


def test_recordings_at_other_rates_are_resampled_inside_the_graph():
    preprocess = SignalPreprocess((400,), (0.0,), (1.0,), sample_rate=8000.0)
    run = graph_of(preprocess)
    for rate, length in ((8000, 300), (16000, 700), (44100, 1500), (6000, 200)):
        assert_same(preprocess, run, Recording(RNG.normal(size=(1, length)).astype(np.float32), float(rate)))


def spectrogram(bands_as="picture", **changes):
    noise = [RNG.normal(size=(1, 400)).astype(np.float32) * np.linspace(0.01, 1, 400, dtype=np.float32)] * 2
    examples = Examples([Recording(one, 8000.0) for one in noise], np.zeros(2, int), ["a", "b"], None)
    options = SpectrogramOptions(spectrogram="mel", bands_as=bands_as, bands=8, frame=64, frame_step=25)
    return replace(SpectrogramPreprocess.fit(examples, options), **changes)


@pytest.mark.parametrize("bands_as", ["picture", "channels"])
def test_spectrograms_are_computed_inside_the_graph(bands_as):
    for preprocess in (
        spectrogram(bands_as),
        spectrogram(bands_as, relative=False, floor=-60.0, resize="resample"),
        spectrogram(bands_as, silence=20.0),
    ):
        run = graph_of(preprocess)
        for length in (400, 130, 790):
            values = RNG.normal(size=(1, length)).astype(np.float32)
            assert_same(preprocess, run, Recording(values, 8000.0))
            rising = np.linspace(0, 1, length, dtype=np.float32) ** 4  # begins with silence
            assert_same(preprocess, run, Recording(values * rising, 8000.0), tolerance=1e-4)  # FFT of quiet frames
            values[:, 60:90] = values[:, -40:] = np.nan  # missing values at the end count as a shorter signal
            assert_same(preprocess, run, values)


# ---------------------------------------------------------------------------------------------------------- bundles


def signals(n=6, length=24):
    values = RNG.normal(size=(n, 2, length)).astype(np.float32) + np.array([[3], [-1]], dtype=np.float32)
    values[1, :, 15:] = np.nan
    return values


def number_model():
    return small_model("signal", task=Regression(("a", "b", "c"), (1.0, 10.0, 0.0), (2.0, 5.0, 0.1), margins=(1, 2, 3)))


def sound_model():
    preprocess = spectrogram()
    config = ViTConfig(**{**TINY, "input_size": preprocess.size, "patch_size": 4, "in_channels": 1})
    torch.manual_seed(0)
    facts = {"reading": {"window": "50ms", "hop": "50%"}}
    network = spread(VisionTransformer(config)).eval()
    return Model(network, task=Multilabel(("x", "y", "z"), (0.5, 0.2, 0.6)), preprocess=preprocess, provenance=facts)


def write_sounds(folder):
    import soundfile

    for i, rate in enumerate((8000, 8000, 16000)):
        sound = np.sin(np.arange(1300) * (0.3 + 0.1 * i)) * np.linspace(0.1, 0.9, 1300)
        soundfile.write(folder / f"{i}.wav", sound, rate, subtype="PCM_16")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Bundles with their models: of signals (a committee), pictures, numbers with intervals, sounds in windows."""
    folder = tmp_path_factory.mktemp("bundles")
    (folder / "sounds").mkdir()
    write_sounds(folder / "sounds")
    pictures = [Image.fromarray(RNG.integers(0, 256, (30, 50, 3), dtype=np.uint8)) for _ in range(4)]
    cases = {
        "signal": (small_model("committee"), signals(), {}),
        "image": (small_model("image"), pictures, {"fp16": True, "opset": 18}),
        "numbers": (number_model(), signals(), {"opset": 23}),
        "sounds": (sound_model(), folder / "sounds", {}),
    }
    reports = {}

    def make(name):
        if name not in reports:
            model, data, options = cases[name]
            torch.manual_seed(0)
            reports[name] = model.export_bundle(folder / f"{name}-bundle", data=data, **LOG, **options)
        return cases[name][0], reports[name]

    make.folder = folder
    return make


def run_program(bundle, *arguments):
    """Run predict.py where torch and ndvit cannot be imported; returns its exit status and its JSON lines."""
    code = "import runpy, sys; sys.modules.update(torch=None, ndvit=None); sys.argv = sys.argv[1:]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    words = [sys.executable, "-c", code, bundle / "predict.py", *arguments]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=100)
    assert not done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def close(found, expected, tolerance=1e-4):
    """Compare nested answers."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            close(found[key], value, tolerance)
    elif isinstance(expected, float | list) and not isinstance(expected[0] if expected == [] else 0, str):
        np.testing.assert_allclose(found, expected, atol=tolerance) if not _texts(expected) else None
    else:
        assert found == expected


def _texts(value):
    return isinstance(value, list) and any(isinstance(one, str) for one in value)


def test_a_bundle_is_complete_and_checks_itself_without_torch(made):
    _, report = made("signal")
    names = {str(path.relative_to(report.path)) for path in report.path.rglob("*") if path.is_file()}
    assert names == {
        *("model.onnx", "model.json", "predict.py", "README.md", "service/Dockerfile", "service/model.safetensors"),
        *("web/index.html", "web/predict.js", "web/build.mjs", "web/package.json"),
        *("self-test/expected.json", *(f"self-test/input-{i}.npy" for i in (1, 2, 3))),
    }
    assert report.difference < 1e-5
    status, (result,) = run_program(report.path, "--self-test")
    assert (status, result["self-test"]) == (0, "passed")
    broken = report.path / "self-test/expected.json"
    shutil.copytree(report.path, report.path.with_name("broken"))
    changed = json.loads(broken.read_text())
    changed["answers"]["input-2.npy"][0] += 0.01
    (report.path.with_name("broken") / "self-test/expected.json").write_text(json.dumps(changed))
    status, (result,) = run_program(report.path.with_name("broken"), "--self-test")
    assert (status, result["self-test"]) == (1, "failed")


def answers_agree(model, bundle, paths, tolerance=1e-4):
    expected = [one.to_dict() for path in paths for one in model.predict(str(path), **QUIET)]
    status, found = run_program(bundle, *paths)
    assert status == 0
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected):
        close(mine, theirs, tolerance)


def test_files_of_signals_are_answered_as_by_predict(made, tmp_path):
    model, report = made("signal")
    np.save(tmp_path / "one.npy", signals()[1, :, :20])
    np.save(tmp_path / "many.npy", signals(3, 30))
    rows = signals()[0].T
    lines = ["a,b", *(f"{a},{'' if i == 3 else b}" for i, (a, b) in enumerate(rows.tolist()))]
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    answers_agree(model, report.path, [tmp_path / name for name in ("one.npy", "many.npy", "table.csv")])


def test_a_table_of_other_columns_is_refused_and_times_are_no_channel(made, tmp_path):
    _, report = made("signal")
    rows = signals()[0].T.tolist()
    timed = ["time_s,a,b", *(f"{i / 100},{a},{b}" for i, (a, b) in enumerate(rows))]
    (tmp_path / "timed.csv").write_text("\n".join(timed))
    (tmp_path / "plain.csv").write_text("\n".join(line.partition(",")[2] for line in timed))
    (tmp_path / "more.csv").write_text("\n".join(["a,b,c", *(f"{a},{b},0" for a, b in rows)]))
    (tmp_path / "text.csv").write_text("\n".join(["a,b", "1,2", "3,4 g", "5,NA"]))
    (tmp_path / "first.csv").write_text("\n".join(["1,2 g", "3,4"]))  # whose first row is no header
    names = ("timed.csv", "plain.csv", "more.csv", "text.csv", "first.csv")
    status, found = run_program(report.path, *(tmp_path / name for name in names))
    assert status == 2
    assert found[0]["probabilities"] == found[1]["probabilities"]
    assert found[2]["error"] == "has the columns a, b, c, expected 2"
    assert "could not convert string to float: '4 g'" in found[3]["error"]  # it is no missing value
    assert "could not convert string to float: '2 g'" in found[4]["error"]


def write_table(path, names, columns):
    rows = zip(*columns)
    path.write_text("\n".join([",".join(names), *(",".join(map(str, row)) for row in rows)]))
    return path


def test_named_columns_are_read_in_the_order_of_the_training(tmp_path):
    model = small_model("signal")
    model.provenance["channel_names"] = ["acc", "gyro"]
    bundle = model.export_bundle(tmp_path / "made", data=signals(), **LOG).path
    acc, gyro = signals()[0]
    tables = {
        "same": (("acc", "gyro"), (acc, gyro)),
        "turned": (("gyro", "time", "acc"), (gyro, np.arange(24), acc)),
        "more": (("mag", "acc", "gyro"), (acc, acc, gyro)),
        "others": (("x", "y"), (acc, gyro)),
        "twice": (("acc", "acc", "gyro"), (acc, acc, gyro)),
    }
    paths = [write_table(tmp_path / f"{name}.csv", *table) for name, table in tables.items()]
    (expected,) = model.predict(acc_and_gyro := np.stack([acc, gyro])[None], **QUIET)
    assert acc_and_gyro.shape == (1, 2, 24)
    status, found = run_program(bundle, *paths)
    assert status == 2
    for answer in found[:3]:
        close(answer["probabilities"], expected.probabilities)
    assert [one.get("error") for one in found[3:]] == [
        "has the columns x, y, expected acc, gyro",
        "has the columns acc, acc, gyro, expected acc, gyro",
    ]


def test_channels_by_number_are_chosen_from_arrays_of_every_width(tmp_path):
    """A model of the channels 1 and 0 reads an array of two channels in this order, too."""
    model = small_model("signal")
    model.provenance["reading"] = {"channels": "1,0"}
    bundle = model.export_bundle(tmp_path / "made", data=signals(), **LOG).path
    np.save(tmp_path / "two.npy", signals()[0])
    np.save(tmp_path / "three.npy", np.concatenate([signals()[0], signals()[2, :1]]))
    answers_agree(model, bundle, [tmp_path / "two.npy", tmp_path / "three.npy"])
    assert run_program(bundle, "--self-test")[0] == 0
    np.save(tmp_path / "one.npy", signals()[0, :1])
    status, (found,) = run_program(bundle, tmp_path / "one.npy")
    assert status == 2
    assert "out of bounds" in found["error"]


def test_a_table_with_irregular_times_or_at_another_rate_is_refused(made, tmp_path):
    _, report = made("sounds")
    values, regular = np.sin(np.arange(800.0)), np.arange(800) / 8000
    gap = regular + 0.01 * (np.arange(800) > 400)
    tables = {"regular": regular, "rounded": regular.round(5), "slow": 2 * regular, "gap": gap}
    paths = [write_table(tmp_path / f"{n}.csv", ("time", "x"), (t.tolist(), values)) for n, t in tables.items()]
    status, found = run_program(report.path, *paths)
    assert status == 2
    assert ["error" in one for one in found] == [False, False, True, True]
    assert found[2]["error"].startswith("has times 0.00025 s apart, expected 0.000125 s everywhere")


def test_recordings_are_cut_into_windows_as_by_predict(made):
    model, report = made("sounds")
    answers_agree(model, report.path, sorted((made.folder / "sounds").iterdir()))  # one at another rate
    assert (report.path / "self-test/input-1.wav").is_file()


def test_numbers_have_their_intervals(made, tmp_path):
    model, report = made("numbers")
    np.save(tmp_path / "one.npy", signals()[0])
    answers_agree(model, report.path, [tmp_path / "one.npy"], tolerance=1e-3)


def test_pictures_are_answered_as_by_predict_with_weights_of_16_bits(made, tmp_path):
    model, report = made("image")
    Image.fromarray(RNG.integers(0, 256, (40, 31, 4), dtype=np.uint8)).save(tmp_path / "transparent.png")
    Image.fromarray(RNG.integers(0, 256, (40, 31), dtype=np.uint8)).save(tmp_path / "grey.png")
    answers_agree(model, report.path, [tmp_path / "transparent.png", tmp_path / "grey.png"], tolerance=2e-3)
    graph = onnx.load(report.path / "model.onnx")
    assert {one.domain: one.version for one in graph.opset_import}[""] == 18
    assert any(t.data_type == onnx.TensorProto.FLOAT16 for t in graph.graph.initializer)
    assert "weights of 16 bits" in str(report)
    with pytest.raises(ValueError, match="was not written by ndvit export"):
        load_exported(report.path / "model.onnx")


def test_a_file_that_cannot_be_read_is_one_line_and_status_2(made, tmp_path):
    _, report = made("signal")
    (tmp_path / "bad.npy").write_bytes(b"no numbers")
    np.save(tmp_path / "wide.npy", np.zeros((3, 24), np.float32))
    np.save(tmp_path / "long.npy", np.zeros((2, 49), np.float32))
    np.save(tmp_path / "good.npy", signals()[0])
    paths = [tmp_path / f"{name}.npy" for name in ("bad", "wide", "long", "good")]
    status, found = run_program(report.path, *paths)
    assert status == 2
    assert ["error" in one for one in found] == [True, True, True, False]
    assert found[1]["error"] == "has 3 channels, expected 2"
    assert "more than twice as many as [24]" in found[2]["error"]
    np.save(tmp_path / "complex.npy", np.zeros((2, 24), np.complex64))
    (tmp_path / "sound.mp3").write_bytes(b"")
    _, found = run_program(report.path, tmp_path / "complex.npy", tmp_path / "sound.mp3")
    assert found[0]["error"] == "has values of the type complex64, expected numbers"
    assert found[1]["error"] == "expected a .npy, .csv or .wav file"


def test_a_bundle_is_written_whole_or_not_at_all(made, tmp_path, monkeypatch):
    model, _ = made("signal")
    with pytest.raises(ValueError, match="a bundle has three real inputs for its self-test"):
        model.export_bundle(tmp_path / "new", **LOG)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").write_text("")
    with pytest.raises(FileExistsError, match="other exists"):
        model.export_bundle(tmp_path / "other", data=signals(), force=True, **LOG)

    def fail(*_, **options):
        raise ValueError("the exported file differs")

    monkeypatch.setattr(bundles, "export", fail)
    with pytest.raises(ValueError, match="the exported file differs"):
        model.export_bundle(tmp_path / "new", data=signals(), **LOG)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_an_earlier_bundle_is_replaced_but_no_files_beside_it(tmp_path):
    model, folder = small_model("signal"), tmp_path / "made"
    model.export_bundle(folder, data=signals(), **LOG)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"files beside the earlier bundle, such as notes\.txt"):
        model.export_bundle(folder, data=signals(), force=True, **LOG)
    (folder / "notes.txt").unlink()
    before = (folder / "model.onnx").stat().st_ino
    model.export_bundle(folder, data=signals(), force=True, **LOG)
    assert (folder / "model.onnx").stat().st_ino != before
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_models_without_answers_have_no_bundle(tmp_path):
    untrained = small_model("signal", untrained=("head.weight",))
    with pytest.raises(ValueError, match="newly initialised"):
        untrained.export_bundle(tmp_path / "new", data=signals(), **LOG)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "openvino", "fp16": True}, "fp16 is for ONNX files, and the format is openvino"),
        ({"format": "pt2", "opset": 20}, "opset is for ONNX files, and the format is pt2"),
        ({"opset": 17}, "opset must be from 18 to 23, got 17"),
        ({"fp16": True, "int8": True, "data": "x"}, "fp16 and int8 are two sizes of weights"),
    ],
)
def test_options_of_onnx_files_that_do_not_fit_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        small_model("signal").export(tmp_path / f"model{ENDINGS[options.get('format', 'onnx')]}", **options)


def test_the_command_writes_a_bundle(made, tmp_path, capsys):
    model, _ = made("numbers")
    model.save(tmp_path / "model.safetensors")
    np.save(tmp_path / "data.npy", signals())
    names = {flag: tmp_path / name for flag, name in (("--bundle", "made"), ("--data", "data.npy"))}
    arguments = ["export", tmp_path / "model.safetensors", *(part for pair in names.items() for part in pair)]
    assert command(*arguments, "--softmax") == 2
    assert "--softmax is for a single file" in capsys.readouterr().err
