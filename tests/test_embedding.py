"""Embeddings of examples, as tables and as scores."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from datafiles import picture, pictures
from ndvit import Classification, Model, create_model, embed, load_source, save_model
from ndvit.data.examples import Examples
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.inference.embed import Embeddings
from ndvit.network.committee import Committee
from tinyruns import QUIET, command, run_tiny, toy

LETTERS = np.array(["a", "b", "c"])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on a file beside its folder, with a split of its own."""
    root = tmp_path_factory.mktemp("embed")
    x, y = toy(60, classes=3)
    np.savez(root / "toy.npz", X=x, y=y)
    return run_tiny(str(root / "toy.npz"), root / "run", steps=3, seed=3, test_fraction=0.3)


def reader(**options):
    """A new model for pictures."""
    torch.manual_seed(0)
    size = {"input_size": (16, 16), "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 0}
    return Model(create_model("vit_pico", **size | options), None, ImagePreprocess((16, 16), (0.5,) * 3, (0.2,) * 3))


def together(*models):
    """An ensemble."""
    networks = [model.network for model in models]
    untrained = [f"members.{i}.{name}" for i, model in enumerate(models) for name in model.untrained]
    return Model(Committee(networks, combine="probabilities"), None, models[0].preprocess, untrained=untrained)


def embedded(model, source, **options):
    """The embeddings and the lines that were logged."""
    lines: list[str] = []
    return embed(model, source, progress=False, log=lines.append, **options), lines


# labelled and unlabelled data


def test_embeddings_of_labelled_data_know_labels_and_splits(run):
    x, y = toy(60, classes=3)
    made, lines = embedded(run.model, (x, LETTERS[y]))
    assert made.vectors.shape == (60, 16)
    assert made.vectors.dtype == np.float32
    assert made.classes == ("a", "b", "c")
    order = np.argsort([int(name.strip("X[]")) for name in made.names])
    assert made.labels[order].tolist() == LETTERS[y].tolist()
    with torch.no_grad():
        features = run.model.network.features(run.model.preprocess(x[5])[None])
    assert np.allclose(made.vectors[order][5], features[0].numpy(), atol=1e-5)
    assert "the source has no split: 20% of each class are the test split (12 examples), seed 0" in lines
    as_training = load_source((x, LETTERS[y]), progress=False)  # the same examples that a training would hold out
    assert sorted(made.names[made.splits == "test"]) == sorted(as_training.test.names)


def test_splits_of_the_source_stay(tmp_path):
    for split in ("train", "val", "test"):
        pictures(tmp_path / split, count=2)
    made, _ = embedded(reader(), tmp_path)
    assert made.splits.tolist() == ["train"] * 4 + ["val"] * 4 + ["test"] * 4
    assert made.labels.tolist() == ["cat", "cat", "dog", "dog"] * 3
    assert set(embedded(reader(), tmp_path, split="test")[0].splits) == {"test"}
    assert len(embedded(reader(), tmp_path, split="all")[0]) == 12
    np.testing.assert_array_equal(embedded(reader(), tmp_path, split="train")[0].vectors, made.vectors[:4])


def test_the_source_of_the_training_is_split_as_then(run):
    data = run.folder.with_name("toy.npz")
    made, _ = embedded(run.folder, data)
    tested = load_source(str(data), test_fraction=0.3, seed=3, progress=False).test.names
    assert len(tested) == len(run.evaluation) == 18
    assert sorted(made.names[made.splits == "test"]) == sorted(map(str, tested))
    assert (embedded(run.model, data, test_fraction=0.5, seed=0)[0].splits == "test").sum() == 30


def test_classes_of_one_example_and_single_classes_can_be_embedded(tmp_path):
    pictures(tmp_path, ("cat", "dog"), count=3)
    picture(tmp_path / "owl" / "1.png")
    made, _ = embedded(reader(), tmp_path)
    assert made.splits[made.labels == "owl"].tolist() == ["train"]
    pictures(tmp_path / "one", ("cat",), count=2)
    assert embedded(reader(), tmp_path / "one")[0].classes == ("cat",)
    with pytest.raises(ValueError, match="got 1 of the train split and 0 of the test split"):
        embedded(reader(), ([Image.linear_gradient("L")], ["x"]))[0].score("knn")


def test_files_without_labels(tmp_path):
    for i in range(3):
        Image.linear_gradient("L").point(lambda value: value // (i + 1)).convert("RGB").save(tmp_path / f"{i}.png")  # noqa: B023
    made, lines = embedded(reader(), tmp_path)
    assert made.vectors.shape == (3, 16)
    assert made.labels.tolist() == made.splits.tolist() == [""] * 3
    assert made.classes == ()
    assert made.names.tolist() == ["0.png", "1.png", "2.png"]
    assert not any("without labels" in line for line in lines)
    one, lines = embedded(reader(), tmp_path / "1.png")
    assert (one.names.tolist(), lines) == (["1.png"], [])
    np.testing.assert_allclose(one.vectors[0], made.vectors[1], atol=1e-5)
    with pytest.raises(ValueError, match=r"scores need labelled examples .*got 0 of the train split and 0 of the test"):
        made.score("knn")
    with pytest.raises(ValueError, match="files but no class folders"):
        embedded(reader(), tmp_path, split="all")


def test_arrays_and_tables_without_labels(run, tmp_path):
    x, _ = toy(5)
    made, _ = embedded(run.model, x)
    assert (made.vectors.shape, set(made.labels)) == ((5, 16), {""})
    with pytest.raises(ValueError, match=r"split 'all' needs labelled data: pass \(X, y\), or leave split out"):
        embedded(run.model, x, split="all")
    np.savez(tmp_path / "x.npz", X=x)
    table, lines = embedded(run.model, tmp_path / "x.npz")
    np.testing.assert_allclose(table.vectors, made.vectors, atol=1e-5)
    assert any(line.startswith("embedded without labels; if the source has labels: ") for line in lines)
    np.savez(tmp_path / "x.npz", X=x, y=np.arange(5) % 2)
    labelled, _ = embedded(run.model, tmp_path / "x.npz", test_fraction=0.4)
    assert sorted(labelled.names) == table.names.tolist() == [f"x.npz[{i}]" for i in range(5)]  # one name for either


def test_lists_name_examples_alike_with_and_without_labels(tmp_path):
    pictures(tmp_path / "data", count=2)
    files = [f"data/{name}/{i}.png" for name in ("cat", "dog") for i in range(2)]
    (tmp_path / "a.csv").write_text("path,label\n" + "".join(f"{file},{file[5:8]}\n" for file in files))
    (tmp_path / "b.csv").write_text("path\n" + "".join(f"{file}\n" for file in files))
    labelled, _ = embedded(reader(), tmp_path / "a.csv", test_fraction=0.5)
    bare, lines = embedded(reader(), tmp_path / "b.csv")
    assert sorted(labelled.names) == bare.names.tolist() == files
    assert sum("embedded without labels" in line for line in lines) == 1


def test_errors_of_labelled_data_are_not_swallowed(run, tmp_path):
    pictures(tmp_path / "a", count=2)
    (tmp_path / "a/cat/0.png").write_bytes(b"no picture")
    picture(tmp_path / "a/stray.png")  # which could be embedded alone
    with pytest.raises(ValueError, match=r"0\.png"):
        embedded(reader(), tmp_path / "a")
    made, _ = embedded(reader(), tmp_path / "a", skip_bad=True)
    assert made.labels.tolist() == ["cat", "dog", "dog"]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        embedded(reader(), str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"arrays must be X, y or X_train, .*; got 3 arrays"):
        embedded(reader(), (1, 2, 3))
    with pytest.raises(ValueError, match=r"a holds images, (and|but) the model was trained on signals"):
        embedded(run.model, tmp_path / "a", skip_bad=True)


# models


def test_heads_do_not_matter(tmp_path):
    model = reader(num_classes=5)
    save_model(model, tmp_path / "m.safetensors")
    pictures(tmp_path / "p", count=2)
    made, _ = embedded(tmp_path / "m.safetensors", tmp_path / "p")
    model.network.reset_head(7)
    model.untrained = ("head.weight", "head.bias")
    np.testing.assert_array_equal(embedded(model, tmp_path / "p")[0].vectors, made.vectors)


def test_other_new_tensors_do(tmp_path):
    model = reader()
    model.untrained = ("patch_embed.proj.weight", "head.weight")
    picture(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"1 tensors before the head \(patch_embed\.proj\.weight\) are newly init"):
        embedded(model, tmp_path)
    half_new = reader(num_classes=2)
    half_new.untrained = ("blocks.0.norm1.weight",)
    with pytest.raises(ValueError, match="newly initialised"):
        embedded(together(reader(num_classes=2), half_new), tmp_path)


def test_without_a_preprocessing_one_is_planned_as_for_training(tmp_path):
    model, random = reader(), np.random.default_rng(0)
    model.preprocess = None
    model.save(tmp_path / "m.safetensors")
    for i in range(4):
        Image.fromarray(random.integers(100, 200, (20, 24, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    made, lines = embedded(tmp_path / "m.safetensors", tmp_path)
    line = next(line for line in lines if "have no preprocessing" in line)
    assert line.endswith(f"mean and standard deviation are those of {tmp_path}, input 16 x 16")
    model.preprocess = ImagePreprocess.fit(
        Examples([Image.open(tmp_path / f"{i}.png") for i in range(4)]), size=(16, 16)
    )
    np.testing.assert_allclose(made.vectors, embedded(model, tmp_path)[0].vectors, atol=1e-5)
    both = together(*[reader(num_classes=2)] * 2)
    both.preprocess = None
    vectors = embedded(both, tmp_path)[0].vectors
    both.preprocess = model.preprocess
    np.testing.assert_allclose(vectors, embedded(both, tmp_path)[0].vectors, atol=1e-5)


def test_signals_of_another_length_without_a_preprocessing():
    model = Model(create_model("vit_pico", input_size=(16,), patch_size=4, in_channels=2, num_classes=0))
    x, y = toy(8, shape=(2, 22))
    made, lines = embedded(model, (x, y))
    assert made.vectors.shape == (8, model.config.embed_dim)
    assert any("input 24 (pos_embed: " in line for line in lines)  # whole patches of the data's own length
    assert model.preprocess is None  # the model itself stays unchanged


def test_an_ensemble_embeds_by_all_its_members(run):
    x, y = toy(60, classes=3)
    alone, _ = embedded(run.model, (x, y))
    both, _ = embedded(together(run.model, run.model), (x, y))
    np.testing.assert_array_equal(both.vectors, np.concatenate([alone.vectors, alone.vectors], axis=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "half"}, "split must be one of auto, test, train, all; got 'half'"),
        ({"split": "test", "source": "one"}, "data has no examples of the test set"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"test_fraction": 0.0}, r"test_fraction must be above 0 and below 1, got 0\.0"),
        ({"device": "abacus"}, "device abacus is not available"),
        ({"output": "e.csv"}, r"embeddings are written as \.npz or \.parquet, got e\.csv"),
    ],
)
def test_what_cannot_be(options, message, tmp_path):
    pictures(tmp_path / "data", count=1 if "source" in options else 2)
    options.pop("source", None)
    with pytest.raises(ValueError, match=message):
        embedded(reader(), tmp_path / "data", **options)


# tables


@pytest.fixture
def table():
    names = np.array(["a.png", "größer.png", "c.png"])
    vectors = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    return Embeddings(vectors, names, np.array(["train", "test", "val"]), np.array([0, 1, 0]), Classification("xy"))


def read(path):
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    from pyarrow import parquet

    found = parquet.read_table(path)
    columns = {name: np.array(found[name].to_pylist()) for name in found.column_names}
    assert found.schema.field("embeddings").type.list_size == 4
    return columns | {"classes": np.array(json.loads(found.schema.metadata[b"classes"]))}


@pytest.mark.parametrize("ending", [".npz", ".parquet"])
def test_tables_hold_plain_numbers_and_texts(table, tmp_path, ending):
    path = tmp_path / f"e{ending}"
    table.save(path)
    found = read(path)
    assert found.keys() == {"embeddings", "names", "labels", "splits", "classes"}
    np.testing.assert_array_equal(found["embeddings"].astype(np.float32), table.vectors)
    for name in ("names", "labels", "splits", "classes"):
        assert found[name].tolist() == list(getattr(table, name))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", [".npz", ".parquet"])
def test_a_file_is_replaced_by_force_only_and_whole(table, tmp_path, ending, monkeypatch):
    path = tmp_path / f"e{ending}"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="exists: choose another output, or replace it with --force"):
        table.save(path)

    def fails(*args, **options):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("numpy.savez" if ending == ".npz" else "pyarrow.parquet.write_table", fails)
        with pytest.raises(OSError, match="disk full"):
            table.save(path, force=True)
    assert path.read_text() == "mine"
    table.save(path, force=True)
    assert len(read(path)["names"]) == 3
    assert list(tmp_path.iterdir()) == [path]


def test_outputs_are_refused_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr("ndvit.model.shorthands.load_features", lambda *_, **options: pytest.fail("too late"))
    (tmp_path / "folder.npz").mkdir()
    for output, error, message in (
        ("folder.npz", FileExistsError, "exists"),
        ("none/e.npz", FileNotFoundError, "there is no folder"),
        ("e.txt", ValueError, "written as"),
    ):
        with pytest.raises(error, match=message):
            embed("model", tmp_path, output=tmp_path / output, force=True, **QUIET)
    monkeypatch.setattr("ndvit.inference.embed.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"\.parquet needs a package that is not installed: pip install 'ndvit\[parq"):
        embed("model", tmp_path, output=tmp_path / "e.parquet", **QUIET)


def test_embed_writes_what_it_returns(run, tmp_path):
    made = embed(run.folder, toy(12, classes=3), output=tmp_path / "e.npz", **QUIET)
    np.testing.assert_array_equal(read(tmp_path / "e.npz")["embeddings"], made.vectors)


# scores


def separable(classes=2):
    labels = np.arange(40) % classes
    vectors = (np.random.default_rng(0).normal(size=(40, 4)) * 0.1 + np.eye(4)[labels]).astype(np.float32)
    splits = np.array(["train"] * 26 + ["val"] * 4 + ["test"] * 10)
    names = np.array([str(i) for i in range(40)])
    return Embeddings(vectors, names, splits, labels, Classification("xyz"[:classes]))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("method", ["knn", "linear"])
def test_separable_embeddings_score_all(method, classes):
    table = separable(classes)
    found = table.score(method)
    assert found.accuracy == 1.0
    assert found.classes == table.classes
    assert found.names == tuple(table.names[30:])
    assert found.labels.tolist() == [i % classes for i in range(30, 40)]


@pytest.mark.parametrize("method", ["knn", "linear"])
def test_scores_learn_from_the_train_split_alone(method):
    table = separable()
    whole = table.score(method).probabilities
    table.targets[26:30] = 0  # of the val split
    table.vectors[26:30] = 9
    np.testing.assert_array_equal(table.score(method).probabilities, whole)
    table.targets[:26] = 1 - table.targets[:26]
    assert table.score(method).accuracy == 0.0


def test_other_scores_are_refused():
    with pytest.raises(ValueError, match="embeddings are scored by knn or linear, got 'tree'"):
        separable().score("tree")


# the command


def test_the_command(run, tmp_path, capsys):
    x, y = toy(60, classes=3)
    data, output = tmp_path / "data.npz", tmp_path / "e.npz"
    np.savez(data, X=x, y=y)
    assert command("embed", run.folder, data, "--output", output, "--knn", "--linear") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{output}: 60 embeddings of 16 numbers"
    made = embed(run.folder, data, **QUIET)
    for line, method in zip(lines[1:], ("knn", "linear"), strict=True):
        low, high = made.score(method).accuracy_interval
        assert line.startswith(f"{method:6} accuracy {made.score(method).accuracy:.4f} (")
        assert line.endswith(f" of 12; 95 % interval {low:.4f} to {high:.4f})")
    assert command("embed", run.folder, data, "--output", output) == 2
    assert "--force" in capsys.readouterr().err
    assert command("embed", run.folder, data, "--output", output, "--force", "--split", "test") == 0
    assert "12 embeddings of 16 numbers" in capsys.readouterr().out
    assert command("embed", run.folder, data) == 2
    assert "give --output FILE.npz" in capsys.readouterr().err
    assert command("embed", run.folder, data, "--knn", "--split", "test") == 2
    assert "leave --split test out" in capsys.readouterr().err
