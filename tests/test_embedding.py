"""Embeddings of examples, as tables and as scores."""

import numpy as np
import pytest
import torch
from ndvit import embed
from ndvit.embedding import Embeddings, _vote
from ndvit.network import create_model
from ndvit.network.ensemble import Ensemble
from PIL import Image
from tinyruns import command, run_tiny, toy

QUIET = {"progress": False, "say": lambda line: None}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_tiny(toy(60, classes=3), tmp_path_factory.mktemp("embed") / "run", steps=3)


def test_embeddings_of_labelled_data_know_labels_and_splits(run):
    x, y = toy(60, classes=3)
    made = embed(run.model, (x, np.array(["a", "b", "c"])[y]), **QUIET)
    assert made.vectors.shape == (60, 16)
    assert made.vectors.dtype == np.float32
    assert (made.splits == "test").sum() == 12
    order = np.argsort([int(name.strip("[]")) for name in made.names])
    assert made.labels[order].tolist() == np.array(["a", "b", "c"])[y].tolist()
    with torch.no_grad():
        tokens = run.model.forward_features(run.model.preprocess(x[5])[None])
    assert np.allclose(made.vectors[order][5], tokens[0, 0].numpy(), atol=1e-5)


def test_embeddings_need_no_trained_head_and_no_labels(tmp_path):
    model = create_model("vit_pico", input_size=(16, 16), patch_size=4, num_classes=0).eval()
    for i in range(3):
        Image.new("RGB", (20, 20), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    said: list[str] = []
    made = embed(model, tmp_path, progress=False, say=said.append)
    assert made.vectors.shape == (3, 64)
    assert made.labels.tolist() == made.splits.tolist() == [""] * 3
    assert [name.rpartition("/")[2] for name in made.names] == ["0.png", "1.png", "2.png"]
    assert any("bring no preprocessing" in line for line in said)
    with pytest.raises(ValueError, match="scores need labelled examples"):
        made.score("knn")


@pytest.mark.parametrize("ending", [".npz", ".parquet"])
def test_tables_are_written_whole_and_never_over_another(run, tmp_path, ending):
    made = embed(run.model, toy(60, classes=3), **QUIET)
    path = tmp_path / f"e{ending}"
    made.save(path)
    if ending == ".npz":
        with np.load(path, allow_pickle=False) as table:
            found = {name: table[name] for name in table.files}
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        table = parquet.read_table(path)
        found = {name: np.array(table[name].to_pylist()) for name in table.column_names}
    assert np.allclose(found["embeddings"], made.vectors)
    for name in ("names", "labels", "splits"):
        assert found[name].tolist() == getattr(made, name).tolist()
    with pytest.raises(FileExistsError, match="--force"):
        made.save(path)
    made.save(path, force=True)
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match=r"\.npz or \.parquet, got"):
        made.save(tmp_path / "e.csv")


def test_neighbours_vote_by_their_cosine():
    x = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 1.0]])
    votes = _vote(x, np.array([0, 1, 1]), np.array([[3.0, 0.0], [1.0, 1.0]]), 3)
    far = np.exp(-1 / 0.07)
    assert votes[0] == pytest.approx([1 / (1 + 2 * far), 2 * far / (1 + 2 * far), 0])
    assert votes[1] == pytest.approx([1 / 3, 2 / 3, 0])


@pytest.mark.parametrize("how", ["knn", "linear"])
def test_separable_embeddings_score_all(how):
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    vectors = (rng.normal(size=(40, 4)) * 0.1 + np.eye(4)[labels]).astype(np.float32)
    splits = np.array(["train"] * 30 + ["test"] * 10)
    names = np.array([str(i) for i in range(40)])
    found = Embeddings(vectors, names, np.array(["x", "y"])[labels], splits, ("x", "y")).score(how)
    assert found.accuracy == 1.0
    assert found.names == tuple(names[30:])


def test_an_ensemble_has_no_embedding(run):
    with pytest.raises(ValueError, match="its 2 members have one each"):
        embed(Ensemble([run.model, run.model]), toy(), **QUIET)


def test_the_command(run, tmp_path, capsys):
    x, y = toy(60, classes=3)
    np.savez(tmp_path / "data.npz", X=x, y=y)
    command("embed", run.folder, tmp_path / "data.npz", "--output", tmp_path / "e.npz", "--knn", "--linear")
    out = capsys.readouterr().out
    assert "60 embeddings of 16 numbers" in out
    assert "knn    accuracy" in out
    assert "linear accuracy" in out
    assert command("embed", run.folder, tmp_path / "data.npz") == 2
    assert command("embed", run.folder, tmp_path / "data.npz", "--output", tmp_path / "e.npz") == 2
