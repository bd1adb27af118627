"""Fine-tuning with timm and transformers: their factories and defaults, combined as in their training scripts."""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from image_work import Fitted, Work


class Pictures:
    """A PyTorch data set of image files, with a transform that timm's loader sets."""

    def __init__(self, files: list[tuple[str, int]], transform: Callable[[Any], Any] | None = None) -> None:
        self.files = files
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        from PIL import Image

        path, label = self.files[i]
        with Image.open(path) as image:
            picture: Any = image.convert("RGB")
        return (picture if self.transform is None else self.transform(picture)), label


# Defaults of timm's train.py (huggingface/pytorch-image-models, commit 2aabaef): --opt sgd, --momentum .9,
# --weight-decay 2e-5, --lr-base .1 with --lr-base-size 256, linear for SGD, --sched cosine after each epoch,
# --warmup-epochs 5 from --warmup-lr 1e-5, --min-lr 0, --scale .08 1, --ratio 3/4 4/3, --hflip .5, --color-jitter .4,
# --aa None, --reprob 0, --smoothing .1, --train-interpolation random, no mixup, no clipping, no moving average.
# train.py would also validate after each epoch and keep the best weights. Here the last weights are tested, so that
# nothing depends on the test images.
def fit_timm(
    work: Work,
    *,
    opt: str = "sgd",
    lr: float | None = None,
    weight_decay: float = 2e-5,
    layer_decay: float | None = None,
    reprob: float = 0.0,
    sched_on_updates: bool = False,
) -> Fitted:
    """Train with timm's factories, combined as in its train.py; arguments have the same names as there."""
    import ndvit._torchvision  # noqa: F401

    # isort: split
    import timm
    import torch
    from timm.data import create_loader, resolve_data_config
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import random_seed

    random_seed(work.seed, 0)
    device = torch.device(work.device)
    # as --pretrained-path: a new head, independent of the classes of the weights
    described = json.loads((Path(work.weights or "") / "config.json").read_text(encoding="utf-8"))
    heads = ("head", "head_dist") if "distilled" in described["architecture"] else "head"
    adapted = {"num_classes": -1, "classifier": heads}
    model = timm.create_model(
        f"local-dir:{work.weights}",
        pretrained=True,
        num_classes=work.classes,
        img_size=work.size,
        pretrained_cfg_overlay=adapted,
    ).to(device)
    seen = resolve_data_config({"input_size": (3, *work.size)}, model=model)
    common = {
        "input_size": seen["input_size"],
        "batch_size": work.batch,
        "mean": seen["mean"],
        "std": seen["std"],
        "num_workers": work.workers,
        "persistent_workers": bool(work.workers),
        "pin_memory": device.type == "cuda",
        "device": device,
    }
    start = time.perf_counter()
    optimizer = create_optimizer_v2(
        model,
        opt=opt,
        lr=0.1 * work.batch / 256 if lr is None else lr,
        weight_decay=weight_decay,
        momentum=0.9,
        layer_decay=layer_decay,
    )
    loader = create_loader(
        Pictures(work.train),  # type: ignore[arg-type]
        is_training=True,  # drops an incomplete last batch of an epoch
        re_prob=reprob,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        hflip=0.5,
        color_jitter=0.4,
        interpolation="random",
        **common,
    )
    if len(loader) == 0:
        raise ValueError(f"{len(work.train)} training images are fewer than a batch of {work.batch}")
    epochs = -(-work.steps // len(loader))
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=work.steps if sched_on_updates else epochs,
        warmup_epochs=max(1, work.steps // 10) if sched_on_updates else 5,
        warmup_lr=1e-5,
        step_on_epochs=not sched_on_updates,
        updates_per_epoch=1,  # then the schedule counts steps
    )
    loss_of = LabelSmoothingCrossEntropy(0.1)
    model.train()
    done = 0
    for epoch in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss_of(model(x), y).backward()
            optimizer.step()
            done += 1
            if sched_on_updates:
                scheduler.step_update(done)
            if done == work.steps:
                break
        scheduler.step(epoch + 1)
    seconds = time.perf_counter() - start

    testing = create_loader(
        Pictures(work.test),  # type: ignore[arg-type]
        is_training=False,
        interpolation=seen["interpolation"],
        crop_pct=seen["crop_pct"],
        crop_mode=seen["crop_mode"],
        **common,
    )
    model.eval()
    with torch.inference_mode():
        rows = torch.cat([model(x).softmax(1).cpu() for x, _ in testing]).tolist()
    return Fitted(rows, [], seconds, done, work.batch, work.size)


def fit_transformers(work: Work) -> Fitted:
    """Train with Trainer and the defaults of TrainingArguments, except for steps, batch size, workers and saving."""
    import importlib.util
    import inspect

    if importlib.util.find_spec("accelerate") is None:
        raise ValueError("transformers' Trainer needs accelerate, which is not installed: pip install 'ndvit[bench]'")
    import ndvit._torchvision  # noqa: F401

    # isort: split
    import torch
    from torchvision.transforms import (
        CenterCrop,
        Compose,
        Normalize,
        RandomHorizontalFlip,
        RandomResizedCrop,
        Resize,
        ToTensor,
    )
    from transformers import (
        AutoImageProcessor,
        AutoModelForImageClassification,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    assert work.weights is not None
    set_seed(work.seed)  # seed of the new head
    processor = AutoImageProcessor.from_pretrained(work.weights)
    model = AutoModelForImageClassification.from_pretrained(
        work.weights,
        id2label={i: str(i) for i in range(work.classes)},
        label2id={str(i): i for i in range(work.classes)},
        ignore_mismatched_sizes=True,
    )
    # examples/pytorch/image-classification/run_image_classification.py of huggingface/transformers
    tensor = [ToTensor(), Normalize(processor.image_mean, processor.image_std)]
    varied = Compose([RandomResizedCrop(work.size), RandomHorizontalFlip(), *tensor])
    plain = Compose([Resize(min(work.size)), CenterCrop(work.size), *tensor])
    own = model.config.image_size
    resized = work.size != (tuple(own) if isinstance(own, list | tuple) else (own, own))
    # Trainer keeps the position embeddings of the original size and interpolates them in each step.
    takes_it = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    more = {"interpolate_pos_encoding": True} if resized and takes_it else {}

    def collate(examples: list[tuple[Any, int]]) -> dict[str, Any]:
        pixels, labels = zip(*examples, strict=True)
        return {"pixel_values": torch.stack(pixels), "labels": torch.tensor(labels), **more}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=work.steps,
            per_device_train_batch_size=work.batch,
            per_device_eval_batch_size=work.batch,
            dataloader_num_workers=work.workers,
            seed=work.seed,
            use_cpu=work.device == "cpu",
            save_strategy="no",
            remove_unused_columns=False,
            report_to=[],
            disable_tqdm=True,
        )
        start = time.perf_counter()
        trainer = Trainer(
            model=model, args=arguments, train_dataset=Pictures(work.train, varied), data_collator=collate
        )
        trainer.train()
        seconds = time.perf_counter() - start
        logits = trainer.predict(Pictures(work.test, plain)).predictions  # type: ignore[arg-type]
    rows = torch.from_numpy(logits).float().softmax(1).tolist()
    return Fitted(rows, [], seconds, trainer.state.global_step, work.batch, work.size)
