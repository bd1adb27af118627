"""Answers for files, a JSON line each: `python predict.py FILE ...`; `python predict.py --self-test` checks itself."""

import csv
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


def check(fits, fault):
    if not fits:
        raise ValueError(fault)


def read_picture(path):  # (height, width, 3) uint8
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I"):  # grey of more than 8 bits
        low, high = INPUT["levels"]
        image = Image.fromarray(np.round((np.asarray(image) - low) * 255 / (high - low)).clip(0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def read_wav(path):
    with wave.open(str(path)) as file:
        channels, width, rate, count = file.getparams()[:4]
        body = np.frombuffer(file.readframes(count), np.uint8).reshape(-1, width) ^ (0x80 if width == 1 else 0)
    values = np.pad(body, ((0, 0), (4 - width, 0))).view("<i4") / 2**31  # of 1 to 4 bytes, as the upper ones of 4
    return values.reshape(-1, channels).T, rate


def number(field):  # words that pandas takes as missing, too; any other text is an error
    return float("nan" if field.lower() in ("", "na", "n/a", "null", "none", "?") else field)


def read_table(path):  # a column is a channel, a row a moment; for one channel, rows of several numbers are examples
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = [[field.strip() for field in row] for row in csv.reader(file) if row]
    names, wanted = [], INPUT["channel_names"]
    try:
        [number(field) for field in rows[0]]
    except ValueError:
        names, rows = rows[0], rows[1:]
    x = np.array([[number(field) for field in row] for row in rows])
    check(x.ndim == 2, "has rows of different lengths or none")
    times = [i for i, name in enumerate(names) if name.lower().startswith("time") or name.lower() == "t"]
    for t in x[:, times].T if INPUT["rate"] and len(x) > 1 else []:
        step = (t[-1] - t[0]) / (len(t) - 1)
        even = np.abs(t - t[0] - step * np.arange(len(t))).max() <= step / 4
        fault = f"has times {step:.6g} s apart, expected {1 / INPUT['rate']:.6g} s everywhere: resample the recording"
        check(even and 0.99 < step * INPUT["rate"] < 1.01, fault)
    columns = [i for i in range(x.shape[1]) if i not in times]
    fault = f"has the columns {', '.join(names[:9])}, expected {', '.join(wanted) or INPUT['channels']}"
    if names and wanted:  # in any order and among others
        check(all(names.count(name) == 1 for name in wanted), fault)
        columns = [names.index(name) for name in wanted]
    x = x[:, columns]
    if INPUT["many"] and not (names and wanted) and (x.shape[1] > 1 or len(x) == 1):
        check(all(names[i][-1:].isdecimal() for i in columns if names), fault)
        return [row[None] for row in x]
    plain = len(columns) == INPUT["channels"] and not INPUT["chosen"]
    check(not names or wanted or INPUT["mixed"] or plain, fault)
    return [x.T]


def read(path):  # the examples of a file, and their sample rate (Hz) if the file has one
    kind, axes = path.suffix.lower(), INPUT.get("axes")
    if INPUT["kind"] == "picture" and kind != ".npy":
        return [read_picture(path)], None
    if kind == ".csv" and axes == 1:
        return read_table(path), None
    if kind == ".wav" and axes == 1:
        x, rate = read_wav(path)
        return [x], rate
    check(kind == ".npy", f"expected a {'.npy, .csv or .wav' if axes == 1 else '.npy'} file")
    x = np.load(path)
    if INPUT["kind"] == "picture":
        return [x], None
    check(x.dtype.kind in "biuf", f"has values of the type {x.dtype}, expected numbers")
    check(0 <= x.ndim - axes <= 2, f"has the shape {x.shape}, expected (channels, {'..., ' * (axes > 1)}time)")
    if x.ndim == axes:
        return [x[None]], None
    if x.ndim == axes + 1:
        return [row[None] for row in x] if INPUT["many"] else [x], None
    return list(x), None


def chosen(x):  # the channels that the model reads, of those of a file
    if INPUT["kind"] == "picture":
        return x
    x = np.asarray(x[INPUT["chosen"]] if INPUT["chosen"] else x, np.float32)
    return np.nanmean(x, 0, keepdims=True) if INPUT["mixed"] and len(x) > 1 else x


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
    check(len(x) == INPUT["channels"], f"has {len(x)} channels, expected {INPUT['channels']}")
    check(INPUT["rate"] or not rate, "is a recording, and the model knows no sample rate")
    ratio = Fraction(INPUT["rate"] or 1) / Fraction(rate or INPUT["rate"] or 1)
    check(not np.isinf(x).any() and (ratio == 1 or np.isfinite(x).all()), "has infinite or missing samples")
    parts = windows(np.asarray(x, np.float32), rate or INPUT["rate"])
    seen = all(not np.isnan(part[INPUT["used"]]).all() for part in parts)
    check(seen, "has no observed values in a window")
    most = INPUT["longest"] or [np.inf]
    fits = all(n * ratio <= 2 * limit for n, limit in zip(parts[0].shape[1:], most))
    check(fits, f"has {parts[0].shape[1:]} samples, more than twice as many as {most}")
    rates = {"ratio": np.array(ratio.limit_denominator(100_000).as_integer_ratio())} if INPUT["rate"] else {}
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


def main(names):
    status = 0
    for name in names:
        try:
            examples, rate = read(Path(name))
            for i, x in enumerate(examples):
                found = described(answer(chosen(x), rate))
                print(json.dumps({"name": f"{name}[{i}]" if len(examples) > 1 else name} | found))
        except Exception as error:  # the other files are answered
            status = 2
            print(json.dumps({"name": name, "error": str(error)}))
    return status


if __name__ == "__main__":
    if "--self-test" in sys.argv:
        print(json.dumps(result := self_test()))
        sys.exit(result["self-test"] != "passed")
    sys.exit(main(sys.argv[1:]))
