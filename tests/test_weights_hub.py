"""Sources of weights: local, from the table, from a hub that answers as the real one does or does not; and pushing."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load, save

from hubserver import HubServer, connect
from ndvit import create_model
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.weights.card import model_card
from ndvit.weights.publish import push_to_hub
from ndvit.weights.reading import hub as room
from ndvit.weights.reading.hub import resolve
from ndvit.weights.reading.zoo import find_weights
from weightfiles import as_model, load_model, save_model

WEIGHTS = save({"head.weight": torch.arange(400.0)})
OTHER = save({"head.weight": torch.arange(400.0) + 1})
SHA = hashlib.sha256(WEIGHTS).hexdigest()
TIMM = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = HubServer()
    connect(monkeypatch, server, tmp_path)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between its tries
    server.repos["me/net"] = {"model.safetensors": WEIGHTS, "config.json": b"{}", "README.md": b"#"}
    server.repos[f"timm/{TIMM}"] = {"model.safetensors": WEIGHTS, "config.json": b"{}"}
    yield server
    server.stop()


def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def cached(tmp_path) -> set[str]:
    """Names in the caches of what looks like weights, whole or in part."""
    files = [p for p in tmp_path.rglob("*") if (p.is_file() or p.is_symlink()) and ".locks" not in p.parts]
    return {p.name for p in files if p.parent.name == "blobs" or "safetensors" in p.name or "partial" in p.name}


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


# local


def test_what_exists_is_itself(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(WEIGHTS)
    assert resolve(file) == (file, None)
    assert resolve(str(tmp_path)) == (tmp_path, None)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("runs/gone", "no model at runs/gone: use a run folder"),
        ("vit_tiny_patch16_224", f"vit_tiny_patch16_224 needs a tag: {TIMM}, vit_tiny_patch16_224.augreg_in21k"),
        ("vit_tiny_patch16_224.augreg_in21k_ft_in1", f"did you mean {TIMM}"),
        ("torchvision/vit_b_17.imagenet1k_v1", "torchvision/vit_b_16.imagenet1k_v1"),
        ("", "no model at : use a run folder"),
        ("./vit_base_patch16_224", "use a run folder or a .safetensors file, hf:owner/name or a name"),
    ],
)
def test_unknown_names_are_hinted_at(name, hint):
    with pytest.raises(FileNotFoundError) as error:
        resolve(name)
    assert hint in one_line(error)


@pytest.mark.parametrize(
    "text",
    ["hf:", "hf:net", "hf:me/", "hf:me/net/../../x", "hf:me/net@", "hf:me/net/a\\b", "hf:a b/c", "hf:me/net/C:x"],
)
def test_malformed_addresses_are_refused(text):
    with pytest.raises(ValueError, match="no address on the hub: write hf:owner/name"):
        resolve(text)


# from the hub


def test_download_and_second_use_without_a_network(hub, tmp_path, monkeypatch):
    path, row = resolve("hf:me/net")
    assert row is None
    assert path.read_bytes() == WEIGHTS
    assert {p.name for p in path.parent.iterdir()} == {"model.safetensors", "config.json"}
    assert tmp_path in path.parents
    assert resolve(Path("hf:me/net"))[0] == path  # as the command line hands it over
    assert len([r for r in hub.requested("model.safetensors") if r[0] == "GET"]) == 1
    hub.stop()
    assert resolve("hf:me/net")[0] == path
    offline(monkeypatch)
    assert resolve("hf:me/net")[0] == path
    with pytest.raises(ConnectionError, match=r"x\.npz of me/net is not in the cache, and HF_HUB_OFFLINE=1 forbids"):
        resolve("hf:me/net/x.npz")


def test_rows_of_the_table(hub, monkeypatch):
    path, row = resolve(TIMM)
    assert row == find_weights(TIMM)
    assert path.read_bytes() == WEIGHTS
    assert (path.parent / "config.json").is_file()
    hub.requests.clear()
    assert resolve(TIMM) == (path, row)
    assert not hub.requests  # a release does not change
    offline(monkeypatch)
    assert resolve(TIMM) == (path, row)
    with pytest.raises(ConnectionError, match="not in the cache, and HF_HUB_OFFLINE=1 forbids"):
        resolve("vit_base_patch16_224.mae")


def test_in_a_process_of_its_own_set_by_variables_only(hub, tmp_path):
    code = "import sys; from ndvit.weights.reading.hub import resolve; print(resolve(sys.argv[1])[0])"
    variables = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_TOKEN": "secret",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }

    def run(**more):
        done = subprocess.run(
            [sys.executable, "-c", code, "hf:me/net"], env=variables | more, capture_output=True, text=True
        )
        return done.stdout.strip() or done.stderr

    path = Path(run())
    assert path.read_bytes() == WEIGHTS
    assert tmp_path in path.parents
    assert {headers["authorization"] for *_, headers in hub.requested("me/net")} == {"Bearer secret"}
    hub.stop()
    assert run(HF_HUB_OFFLINE="1") == str(path)


def test_revision_and_file(hub):
    hub.repos["me/net"]["sub/other.safetensors"] = OTHER
    path, _ = resolve("hf:me/net/sub/other.safetensors@v1")
    assert path.read_bytes() == OTHER
    assert hub.requested("/resolve/v1/sub/other.safetensors")


def test_shards(hub):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}
    hub.repos["me/net"] = {
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-1.safetensors": WEIGHTS,
        "model-2.safetensors": OTHER,
    }
    path, _ = resolve("hf:me/net")
    assert path.name == "model.safetensors.index.json"
    assert (path.parent / "model-1.safetensors").read_bytes() == WEIGHTS
    assert (path.parent / "model-2.safetensors").read_bytes() == OTHER


@pytest.mark.parametrize("shard", ["../../../x.safetensors", "/etc/passwd", "..", "a/b.safetensors", "..\\x", "C:x"])
def test_shards_stay_beside_their_index(hub, shard):
    index = json.dumps({"weight_map": {"a": shard}}).encode()
    hub.repos["me/net"] = {"model.safetensors.index.json": index}
    with pytest.raises(ValueError, match="is outside the folder of the index"):
        resolve("hf:me/net")


@pytest.mark.parametrize("index", [b"{}", b"[]", b"no", b'{"weight_map": {"a": []}}'])
def test_broken_index(hub, index):
    hub.repos["me/net"] = {"model.safetensors.index.json": index}
    with pytest.raises(ValueError, match=r"without a weight_map|cannot be read as JSON"):
        resolve("hf:me/net")


def test_the_only_candidate_is_taken_and_several_are_listed(hub):
    hub.repos["me/net"] = {"B_16.npz": WEIGHTS, "README.md": b"#"}
    assert resolve("hf:me/net")[0].name == "B_16.npz"
    hub.repos["me/net"]["L_16.npz"] = OTHER
    with pytest.raises(ValueError) as error:
        resolve("hf:me/net")
    assert "several files of weights (B_16.npz, L_16.npz): write hf:owner/name/FILE" in one_line(error)
    assert resolve("hf:me/net/L_16.npz")[0].read_bytes() == OTHER
    hub.repos["me/net"] = {"README.md": b"#"}
    with pytest.raises(ValueError, match=r"no file of weights that is known here.*it has README\.md"):
        resolve("hf:me/net")


def test_token_is_sent(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    resolve("hf:me/net")
    assert {headers.get("authorization") for *_, headers in hub.requests} == {"Bearer secret"}


@pytest.mark.parametrize(
    ("why", "kind", "text"),
    [
        ("missing", FileNotFoundError, r"there is no http://[\d.:]+/me/net, or it is private: .* `hf auth login`"),
        ("private", FileNotFoundError, r"or it is private: check the name, or set HF_TOKEN"),
        ("stranger", PermissionError, r"failed with status 401 \(no\): check the name, or set HF_TOKEN"),
        ("gated", PermissionError, r"me/net is gated: accept its licence on http://[\d.:]+/me/net, then set HF_TOKEN"),
        ("broken", ConnectionError, r"me/net is not in the cache, and listing http.* failed with status 500 \(no\)"),
    ],
)
def test_refusals(hub, why, kind, text):
    hub.refused["me/net"] = why
    with pytest.raises(kind, match=text) as error:
        resolve("hf:me/net")
    one_line(error)


def test_unknown_revision_and_file(hub):
    with pytest.raises(FileNotFoundError, match="me/net has no branch, tag or commit v9"):
        resolve("hf:me/net@v9")
    with pytest.raises(FileNotFoundError, match=r"no file x\.npz; it has model\.safetensors, config\.json, README\.md"):
        resolve("hf:me/net/x.npz")
    with pytest.raises(ValueError, match="is no name of a repository"):
        resolve("hf:me--you/net..")


def test_a_cache_without_the_weights(hub):
    hub.cut["model.safetensors"] = 0
    with pytest.raises(ConnectionError, match=r"downloading model\.safetensors"):
        resolve("hf:me/net")
    resolve("hf:me/net/config.json")
    hub.stop()
    with pytest.raises(ConnectionError, match=r"the weights of me/net are not in the cache, and listing .*refused"):
        resolve("hf:me/net")


def test_no_network(hub, tmp_path):
    hub.stop()
    for source in ("hf:me/net", TIMM):
        with pytest.raises(ConnectionError, match=r"is not in the cache, and listing .* failed: .*refused") as error:
            resolve(source)
        one_line(error)
    assert not cached(tmp_path)


@pytest.mark.parametrize("after", [0, 700])
def test_broken_download_leaves_nothing(hub, tmp_path, after):
    hub.cut["model.safetensors"] = after
    with pytest.raises(
        ConnectionError, match=r"downloading model\.safetensors of .*me/net failed: .*try again"
    ) as error:
        resolve("hf:me/net")
    one_line(error)
    assert not cached(tmp_path)
    del hub.cut["model.safetensors"]
    assert resolve("hf:me/net")[0].read_bytes() == WEIGHTS


def test_other_content_is_refused_and_removed(hub, tmp_path):
    hub.swapped["model.safetensors"] = OTHER
    for source in ("hf:me/net", TIMM):
        with pytest.raises(ValueError, match=f"sha256 {hashlib.sha256(OTHER).hexdigest()}, expected {SHA}") as error:
            resolve(source)
        one_line(error)
    assert not cached(tmp_path) - {hashlib.sha1(b"{}").hexdigest()}
    hub.swapped.clear()
    assert resolve("hf:me/net")[0].read_bytes() == WEIGHTS


def test_damage_in_the_cache_is_found(hub):
    path, _ = resolve(TIMM)
    path.resolve().write_bytes(OTHER)
    with pytest.raises(ValueError, match=r"has been removed\. Try again to download it"):
        resolve(TIMM)
    assert resolve(TIMM)[0].read_bytes() == WEIGHTS


def test_digest_of_a_row_holds_on_the_hub(hub, monkeypatch):
    row = find_weights(TIMM)
    monkeypatch.setattr(room, "find_weights", lambda name: replace(row, sha256="0" * 64))
    with pytest.raises(ValueError, match=f"sha256 {SHA}, expected {'0' * 64}:"):
        resolve(TIMM)


# from other addresses


@pytest.fixture
def release(hub, monkeypatch):
    """A row of the table that is downloaded from a plain address, and a way to change its digest."""
    row = find_weights("torchvision/vit_b_16.imagenet1k_v1")
    hub.plain["net.pth"] = WEIGHTS

    def set_digest(digest):
        changed = replace(row, url=f"{hub.url}/plain/net.pth", sha256=digest)
        monkeypatch.setattr(room, "find_weights", lambda name: changed)
        return changed

    set_digest(SHA[:8])
    return set_digest


def test_a_release_is_downloaded_once(hub, release, tmp_path, monkeypatch):
    path, row = resolve("release")
    assert path == tmp_path / "torch" / "checkpoints" / "net.pth"
    assert path.read_bytes() == WEIGHTS
    assert row.name == "torchvision/vit_b_16.imagenet1k_v1"
    offline(monkeypatch)
    hub.stop()
    assert resolve("release")[0] == path
    assert len(hub.requested("net.pth")) == 1


def test_a_release_with_another_digest(hub, release, tmp_path):
    release("12345678")
    with pytest.raises(ValueError, match=rf"net\.pth has the sha256 {SHA}, expected 12345678\.\.\.: it was damaged"):
        resolve("release")
    assert not list((tmp_path / "torch" / "checkpoints").iterdir())


@pytest.mark.parametrize("digest", [SHA[:8], None])  # the length tells where the release does not
@pytest.mark.parametrize("after", [0, 700])
def test_a_release_that_breaks_off(hub, release, tmp_path, digest, after):
    release(digest)
    hub.cut["net.pth"] = after
    with pytest.raises(ConnectionError, match=r"downloading http.*net\.pth failed: .*Try again") as error:
        resolve("release")
    one_line(error)
    assert not list((tmp_path / "torch" / "checkpoints").iterdir())


def test_a_release_out_of_reach(hub, release, monkeypatch):
    del hub.plain["net.pth"]
    with pytest.raises(ConnectionError, match="404"):
        resolve("release")
    offline(monkeypatch)
    with pytest.raises(ConnectionError, match=r"net\.pth is not in the cache, and HF_HUB_OFFLINE=1 forbids"):
        resolve("release")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    hub.stop()
    with pytest.raises(ConnectionError, match="refused"):
        resolve("release")


# to the hub; the client's own upload uses a name that its HTTP library has since deprecated
UPLOADS = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    network = create_model("vit_pico_patch4_8", num_classes=2, depth=1, embed_dim=16, num_heads=2)
    preprocess = ImagePreprocess(size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    provenance = {"source": "digits", "model": "vit_pico", "seed": 3, "steps": 20, "test_accuracy": 0.75}
    return as_model(network, ("cat", "dog"), preprocess=preprocess, provenance=provenance)


def front_matter(card: str) -> dict:
    start, front, text = card.split("---\n", 2)
    assert not start
    assert text
    return yaml.safe_load(front)


@UPLOADS
def test_a_model_arrives_whole_in_one_commit(hub, model):
    assert push_to_hub(model, "me/pets", private=True, licence="mit", message="First") == f"{hub.url}/me/pets"
    (commit,) = hub.commits
    assert commit["repo"] == "me/pets"
    assert commit["header"]["summary"] == "First"
    assert set(commit["files"]) == {"model.safetensors", "README.md"}
    (digest,) = hub.uploads  # by what arrived; the client has sent the digest of what it read
    assert hashlib.sha256(commit["files"]["model.safetensors"]).hexdigest() == digest
    tensors = load(commit["files"]["model.safetensors"])
    assert all(torch.equal(tensors[name], tensor) for name, tensor in model.state_dict().items())
    assert hub.created[0].get("visibility", "private" if hub.created[0].get("private") else "") == "private"
    card = commit["files"]["README.md"].decode()
    front = front_matter(card)
    assert front["license"] == "mit"
    assert front["library_name"] == "ndvit"
    assert front["tags"] == ["vision-transformer", "image-classification"]
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.75
    assert 'load_model("hf:me/pets")' in card
    assert "ndvit predict hf:me/pets photo.jpg" in card
    assert "cat, dog" in card
    again = load_model(resolve("hf:me/pets")[0])
    assert (again.classes, again.preprocess, again.config) == (model.classes, model.preprocess, model.config)
    assert again.provenance == model.provenance


@UPLOADS
def test_a_run_folder_with_its_results(hub, model, tmp_path):
    model.provenance["source"] = str(tmp_path / "secret" / "flowers")
    save_model(model, tmp_path / "model.safetensors")
    results = {"examples": 1234, "accuracy": 0.8125, "accuracy_interval_95": [0.79, 0.84]}
    (tmp_path / "results.json").write_text(json.dumps(results))
    page = push_to_hub(tmp_path, "pets")  # in one's own namespace
    assert page == f"{hub.url}/me/pets"
    files = hub.commits[0]["files"]
    card = files["README.md"].decode()
    assert "0.8125 on 1,234 examples (95 % interval 0.7900 to 0.8400)" in card
    assert "trained on: flowers" in card
    assert 'load_model("hf:me/pets")' in card
    for name, content in files.items():
        assert b"secret" not in content, f"{name} tells a folder of this machine"
    push_to_hub(tmp_path / "model.safetensors", "me/pets")  # and again, into a repository that exists
    assert len(hub.commits) == 2


@UPLOADS
def test_what_cannot_be_pushed(hub, model, monkeypatch, tmp_path):
    model.untrained = ("head.weight", "head.bias")
    with pytest.raises(ValueError, match=r"head\.weight, head\.bias of this model are not trained"):
        push_to_hub(model, "me/pets")
    model.untrained = ()
    with pytest.raises(ValueError, match="is no name of a repository"):
        push_to_hub(model, "me/pets/cats")
    with pytest.raises(FileNotFoundError, match="no model at"):
        push_to_hub(tmp_path / "gone", "me/pets")
    hub.refused["me/pets"] = "broken"
    with pytest.raises(ConnectionError, match=r"pushing to .*/me/pets failed with status 500 \(no\)"):
        push_to_hub(model, "me/pets")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(
        PermissionError, match=r"failed with status 401 \(no\): .* `hf auth login` with a token that may"
    ):
        push_to_hub(model, "me/cats")
    hub.refused.clear()
    with pytest.raises(ValueError, match=r'Invalid metadata in README\.md\. - "license" must be one of') as error:
        push_to_hub(model, "me/pets", licence="no such", token="t")
    one_line(error)
    hub.broken_uploads = True
    with pytest.raises(ConnectionError, match=r"pushing to .*/me/pets failed: .*500"):
        push_to_hub(model, "me/pets", token="t")
    hub.stop()
    with pytest.raises(ConnectionError, match=r"pushing to .*/me/pets failed: .*refused") as error:
        push_to_hub(model, "me/pets", token="t")
    one_line(error)
    assert not hub.commits
    assert model.provenance["source"] == "digits"


def test_markup_in_names_stays_text():
    names = [
        "a\n---\nlicense: x",
        "a|b",
        "{{ config }}",
        "{% if %}",
        "```",
        "<script>",
        "[x](http://y)",
        "# h",
        "x" * 300,
    ]
    network = create_model("vit_pico", input_size=16, num_classes=len(names))
    preprocess = SignalPreprocess(size=(16,), mean=(0.0,) * 3, std=(1.0,) * 3)
    provenance = {"source": "a: b\n---\n# c", "model": "vit\n## d"}
    model = as_model(network, names, preprocess=preprocess, provenance=provenance)
    card = model_card(model, "me/pets", results={"accuracy": 1.0})
    front = front_matter(card)
    assert front["model-index"][0]["results"][0]["dataset"]["name"] == "a: b --- # c"
    assert "license" not in front
    text = card.split("---\n", 2)[2]
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# pets", "## Use", "## Preprocessing", "## Provenance", "## Limits",
    ]  # fmt: skip
    assert "\n---" not in text
    assert text.count("```") == 4
    for markup in ("<script>", "[x](", "{{", " {%", "a|b"):
        assert markup not in text
    assert r"\{\{ config \}\}" in text
    assert "x" * 101 not in text


def test_cards_of_other_models():
    network = create_model("vit_pico", input_size=16, patch_size=4, num_classes=60)
    signals = as_model(network, [f"class{i}" for i in range(60)])
    card = model_card(signals, "me/signals")
    assert front_matter(card) == {"library_name": "ndvit", "tags": ["vision-transformer", "time-series-classification"]}
    assert "class0" not in card
    assert "- 60 classes\n" in card
    assert "recording.npy" in card
    signals.provenance = {"source": "C:\\me\\data.ts", "weights": "/home/me/start.pth"}
    assert "me" not in model_card(signals, "you/s").split("## Provenance")[1].split("## Limits")[0].replace(
        "weights", ""
    )
    signals.provenance = {"source": "vit_base_patch16_224.mae", "licence": "cc-by-nc-4.0"}
    card = model_card(signals, "me/s")
    assert front_matter(card)["license"] == "cc-by-nc-4.0"
    assert "published weights: vit\\_base\\_patch16\\_224.mae" in card
    assert "trained on" not in card
    signals.provenance = {"steps": 5, "source": "ucr:Wafer", "weights": "torchvision/vit_b_16.imagenet1k_v1"}
    card = model_card(signals, "me/s")
    assert r"trained on: ucr\:Wafer" in card
    assert "torchvision/vit\\_b\\_16.imagenet1k\\_v1" in card
