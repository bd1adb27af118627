"""The HTTP service: equal answers on every route, limits, access, several models, new models, logs and counters."""

import base64
import gc
import io
import json
import logging
import re
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import serve_fuzz

import ndvit
from ndvit.serving import app, protocol, schemas
from ndvit.serving.batching import Way
from ndvit.serving.models import named_runs
from ndvit.serving.ways import Search
from servedmodels import TASKS, save_served, serving

pytestmark = pytest.mark.filterwarnings("ignore::ndvit.data.messages.DataWarning")
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return {name: save_served(name, root / name) for name in TASKS}


@pytest.fixture(scope="module")
def client(runs):
    with serving(*runs.values(), max_pixels=10_000, max_samples=5_000, max_examples=40, max_files=4) as client:
        yield client


def content(name, seed=0):
    """A file for a model: its name and bytes."""
    random, file = np.random.default_rng(seed), io.BytesIO()
    if name == "pictures":
        Image.fromarray(random.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(file, "PNG")
        return f"{seed}.png", file.getvalue()
    if name == "windows":
        soundfile.write(file, random.normal(0, 0.2, 50).clip(-1, 1), 100, "FLOAT", format="WAV")
        return f"{seed}.wav", file.getvalue()
    np.save(file, random.normal(size=(2, 16)).astype(np.float32))
    return f"{seed}.npy", file.getvalue()


def predicted(run, name, content, folder, **options):
    """What `predict` answers for the same file, without its path."""
    path = folder / name
    path.write_bytes(content)
    found = ndvit.predict(run, path, progress=False, log=lambda line: None, **options)
    return [one.to_dict() | {"name": name} for one in found]


def same(found, expected):
    """Whether plain answers are equal, numbers within 1e-5."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, float):
        return abs(found - expected) <= 1e-5 * max(1, abs(expected))
    return found == expected


@pytest.mark.parametrize("name", TASKS)
def test_every_route_answers_as_predict(client, runs, tmp_path, name):
    files = [content(name, seed) for seed in range(3)]
    expected = [one for file in files for one in predicted(runs[name], *file, tmp_path)]
    form = client.post(f"/predict?model={name}", files=[("files", file) for file in files])
    assert same(form.json()["predictions"], expected)
    schemas.Answers.model_validate(form.json())
    encoded = [{"name": n, "file": base64.b64encode(c).decode()} for n, c in files]
    assert same(client.post(f"/predict?model={name}", json={"inputs": encoded}).json()["predictions"], expected)
    alone = client.post(
        f"/predict?model={name}&name={files[0][0]}", content=files[0][1], headers={"content-type": "x/y"}
    )
    assert same(alone.json()["predictions"], expected[:1])
    binary = b"".join(len(c).to_bytes(4, "little") + c for _, c in files)
    tensor = {"name": "input", "datatype": "BYTES", "shape": [3], "parameters": {"binary_data_size": len(binary)}}
    head = json.dumps({"inputs": [tensor], "outputs": []}).encode()
    infer = client.post(
        f"/v2/models/{name}/infer", content=head + binary, headers={protocol.HEADER: str(len(head))}
    ).json()
    outputs = {one["name"]: one for one in infer["outputs"]}
    for key, values in protocol.outputs_of(expected).items():
        found = np.reshape(outputs[key]["data"], outputs[key]["shape"])
        assert outputs[key]["shape"] == list(values.shape)
        assert same(found.tolist(), values.astype(str).tolist() if values.dtype == object else values.tolist())


def test_arrays_in_json_and_in_the_protocol_answer_as_predict(client, runs):
    x = np.random.default_rng(1).normal(size=(3, 2, 16)).astype(np.float32)
    x[0, 1, 4:7] = np.nan
    expected = ndvit.load_model(runs["signals"]).predict_proba(x)
    plain = [[[None if v != v else v for v in row] for row in one] for one in x.tolist()]
    answers = client.post("/predict?model=signals", json={"inputs": plain}).json()["predictions"]
    np.testing.assert_allclose([list(one["probabilities"].values()) for one in answers], expected, atol=1e-5)
    tensor = {"name": "input", "datatype": "FP32", "shape": list(x.shape), "parameters": {"binary_data_size": x.nbytes}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}, "id": "7"}).encode()
    answer = client.post(
        "/v2/models/signals/versions/1/infer", content=head + x.tobytes(), headers={protocol.HEADER: str(len(head))}
    )
    length = int(answer.headers[protocol.HEADER])
    text = json.loads(answer.content[:length])
    assert (text["id"], text["model_version"]) == ("7", "1")
    assert [one["name"] for one in text["outputs"]] == ["class", "probabilities"]
    found = np.frombuffer(answer.content[-expected.nbytes :], "<f4").reshape(expected.shape)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_pixels_in_the_protocol_answer_as_pictures(client, runs):
    pixels = np.random.default_rng(2).integers(0, 256, (2, 9, 11, 3), dtype=np.uint8)
    expected = ndvit.load_model(runs["pictures"]).predict_proba([Image.fromarray(one) for one in pixels])
    tensor = {"name": "input", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
    answer = client.post("/v2/models/pictures/infer", json={"inputs": [tensor]}).json()
    np.testing.assert_allclose(np.reshape(answer["outputs"][1]["data"], (2, 3)), expected, atol=1e-5)


def test_windows_and_the_highest_probabilities_only(client, runs, tmp_path):
    file = content("windows")
    expected = predicted(runs["windows"], *file, tmp_path, per_window=True)
    found = client.post("/predict?model=windows&per_window=true", files={"files": file}).json()["predictions"]
    assert len(found) == 4
    assert same(found, expected)
    found = client.post("/predict?top=1", files={"files": content("pictures")}).json()["predictions"][0]
    assert list(found["probabilities"]) == [found["class"]]


def test_concurrent_requests_get_their_own_answers(client, runs, tmp_path):
    files = [content("pictures", seed) for seed in range(24)]
    expected = [predicted(runs["pictures"], *file, tmp_path)[0] for file in files]
    found = [None] * len(files)

    def ask(i):
        found[i] = client.post("/predict", files={"files": files[i]}).json()["predictions"][0]

    threads = [threading.Thread(target=ask, args=[i]) for i in range(len(files))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(map(same, found, expected))


# --------------------------------------------------------------------------- refusals


def test_faulty_files_have_the_message_of_predict_and_others_are_answered(client, runs, tmp_path):
    bad, good = ("b.png", b"no picture"), content("pictures")
    (tmp_path / "b.png").write_bytes(bad[1])
    with pytest.raises(ValueError) as fault:
        ndvit.predict(runs["pictures"], tmp_path / "b.png", progress=False)
    message = str(fault.value).replace(f"{tmp_path}/", "")
    alone = client.post("/predict", files={"files": bad})
    assert (alone.status_code, alone.json()["error"]) == (422, message)
    both = client.post("/predict", files=[("files", bad), ("files", good)]).json()
    assert [one["name"] for one in both["predictions"]] == [good[0]]
    assert both["faults"] == [{"name": "b.png", "error": message}]
    infer = {
        "inputs": [{"name": "input", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(b"x").decode()]}]
    }
    assert client.post("/v2/models/pictures/infer", json=infer).status_code == 422


@pytest.mark.parametrize(
    ("model", "file", "message"),
    [
        ("signals", ("a.csv", b"path,label\n/etc/passwd,1\n"), "is a list of files"),
        ("signals", ("a.csv", b"file;label\n../0/a.csv;1\n"), "is a list of files"),
        ("signals", ("a.tsv", b"path\tlabel\n/etc/hosts\t1\n"), "is a list of files"),
        ("pictures", ("a.zip", b"PK\x03\x04"), "unknown type of file"),
        ("pictures", ("../../etc/passwd", b"root"), "is not a picture"),
        ("pictures", ("hf:owner/name", b"root"), "unknown type of file|is not a picture"),
    ],
)
def test_no_upload_names_other_files(client, model, file, message):
    answer = client.post(f"/predict?model={model}", files={"files": file})
    assert answer.status_code == 422
    assert re.search(message, answer.json()["error"])
    assert "/tmp" not in answer.text
    assert "ndvit-" not in answer.text


def test_limits_of_a_request(client):
    big = io.BytesIO()
    Image.new("RGB", (200, 100), "red").save(big, "PNG")
    answer = client.post("/predict", files={"files": ("a.png", big.getvalue())})
    assert (answer.status_code, answer.json()["error"]) == (
        413,
        "a.png has 20,000 pixels, at most 10,000 are accepted: scale it down",
    )
    assert client.post("/predict?model=signals", json={"inputs": [[0.0] * 5001]}).status_code == 413
    assert client.post("/predict?model=signals", json={"inputs": [[[0.0] * 16] * 2] * 41}).status_code == 413
    assert client.post("/predict", files=[("files", content("pictures"))] * 5).status_code == 413
    assert client.post("/predict", content=b"x" * (2**25 + 1)).status_code == 413
    assert client.post("/explain?model=signals", json={"inputs": [[[0.0] * 16] * 2] * 33}).status_code == 413


def test_a_body_longer_than_it_says_is_cut_off(runs):
    with serving(runs["signals"], max_bytes=100) as client:
        answer = client.post("/predict", content=(b"x" * 60 for _ in range(3)))  # without Content-Length
        assert answer.status_code == 413


def test_more_requests_than_accepted_get_429(runs):
    with serving(runs["signals"], requests=1) as client:
        started, go_on = threading.Event(), threading.Event()
        batcher = client.service.models["signals"].loaded.batcher
        compute = batcher.way.compute

        def slowly(x, mask):
            started.set()
            go_on.wait(5)
            return compute(x, mask)

        batcher.use(Way("slow", slowly))
        found = []
        first = threading.Thread(
            target=lambda: found.append(client.post("/predict", files={"files": content("signals")}))
        )
        first.start()
        started.wait(5)
        answer = client.post("/predict", files={"files": content("signals")})
        assert client.get("/v2/health/live").status_code == 200
        go_on.set()
        first.join()
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert found[0].status_code == 200


def test_only_a_few_numbers_are_read_without_a_thread(runs, monkeypatch):
    """Whatever may take long to read must not delay other requests."""
    real, readers = app._prepared, []

    def prepared(*arguments):
        readers.append(threading.current_thread().name.startswith("ndvit-read"))
        return real(*arguments)

    monkeypatch.setattr(app, "_prepared", prepared)
    one = [[0.1] * 16, [0.2] * 16]
    name, sent = content("signals")
    file = {"file": base64.b64encode(sent).decode(), "name": name}
    with serving(runs["signals"]) as client:
        for inputs in ([one], [one] * 8, [one] * 9, [file], [[[0.1] * 10_000] * 2]):
            client.post("/predict", json={"inputs": inputs})
    assert readers == [False, False, True, True, True]
    with serving(runs["windows"]) as client:  # which are cut, perhaps into many
        client.post("/predict", json={"inputs": [[0.1] * 50]})
    assert readers[5:] == [True]


def test_before_the_end_each_answer_closes_its_connection(runs):
    with serving(runs["signals"]) as client:
        assert "connection" not in client.get("/v2/health/live").headers
        client.service.ending = True
        found = client.post("/predict", files={"files": content("signals")})
        assert (found.status_code, found.headers["connection"]) == (200, "close")


def test_time_limit(runs):
    with serving(runs["signals"], timeout=0.2) as client:
        batcher = client.service.models["signals"].loaded.batcher
        compute, go_on = batcher.way.compute, threading.Event()
        batcher.use(Way("slow", lambda x, mask: (go_on.wait(5), compute(x, mask))[1]))
        answer = client.post("/predict", files={"files": content("signals")})
        go_on.set()
        assert (answer.status_code, answer.json()["error"]) == (503, "the answer took longer than 0.2 s")


def test_token_hosts_and_origins(runs):
    with serving(runs["signals"], token="secret", cors=("https://lab.example",)) as client:
        assert client.get("/models").status_code == 401
        assert client.get("/models", headers={"authorization": "Bearer other"}).status_code == 401
        assert client.get("/models", headers={"authorization": "Bearer secret"}).status_code == 200
        assert client.get("/").status_code == client.get("/v2/health/ready").status_code == 200
        assert client.get("/", headers={"host": "evil.example"}).status_code == 421
        known = {"authorization": "Bearer secret"}
        evil = client.post("/predict", headers={**known, "origin": "https://evil.example"})
        assert evil.status_code == 403
        assert "access-control-allow-origin" not in evil.headers
        lab = client.post("/predict", json={}, headers={**known, "origin": "https://lab.example"})
        assert (lab.status_code, lab.headers["access-control-allow-origin"]) == (422, "https://lab.example")


# --------------------------------------------------------------------------- models


def test_models_load_when_they_are_asked_for(runs):
    with serving(runs["signals"], f"other={runs['pictures']}") as client:
        assert [(one["name"], one["state"]) for one in client.get("/models").json()] == [
            ("signals", "ready"),
            ("other", "unloaded"),
        ]
        assert client.get("/v2/models/other").json()["inputs"][0]["datatype"] == "UINT8"
        assert client.get("/models").json()[1]["outputs"] == ["cat", "dog", "fox"]
        assert client.get("/v2/models/nobody").status_code == 404
        assert client.get("/v2/models/other/versions/2").status_code == 404


def test_a_new_model_replaces_the_old_one_and_a_damaged_one_does_not(tmp_path):
    run, file = save_served("signals", tmp_path / "run"), content("signals")

    def reload(client):
        return client.portal.call(client.service.models["run"].reload)

    with serving(run) as client:
        old = client.post("/predict", files={"files": file}).json()
        assert not reload(client)
        (run / "model.safetensors").write_bytes(b"damaged")
        assert not reload(client)
        assert client.post("/predict", files={"files": file}).json() == old
        save_served("signals", run, seed=1)
        expected = predicted(run, *file, tmp_path)
        assert reload(client)
        new = client.post("/predict", files={"files": file}).json()
        assert (old["version"], new["version"]) == ("1", "2")
        assert same(new["predictions"], expected)
        assert not same(new["predictions"], old["predictions"])


def test_old_models_do_not_stay_in_memory(tmp_path):
    """What was left out of garbage collections is looked at again after a reload."""
    run = save_served("signals", tmp_path / "run")
    with serving(run) as client:
        model = client.service.models["run"]
        old = model.loaded
        old.search = Search(old.model, str(run), old.batcher.way, 2, old.use_way)  # which refers to it
        found = weakref.ref(old)
        gc.freeze()
        del old
        save_served("signals", run, seed=1)
        assert client.portal.call(model.reload)
        client.post("/predict", files={"files": content("signals")})
        for _ in range(100):
            if found() is None:
                break
            time.sleep(0.05)
        assert found() is None


def test_a_model_that_cannot_be_loaded_does_not_name_its_path(runs, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "model.safetensors").write_bytes(b"damaged")
    with serving(runs["signals"], tmp_path / "bad") as client:
        answer = client.post("/predict?model=bad", files={"files": content("signals")})
        assert answer.status_code == 503
        assert str(tmp_path) not in answer.text
        assert client.get("/v2/models/bad/ready").status_code == 503


def test_names_of_models():
    assert named_runs(["runs/mine", "b=runs/mine/model.safetensors"]) == {
        "mine": "runs/mine",
        "b": "runs/mine/model.safetensors",
    }
    with pytest.raises(ValueError, match="two models are called mine"):
        named_runs(["runs/mine", "other/mine"])
    with pytest.raises(ValueError, match="is no name of a model"):
        named_runs(["a b=runs/mine"])


def test_explanations_name_an_output_and_have_what_a_page_draws(client):
    answer = client.post("/explain?target=fox", files={"files": content("pictures")})
    schemas.Explanations.model_validate(answer.json())
    one = answer.json()["explanations"][0]
    assert (one["label"], np.shape(one["relevance"])) == ("fox", (12, 10))
    assert one["view"]["src"].startswith("data:image/png;base64,")
    one = client.post("/explain?model=windows", files={"files": content("windows")}).json()["explanations"][0]
    assert np.shape(one["relevance"]) == np.shape(one["example"]["values"]) == (1, 50)
    assert client.post("/explain?target=cow", files={"files": content("pictures")}).status_code == 422


# --------------------------------------------------------------------------- operation


def test_logs_and_counters_have_no_content_of_requests(client, caplog):
    with caplog.at_level(logging.DEBUG):
        client.post("/predict", files={"files": ("my-patient.png", content("pictures")[1])})
        client.post("/predict", files={"files": ("my-patient.png", b"secret")})
        client.get("/my-patient")
    counters = client.get("/metrics").text
    assert 'ndvit_requests_total{route="/predict",status="200"}' in counters
    assert 'ndvit_batch_examples_bucket{le="1.0",model="pictures"}' in counters
    assert "my-patient" not in counters + "".join(
        str(vars(record)) for record in caplog.records if record.name == "ndvit.serving"
    )


def test_the_documentation_describes_the_bodies_and_requests_nothing_elsewhere(client):
    openapi = client.get("/openapi.json").json()
    assert set(openapi["paths"]["/predict"]["post"]["requestBody"]["content"]) == {
        "multipart/form-data",
        "application/json",
        "application/octet-stream",
    }
    assert {"Answers", "EncodedFile", "Tensor", "Problem"} <= openapi["components"]["schemas"].keys()
    for path in ("/", "/docs"):
        page = client.get(path)
        assert "https://" not in page.text
        assert "default-src 'none'" in page.headers["content-security-policy"]
    assert client.get("/static/../page.py").status_code == client.get("/static/%2e%2e/__init__.py").status_code == 404


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_odd_requests_are_refused_with_a_message(client):
    for path, headers, body in serve_fuzz.requests(250, list(TASKS), seed=1):
        headers = {name: value.encode("latin-1") for name, value in headers.items()}
        answer = client.post(path, content=body, headers=headers)
        assert answer.status_code in (200, 400, 404, 413, 422), (path, headers, body[:300], answer.text)
        assert "Traceback" not in answer.text
        assert "/tmp" not in answer.text
