"""Answers for files, a JSON line each: `python predict.py FILE ...`; `python predict.py --self-test` checks itself."""

import json
import sys
import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnxruntime

HERE = Path(__file__).resolve().parent
MODEL = json.loads((HERE / "model.json").read_text("utf-8"))
INPUT, NAMES = MODEL["input"], MODEL["outputs"]
SESSION = onnxruntime.InferenceSession(str(HERE / "model.onnx"), providers=["CPUExecutionProvider"])


def read_wav(path):
    with wave.open(str(path)) as file:
        channels, width, rate, count = file.getparams()[:4]
        body = np.frombuffer(file.readframes(count), np.uint8).reshape(-1, width) ^ (0x80 if width == 1 else 0)
    values = np.pad(body, ((0, 0), (4 - width, 0))).view("<i4") / 2**31  # of 1 to 4 bytes, as the upper ones of 4
    return values.reshape(-1, channels).T, rate


def read_picture(path):  # (height, width, 3) uint8
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I"):  # grey of more than 8 bits
        low, high = INPUT["levels"]
        image = Image.fromarray(np.round((np.asarray(image) - low) * 255 / (high - low)).clip(0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def read_table(path):  # a column is a channel, a row a moment; for one channel, rows without names are examples
    x, names = np.genfromtxt(path, delimiter=",", ndmin=2), []
    if np.isnan(x[0]).all():
        with open(path, encoding="utf-8-sig") as file:
            names, x = [name.strip(' "\n') for name in file.readline().split(",")], x[1:]
        times = [i for i, name in enumerate(names) if name.lower().startswith("time")]
        rates = [(len(x) - 1) / (x[-1, i] - x[0, i]) for i in times if len(x) > 1]
        if INPUT["rate"] and any(not 0.99 < rate / INPUT["rate"] < 1.01 for rate in rates):
            raise ValueError(f"has times of {rates[0]:.6g} samples a second, expected {INPUT['rate']:.6g}")
        x, names = np.delete(x, times, 1), [name for i, name in enumerate(names) if i not in times]
    many = INPUT["many"] and (x.shape[1] > 1 or len(x) == 1)
    fits = len(names) == INPUT["channels"] or INPUT["chosen"] or INPUT["mixed"]
    if names and not fits and not (many and all(name[-1:].isdecimal() for name in names)):
        raise ValueError(f"has the columns {', '.join(names[:9])}, expected {INPUT['channels']}: remove the others")
    return x if many and len(names) != INPUT["channels"] else x.T


def read(path):  # the examples of a file, and their sample rate (Hz) if the file has one
    kind, rate = path.suffix.lower(), None
    if INPUT["kind"] == "picture":
        return [np.load(path) if kind == ".npy" else read_picture(path)], rate
    if kind == ".csv":
        x = read_table(path)
    elif kind == ".wav":
        x, rate = read_wav(path)
    else:
        x = np.load(path)
    if rate is None and x.ndim == INPUT["axes"] + 1 and INPUT["many"]:
        x = x[:, None]
    x = x.reshape(-1, *x.shape[-INPUT["axes"] - 1 :]) if x.ndim > INPUT["axes"] else x[None]
    return (list(x) if x.ndim == INPUT["axes"] + 2 else [x]), rate


def windows(x, rate):  # a recording is cut as `ndvit predict` cuts it, and its answer is the mean of theirs
    length, units = x.shape[-1], {"samples": 1, "seconds": rate, "share": x.shape[-1]}
    if INPUT["window"] is None:
        return [x]
    size = min(length, max(1, round(INPUT["window"][0] * units[INPUT["window"][1]])))
    value, unit = INPUT["hop"] or (1, "share")
    hop = max(1, round(value * (units | {"share": size})[unit]))
    last = [length - size] * ((length - size) % hop > 0 and hop <= size)
    return [x[..., start : start + size] for start in [*range(0, length - size + 1, hop), *last]]


def answer(x, rate=None):  # the outputs of an example, in the order of their names
    if INPUT["kind"] == "picture":
        return SESSION.run(None, {"raw": x})[0][0]
    x = np.asarray(x[INPUT["chosen"]] if len(x) > INPUT["channels"] and INPUT["chosen"] else x, np.float32)
    x = np.nanmean(x, 0, keepdims=True) if INPUT["mixed"] and len(x) > 1 else x
    ratio = Fraction(INPUT["rate"] or 1) / Fraction(rate or INPUT["rate"] or 1)
    rates = {"ratio": np.array(ratio.limit_denominator(100_000).as_integer_ratio())} if INPUT["rate"] else {}
    parts = windows(x, rate or INPUT["rate"])
    long = INPUT["longest"] and any(n * ratio > 2 * most for n, most in zip(parts[0].shape[1:], INPUT["longest"]))
    for fault, text in (
        (len(x) != INPUT["channels"], f"has {len(x)} channels, expected {INPUT['channels']}"),
        (rate and not INPUT["rate"], "is a recording, and the model knows no sample rate"),
        ((ratio != 1 and not np.isfinite(x).all()) or np.isinf(x).any(), "has infinite or missing samples"),
        (any(np.isnan(part[INPUT["used"]]).all() for part in parts), "has no observed values in a window"),
        (long, f"has {parts[0].shape[1:]} samples, more than twice as many as {INPUT['longest']}"),
    ):
        if fault:
            raise ValueError(text)
    return np.mean([SESSION.run(None, {"raw": part} | rates)[0][0] for part in parts], axis=0, dtype=np.float64)


def described(values):  # as `ndvit predict --format json`
    by_name = dict(zip(NAMES, map(float, values)))
    if MODEL["task"] == "classification":
        return {"class": max(by_name, key=by_name.get), "probabilities": by_name}
    if MODEL["task"] == "multilabel":
        labels = [name for name, least in zip(NAMES, MODEL["thresholds"]) if by_name[name] >= least]
        return {"labels": labels, "probabilities": by_name}
    bounds = np.reshape(values[len(NAMES) :], (2, -1)).T.tolist()  # the intervals follow the numbers
    return {"values": by_name} | ({"intervals": dict(zip(NAMES, bounds))} if bounds else {})


def self_test():
    test, worst = json.loads((HERE / "self-test" / "expected.json").read_text("utf-8")), 0.0
    for name, expected in test["answers"].items():
        examples, rate = read(HERE / "self-test" / name)
        worst = max(worst, np.max(np.abs(answer(examples[0], rate) - expected) / test["tolerance"]))
    return {"self-test": "passed" if worst <= 1 else "failed", "difference": worst, "of": "what is allowed"}


if __name__ == "__main__":
    if "--self-test" in sys.argv:
        print(json.dumps(result := self_test()))
        sys.exit(result["self-test"] != "passed")
    status = 0
    for name in sys.argv[1:]:
        try:
            examples, rate = read(Path(name))
            for i, x in enumerate(examples):
                print(json.dumps({"name": f"{name}[{i}]" if len(examples) > 1 else name} | described(answer(x, rate))))
        except Exception as error:  # the other files are answered
            status = 2
            print(json.dumps({"name": name, "error": str(error)}))
    sys.exit(status)
