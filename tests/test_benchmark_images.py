"""The image benchmark on a tiny folder in two steps: rows, splits, equal conditions, and how it continues."""

import importlib
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ndvit import Classification, Model, VisionTransformer, ViTConfig, load_model
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.data.sources.load import load_source

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
bench = importlib.import_module("images")
fits = importlib.import_module("image_fits")
peers = importlib.import_module("image_peers")
reading = importlib.import_module("reading")
report = importlib.import_module("image_report")
results = importlib.import_module("image_results")
values = importlib.import_module("image_work")

STEPS = 2
COLOURS = {"blue": (20, 40, 200), "green": (30, 180, 40), "red": (200, 30, 30)}
TRAINER = importlib.util.find_spec("accelerate") is not None  # without it, transformers trains nothing
ROW = results.Row(
    "A", "ours", 0, "", "32x32", 48, 12, 0.5, 1.0, 10.0, 20.0, 300, 100, 32, 1, 1, "cpu", 2, "torch", "abc", "python"
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*lr_scheduler.step:UserWarning"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder of 60 coloured pictures in `pics`, and weights for five other classes."""
    home, rng = tmp_path_factory.mktemp("bench"), np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (home / "pics" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.clip(rng.normal(colour, 40, (20, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(home / "pics" / name / f"{i}.png")
    config = ViTConfig(
        input_size=(32, 32), patch_size=(8, 8), in_channels=3, num_classes=5, embed_dim=16, depth=2, num_heads=2
    )
    torch.manual_seed(0)
    preprocess = ImagePreprocess((32, 32), (0.5,) * 3, (0.25,) * 3, crop_fraction=0.875)
    Model(VisionTransformer(config), Classification("abcde"), preprocess).save(home / "tiny.safetensors")
    return home


def arguments(home, **more):
    options = {"data": home / "pics", "weights": home / "tiny.safetensors", "seeds": 1, "steps": STEPS, "workers": 0}
    return {**options, "out": home / "out", "device": "cpu", **more}


def here(work):
    """Run a fit in this process, which has already imported everything."""
    return fits.FITS[work.library](work)


@pytest.fixture(scope="module")
def works(home):
    """The arguments of all fits of a run with all models; the rows are in home/out."""
    works = []

    def fit(work):
        works.append(work)
        return here(work)

    names = [name for name, model in bench.MODELS.items() if TRAINER or model.library != "transformers"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "in_process", fit)
        bench.main(**arguments(home, models=",".join(names)))
    return works


def rows_of(home):
    return {(row.set, row.model): row for row in results.read_rows(home / "out" / "results.csv", results.Row)}


def test_every_fit_is_a_row(home, works):
    rows = rows_of(home)
    names = [name for name, model in bench.MODELS.items() if TRAINER or model.library != "transformers"]
    assert set(rows) == {*(("pics", name) for name in names), ("digits", "small-data")}
    for row in rows.values():
        assert (row.setting, row.train, row.test) == (
            (f"steps {STEPS}", 48, 12) if row.set == "pics" else (f"steps {STEPS}", 1438, 359)
        )
        assert row.steps == (0 if row.model == "linear-probe" else STEPS)
        assert row.batch == 32
        assert 0 < row.train_seconds < row.total_seconds
    # images of 20 x 24 pixels get the next multiple of 8
    pixels = {name: row.pixels for name, row in rows.items()}
    assert {name: pixels["pics", name] for name in ("ours", "timm", "timm-small", "timm-adamw-small")} == {
        "ours": "24x24", "timm": "32x32", "timm-small": "24x24", "timm-adamw-small": "24x24",
    }  # fmt: skip
    assert pixels["digits", "small-data"] == "8x8"
    assert rows["pics", "linear-probe"].accuracy == 1  # three colours
    text = (home / "out" / "results.csv").read_text()
    assert str(home) not in text
    assert "--data FOLDER --weights FILE --models" in text


def test_all_have_the_same_pictures_steps_and_weights(home, works):
    data = load_source(str(home / "pics"), seed=0, progress=False)
    others = [work for work in works if work.library != "ndvit"]
    assert len(others) == (6 if TRAINER else 4)
    for work in others:
        assert [path for path, _ in work.test] == list(data.test.items)
        assert [label for _, label in work.train] == data.train.targets.tolist()
        assert not {path for path, _ in work.train} & {path for path, _ in work.test}
        assert (work.steps, work.batch, work.classes) == (STEPS, 32, 3)
    mine = next(work for work in works if work.library == "ndvit")
    assert (mine.source, mine.options, mine.seed) == (str(home / "pics"), {"steps": STEPS}, 0)


def test_peers_start_from_the_weights(home, works, tmp_path, monkeypatch):
    """timm starts from the network of the file with a new head."""
    import timm

    made, create = [], timm.create_model

    def recorded(*args, **more):
        network = create(*args, **more)
        made.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return network

    monkeypatch.setattr(timm, "create_model", recorded)
    folders = bench.export(home / "tiny.safetensors", ["timm"], tmp_path)
    work = replace(next(work for work in works if work.library == "timm"), weights=str(folders["timm"]))
    peers.fit_timm(work)
    ours = load_model(home / "tiny.safetensors").network.state_dict()
    (theirs,) = made
    body = [name for name in theirs if not name.startswith("head")]
    assert len(body) > 25
    assert all(torch.equal(theirs[name], ours[name]) for name in body)
    assert theirs["head.weight"].shape == (3, 16)


def test_trains_the_requested_number_of_steps(home, works):
    """Epochs have one batch, because 48 images make one full batch of 32."""
    folders = bench.export(home / "tiny.safetensors", ["timm"], home / "exported")
    work = replace(next(work for work in works if work.library == "timm"), weights=str(folders["timm"]), steps=5)
    fitted = peers.fit_timm(work, opt="adamw", lr=1e-2, layer_decay=0.75, sched_on_updates=True)
    assert fitted.steps == 5
    rows = np.array(fitted.probabilities)
    assert rows.shape == (12, 3)
    np.testing.assert_allclose(rows.sum(1), 1, atol=1e-5)
    again = peers.fit_timm(work, opt="adamw", lr=1e-2, layer_decay=0.75, sched_on_updates=True)
    np.testing.assert_array_equal(again.probabilities, rows)  # the result depends on the seed only
    with pytest.raises(ValueError, match="48 training images are fewer than a batch of 64"):
        peers.fit_timm(replace(work, batch=64))


def test_transformers_needs_accelerate(home, works, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs accelerate.*pip install 'ndvit\[bench\]'"):
        peers.fit_transformers(works[0])


def test_a_fit_has_its_own_process(home, works, monkeypatch):
    folders = bench.export(home / "tiny.safetensors", ["timm"], home / "exported-too")
    work = replace(next(work for work in works if work.library == "timm"), weights=str(folders["timm"]))
    ballast = bytearray(2**29)  # memory of this process, which must not be counted for the other one
    ballast[:: 2**12] = b"x" * 2**17
    fitted = bench.in_process(work)
    assert fitted.steps == STEPS
    assert len(fitted.probabilities) == 12
    assert 100 < fitted.megabytes < values.peak_megabytes() - 300
    (home / "fails.py").write_text("raise KeyError('nothing')")
    monkeypatch.setattr(bench, "FIT", home / "fails.py")
    with pytest.raises(RuntimeError, match="KeyError: 'nothing'"):
        bench.in_process(work)


def test_continues_where_it_stopped(home, works, monkeypatch, capsys):
    path = home / "out" / "results.csv"
    before = results.read_rows(path, results.Row)
    results.write_rows(path, [row for row in before if (row.set, row.model) != ("pics", "timm")], results.Row)
    done = []

    def run(what, job, data):
        done.append(job)
        return next(row for row in before if row.key == (*job, what.setting))

    monkeypatch.setattr(bench, "run", run)
    bench.main(**arguments(home, models="ours,timm"))
    assert done == [("pics", "timm", 0)]
    assert {row.key for row in results.read_rows(path, results.Row)} == {row.key for row in before}
    bench.main(**arguments(home, models="timm", fresh=True))
    assert done[1:] == [("pics", "timm", 0)]
    monkeypatch.setattr(bench, "git_commit", lambda files: "another")  # the rows of another commit are of another model
    bench.main(**arguments(home, models="timm"))
    assert done[2:] == [("pics", "timm", 0)]

    def fail(what, job, data):
        raise ValueError("no such luck")

    monkeypatch.setattr(bench, "run", fail)
    with pytest.raises(SystemExit, match="1"):
        bench.main(**arguments(home, models="timm", fresh=True))
    assert "pics timm seed 0: ValueError: no such luck" in capsys.readouterr().err
    results.write_rows(path, before, results.Row)


def test_other_test_images_raise(home, works):
    data = load_source(str(home / "pics"), seed=0, progress=False)
    other = load_source(str(home / "pics"), seed=1, progress=False)
    fitted = values.Fitted([[1.0, 0.0, 0.0]] * 12, list(other.test.names), 1.0, 2, 32, (24, 24))
    what = bench.Bench(home / "pics", home / "tiny.safetensors", {}, {}, "", 1, 0, "cpu", "abc", "python")
    with pytest.raises(RuntimeError, match="ours was tested on images that are not in its test split"):
        bench.run(what, bench.Job("pics", "ours", 0), data, lambda work: fitted)
    row = bench.run(what, bench.Job("pics", "ours", 0), data, lambda work: replace(fitted, names=[]))
    assert row.accuracy == pytest.approx(4 / 12, abs=1e-6)  # blue is predicted for all


def test_the_plan_is_that_of_ndvit(home):
    what = bench.Bench(home / "pics", home / "tiny.safetensors", {}, {}, "", 1, 0, "cpu", "abc", "python")
    data = what.load("pics", 0)
    assert what.plan(data) == (300, 32, (24, 24))
    assert replace(what, options={"epochs": 10}).plan(data) == (15, 32, (24, 24))  # 480 images
    assert replace(what, options={"input_size": (16, 16)}).plan(data)[2] == (16, 16)
    assert bench.choose_models("", Path("weights"), sized=True) == [
        name for name in bench.MODELS if not name.endswith("-small")
    ]
    assert bench.choose_models("", None, sized=False) == ["small-data"]


def test_unsuitable_arguments_raise(home, tmp_path):
    with pytest.raises(SystemExit, match="unknown model tim: known are ours,"):
        bench.main(**arguments(home, models="tim"))
    with pytest.raises(SystemExit, match="timm needs trained weights: add --weights FILE"):
        bench.main(**arguments(home, models="timm", weights=None))
    with pytest.raises(SystemExit, match="no such folder"):
        bench.main(**arguments(home, data=home / "nothing"))
    with pytest.raises(SystemExit, match="not both epochs and steps"):
        bench.main(**arguments(home, epochs=3))
    path = tmp_path / "results.csv"
    path.write_text("set,model\nA,ours\n")
    with pytest.raises(ValueError, match=r"has the columns \['set', 'model'\].*move it away"):
        results.read_rows(path, results.Row)


def test_table_of_the_report():
    rows = [
        replace(ROW, accuracy=0.9, log_loss=0.2),
        replace(ROW, seed=1, accuracy=1.0, log_loss=0.4, train_seconds=30.0, megabytes=400),
        replace(ROW, model="timm", accuracy=0.8, log_loss=0.5, pixels="224x224"),
        replace(ROW, model="timm", seed=1, accuracy=0.7, log_loss=0.5, pixels="224x224"),
        replace(ROW, set="B", steps=0),
        replace(ROW, set="B", model="timm", seed=0),
        replace(ROW, set="B", model="timm", seed=1, accuracy=0.5),
    ]
    cells = report.cells_of(rows, ["timm", "ours"])
    assert {name: list(models) for name, models in cells.items()} == {"A": ["timm", "ours"], "B": ["timm", "ours"]}
    table = report.table_of(cells["A"])
    assert table[2] == "| `timm` | 75.0 ± 7.1 | 0.500 | 224x224 | 100 | 10.0 | 320 | 20.0 | 300 | 2 |"
    assert table[3] == "| `ours` | **95.0** ± 7.1 | **0.300** | 32x32 | 100 | 20.0 | 160 | 20.0 | 400 | 2 |"
    table = report.table_of(cells["B"])  # on the split that both models have
    assert table[2].startswith(f"| `timm` | **{100 * ROW.accuracy:.1f}** |")
    assert table[2].endswith(f" | 1 | {50 * ROW.accuracy + 25:.1f} ± {(100 * ROW.accuracy - 50) / 2**0.5:.1f} over 2 |")
    assert table[3].split(" | ")[4:7] == ["–", "10.0", "–"]
    assert table[3].endswith(" | 1 | – |")


def test_report_is_written_from_the_file(home, works):
    out = home / "out"
    (out / "report.md").unlink(missing_ok=True)
    bench.main(report=True, out=out, steps=STEPS)
    text = (out / "report.md").read_text()
    assert f"A trial of the benchmark with steps {STEPS}" in text
    assert text.index("## pics: 48 training images, 12 test images") < text.index("## digits: 1,438 training images")
    assert text.count("| `small-data` |") == 2
    assert text.count("| `timm-adamw-small` |") == 1
    assert "timm 1." in text
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="no rows"):
        bench.main(report=True, out=out)


def test_reading_is_measured_and_written_as_a_table(home, monkeypatch):
    before = torch.get_num_threads()
    try:
        reading.main(data=home / "pics", size=16, batch=8, workers=0, rounds=2, limit=20, out=home / "reading.md")
    finally:
        torch.set_num_threads(before)
    lines = (home / "reading.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith(("| test", "| training"))]
    assert [row.split(" | ")[:2] for row in rows] == [["| test", "0"], ["| training", "0"]]
    rates = {("test", "ours"): [100.0, 300.0, 200.0], ("test", "torchvision"): [100.0, 100.0, 50.0]}
    rates |= {("training", who): [1_000.0] * 3 for who in ("ours", "torchvision")}
    assert reading.table_of({2: rates})[2:] == [
        "| test | 2 | 200 | 100 | 3.00 (1.00 to 4.00) |",
        "| training | 2 | 1,000 | 1,000 | 1.00 (1.00 to 1.00) |",
    ]
    with pytest.raises(SystemExit, match="no such folder"):
        reading.main(data=home / "nothing")


def test_reading_compares_the_same_work(home):
    """The test transforms give the same pixels; the training transforms give the same number and shape of images."""
    one, other = (make(home / "pics", 16, 8, 0) for make in (reading.ours, reading.theirs))
    mine = torch.cat([batch.x for batch in one["test"](0)])
    theirs = torch.cat([x for x, _ in other["test"](0)])
    assert mine.shape == theirs.shape == (60, 3, 16, 16)
    assert sorted(mine.mean((1, 2, 3)).tolist()) == pytest.approx(sorted(theirs.mean((1, 2, 3)).tolist()), abs=0.02)
    shapes = [[tuple(batch[0].shape) for batch in make["training"](0)] for make in (one, other)]
    assert shapes[0] == shapes[1] == [(8, 3, 16, 16)] * 7
