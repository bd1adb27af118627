"""Five minutes to a model: signals, pictures or volumes, from arrays to predictions.

`python examples/five_minutes.py` runs the three functions below. The signals and pictures are included in aeon and
scikit-learn, the volumes are generated.
"""

import numpy as np

import ndvit


def signals() -> None:
    from aeon.datasets import load_gunpoint

    X, y = load_gunpoint(split="train")  # (50 signals, 1 channel, 150 values), and labels
    run = ndvit.train((X, y), preset="fast", output="runs/signals", force=True, progress=False)
    X_new, y_new = load_gunpoint(split="test")
    model = ndvit.load_model("runs/signals")
    print(model.predict(X_new[:1])[0].text(), "  true:", y_new[0])
    print(f"accuracy on {len(X_new)} new signals: {model.evaluate((X_new, y_new)).accuracy:.1%}")
    print("report:", run.report)


def pictures() -> None:
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    X = X.reshape(-1, 1, 8, 8)  # (1797 pictures, 1 channel, height, width)
    run = ndvit.train((X, y), steps=150, output="runs/pictures", force=True, progress=False)
    print(f"accuracy on the {len(run.evaluation)} pictures held out: {run.evaluation.accuracy:.1%}")
    print(run.model.predict(X[:1])[0].text())


def volumes() -> None:
    rng = np.random.default_rng(0)
    y = np.array(["ball", "empty"] * 60)
    X = rng.normal(size=(120, 1, 12, 12, 12))  # (120 volumes, 1 channel, depth, height, width)
    X[::2, :, 4:8, 4:8, 4:8] += 1.5
    run = ndvit.train(
        (X, y), model="vit_pico", patch_size=4, steps=60, output="runs/volumes", force=True, progress=False
    )
    print(f"accuracy on the {len(run.evaluation)} volumes held out: {run.evaluation.accuracy:.1%}")


if __name__ == "__main__":
    signals()
    pictures()
    volumes()
