"""From data, a name and a recipe to a trained model: one network, or an ensemble of them."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ndvit import __version__
from ndvit.config import ViTConfig
from ndvit.config.recipe import Recipe
from ndvit.data.augment.pictures import Variation
from ndvit.data.examples import Source
from ndvit.data.loading import Inputs
from ndvit.data.preprocess.base import Preprocess, preprocess_from_dict
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.files import replace_file
from ndvit.network import VisionTransformer
from ndvit.network.committee import Ensemble, Model
from ndvit.training.adapters import check_adapters, learning_in_words
from ndvit.training.distillation import Teacher, make_teacher
from ndvit.training.fit import FitResult, check_same_run, fit, result_of
from ndvit.training.plan import plan_fine_tuning, plan_model, with_validation
from ndvit.weights.file import MODEL_FILE, Described, save_model
from ndvit.weights.load_report import LoadReport
from ndvit.weights.loading import build_model, load_model
from ndvit.weights.opening import open_weights

_NETWORK_FILE = "checkpoints/network.json"
_VARIED = ("crop", "crop_prob", "flip", "policy", "operations", "magnitude", "jitter")  # fields of both
Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Learned:
    """What was learned.

    Attributes:
        model: a network, or an ensemble for more than one member; on the CPU in eval mode, with `classes`, `preprocess`
            and `provenance`. Of an interrupted training it has the members that were begun.
        fits: steps, seconds and history of each member.
        facts: the model, its input, the data and the steps in words.
        data: the data, with the validation set that may have been held out.
    """

    model: Model
    fits: list[FitResult]
    facts: dict[str, str]
    data: Source

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended it."""
        return any(result.interrupted for result in self.fits)

    @property
    def fit(self) -> FitResult:
        """All fits as one: the steps of the longest, seconds in all, each row of the history the mean over members."""
        rows: dict[int, list[dict[str, float]]] = {}
        for result in self.fits:
            for row in result.history:
                rows.setdefault(int(row["step"]), []).append(row)
        return FitResult(
            steps=max(result.steps for result in self.fits),
            interrupted=self.interrupted,
            seconds=sum(result.seconds for result in self.fits),
            history=[_mean(rows[step]) for step in sorted(rows)],
            device=self.fits[-1].device,
            note=next((result.note for result in reversed(self.fits) if result.note), None),
        )


@dataclass(frozen=True, eq=False)
class Adapted:
    """What trained weights were adapted to: a run that is resumed has the weights in its checkpoint."""

    config: ViTConfig
    preprocess: Preprocess
    licence: str | None
    report: LoadReport

    def write(self, folder: Path) -> None:
        """Leave it in a run folder."""
        known = {
            "config": self.config.to_dict(),
            "preprocess": self.preprocess.to_dict(),
            "licence": self.licence,
            "report": asdict(self.report),
        }
        (folder / _NETWORK_FILE).parent.mkdir(exist_ok=True)
        replace_file(folder / _NETWORK_FILE, json.dumps(known, indent=1))

    def network(self) -> VisionTransformer:
        """A network that is like the one with the weights, without them."""
        network = VisionTransformer(self.config)
        network.load_report, network.provenance = self.report, {"licence": self.licence}
        return network

    @classmethod
    def read(cls, folder: Path) -> "Adapted | None":
        """What `write` left in a run folder, or None."""
        if not (folder / _NETWORK_FILE).is_file():
            return None
        facts = json.loads((folder / _NETWORK_FILE).read_text(encoding="utf-8"))
        return cls(
            ViTConfig.from_dict(facts["config"]),
            preprocess_from_dict(facts["preprocess"]),
            facts["licence"],
            LoadReport.from_json(facts["report"]),
        )


def learn(
    data: Source,
    recipe: Recipe,
    overrides: Mapping[str, Any],
    *,
    model: str | None,
    weights: Described | None = None,
    members: int = 1,
    teacher: Any = None,
    folder: Path | None = None,
    resume: bool = False,
    progress: bool = True,
    say: Say = print,
) -> Learned:
    """Train a model on data.

    Args:
        data: training examples, and maybe validation examples; where the recipe wants some and there are none, they are
            held out of the training examples.
        recipe: how. Member i of an ensemble has i added to the seed: other initial weights, order and augmentation.
        overrides: fields of `ViTConfig`.
        model: a name that `create_model` knows; None with weights.
        weights: opened weights to begin with.
        members: networks in the ensemble; 1 is a network alone.
        teacher: whom the networks learn from beside the labels, as `make_teacher` takes it.
        folder: where checkpoints and metrics are written; None writes nothing.
        resume: go on from what is in the folder.
        progress: show progress bars.
        say: what is done with each line that tells what happens.

    Raises:
        ValueError: for options or data that cannot work, or a checkpoint that is damaged or of another run.
    """
    prepared = prepare(data, recipe, overrides, model=model, weights=weights, members=members, teacher=teacher, say=say)
    return prepared.learn(folder, resume=resume, progress=progress, say=say)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A training that can begin: `learn` is its second half.

    Attributes:
        data, recipe, facts: as `Learned` has them.
        inputs: training and validation examples, preprocessed once for all members.
        make: makes a network, from trained weights where there are some.
        first: the first member.
        members: how many there will be.
        teacher: whom they learn from.
        provenance: what each of them tells of its training.
        adapted: what trained weights were adapted to; None where there are none, or where a folder has it already.
    """

    data: Source
    recipe: Recipe
    facts: dict[str, str]
    inputs: tuple[Inputs, Inputs | None]
    make: Callable[[], VisionTransformer]
    first: VisionTransformer
    members: int
    teacher: Teacher | None
    provenance: dict[str, Any]
    adapted: Adapted | None

    def learn(
        self, folder: Path | None = None, *, resume: bool = False, progress: bool = True, say: Say = print
    ) -> Learned:
        """Train every member; arguments, result and errors as those of the function `learn`.

        In the folder of an ensemble, each member has a run folder of its own, `members/0` and so on: a member that has
        its model there is finished, and not trained again.
        """
        if folder is not None and self.adapted is not None and not resume:
            self.adapted.write(folder)
        networks: list[VisionTransformer] = []
        fits: list[FitResult] = []
        for i in range(self.members):
            if self.members > 1:
                say(f"member {i + 1} of {self.members}")
            home = folder if folder is None or self.members == 1 else folder / "members" / str(i)
            network, result = self._member(i, home, resume, progress)
            networks.append(network.cpu().eval())
            fits.append(result)
            if result.interrupted:
                break
        model: Model = networks[0]
        if self.members > 1:
            model = Ensemble(networks)
            model.provenance = self.provenance | {"members": len(networks), "steps": fits[0].steps}
            model.load_report = self.first.load_report
        learned = Learned(model, fits, self.facts, self.data)
        if note := learned.fit.note:  # once, not of each member
            say(note)
        return learned

    def _member(self, i: int, home: Path | None, resume: bool, progress: bool) -> tuple[VisionTransformer, FitResult]:
        """Train one member, or take it from its folder if it is finished."""
        recipe = replace(self.recipe, seed=self.recipe.seed + i)
        train, val = self.inputs
        alone = self.members == 1  # whose run folder's model is the run's, and written last
        if resume and not alone and home is not None and (home / MODEL_FILE).is_file():
            network = load_model(home / MODEL_FILE)
            assert isinstance(network, VisionTransformer)
            check_same_run(network, train, recipe, home)
            return network, result_of(home, network.provenance["steps"])
        network = self.first if i == 0 else _network(self.make, recipe, self.data, train.preprocess)
        network.provenance = dict(self.provenance) if alone else self.provenance | {"member": i}
        if home is not None:
            home.mkdir(parents=True, exist_ok=True)
        result = fit(network, train, val, recipe, home, resume=resume, progress=progress, teacher=self.teacher)
        network.provenance["steps"] = result.steps
        network.untrained = ()
        if home is not None and not alone and not result.interrupted:
            save_model(network.eval(), home / MODEL_FILE)
        return network, result


def prepare(
    data: Source,
    recipe: Recipe,
    overrides: Mapping[str, Any],
    *,
    model: str | None,
    weights: Described | Adapted | None = None,
    members: int = 1,
    teacher: Any = None,
    told: Mapping[str, Any] | None = None,
    say: Say = print,
) -> Prepared:
    """The first half of `learn`: all that can be refused, before anything is written.

    With `told`, facts that the provenance of the model shall have, too; and weights may be those of a run's checkpoint.
    """
    if not isinstance(members, int) or isinstance(members, bool) or members < 1:
        raise ValueError(f"members must be a whole number of at least 1, got {members!r}")
    data = with_validation(data, recipe)
    preprocess, make = _plan(data, recipe, overrides, model, weights)
    first = _network(make, recipe, data, preprocess)
    check_adapters(recipe, first.config.depth, taught=teacher is not None)
    if recipe.batch_size == 1 and first.config.head_norm == "batch":
        raise ValueError("batch_size is 1, but BatchNorm before the head needs 2 at least: or set head_norm='none'")
    report = first.load_report
    name = model or source_name(report.source)
    provenance: dict[str, Any] = {**(told or {}), "model": name, "seed": recipe.seed, "ndvit": __version__}
    adapted = None
    if report is not None:
        say(str(report))
        licence = first.provenance.get("licence")  # of the weights, which the trained model inherits
        provenance |= {"weights": report.source, "adapted": report.to_dict()["adapted"]}
        provenance |= {"licence": licence} if licence else {}
        if isinstance(weights, Described):
            adapted = Adapted(first.config, preprocess, licence, report)
    facts = _facts(data, recipe, first, name, members)
    for line in (*data.notes, "; ".join(f"{k}: {v}" for k, v in facts.items())):
        say(line)
    vary = _variation(preprocess, recipe)
    inputs = Inputs(data.train, preprocess, vary), None if data.val is None else Inputs(data.val, preprocess)
    taught = None if teacher is None else make_teacher(teacher, first, inputs[0], recipe)
    return Prepared(data, recipe, facts, inputs, make, first, members, taught, provenance, adapted)


def open_to_train(source: str | Path, overrides: Mapping[str, Any]) -> Described:
    """Open weights as `open_weights` does, and refuse those of an ensemble."""
    weights = open_weights(source, overrides)
    _refuse_ensemble(weights)
    return weights


def _refuse_ensemble(weights: Described) -> None:
    if members := weights.members:
        raise ValueError(
            f"{weights.source} is an ensemble of {len(members)} networks, and training begins with one: give one of "
            "its run's members/0, members/1, ... or write one to a file with `ndvit convert --to ndvit --member 0`"
        )


def source_name(source: Any) -> str:
    """A short name for a source of data or of weights, fit for a folder."""
    if not isinstance(source, str | Path):
        return "arrays"
    text = str(source)
    if not Path(text).exists() and text.startswith(("ucr:", "hf:")):
        return text.partition(":")[2].partition("?")[0].replace("/", "-").lower()
    path = Path(text).resolve()
    name = path.stem if path.suffix and (path.exists() or "/" in text) else path.name
    return name.removesuffix("_TRAIN").lower() or "data"


def _variation(preprocess: Preprocess, recipe: Recipe) -> Variation | None:
    """How training examples vary when they are read; None for what is not a picture, which varies batch by batch."""
    asked = {name for name in ("policy", "jitter") if getattr(recipe, name) != getattr(Recipe, name)}
    if isinstance(preprocess, ImagePreprocess):
        return Variation(preprocess, **{name: getattr(recipe, name) for name in _VARIED})
    if asked:
        what = " and ".join(sorted(asked))
        raise ValueError(f"{what}: for pictures of 8 bits only, and these examples are arrays of values: leave it out")
    return None


def _plan(
    data: Source,
    recipe: Recipe,
    overrides: Mapping[str, Any],
    model: str | None,
    weights: Described | Adapted | None,
) -> tuple[Preprocess, Callable[[], VisionTransformer]]:
    """What fits the data: a preprocessing, and what makes a network, new or with trained weights."""
    if weights is None:
        assert model is not None
        preprocess, config = plan_model(data, model, recipe, overrides)
        return preprocess, lambda: VisionTransformer(config)
    if isinstance(weights, Adapted):
        return weights.preprocess, weights.network
    _refuse_ensemble(weights)
    preprocess, fitting = plan_fine_tuning(data, weights, recipe, overrides)
    return preprocess, lambda: build_model(weights, classes=data.classes, overrides=fitting, new_head=True)


def _network(
    make: Callable[[], VisionTransformer], recipe: Recipe, data: Source, preprocess: Preprocess
) -> VisionTransformer:
    torch.manual_seed(recipe.seed)
    network = make()
    network.classes, network.preprocess = data.classes, preprocess
    if recipe.loss == "sigmoid":
        for name, parameter in network.named_parameters():
            new = network.load_report is None or name in network.untrained
            if new and name in ("head.bias", "head_dist.bias", "stem_head.bias"):
                torch.nn.init.constant_(parameter, -math.log(len(data.classes)))
    return network


def _facts(data: Source, recipe: Recipe, network: VisionTransformer, name: str, members: int) -> dict[str, str]:
    """What will be trained on what, in words."""
    config, report = network.config, network.load_report
    peak = recipe.peak_learning_rate(config.embed_dim, pretrained=report is not None)
    parameters = f"{sum(p.numel() for p in network.parameters()):,} parameters"
    facts = {"model": f"{name}, {parameters}" if members == 1 else f"{members} members of {name}, each {parameters}"}
    facts |= {} if report is None else {"weights": _in_short(report)}
    learning = learning_in_words(network, recipe)
    facts |= {} if learning is None else {"learning": learning}
    return facts | {
        "input": f"{config.in_channels} x {_by(config.input_size)}, in patches of {_by(config.patch_size)}",
        "examples": f"{len(data.train):,} training, {len(data.val or ()):,} validation, {len(data.test):,} test",
        "classes": f"{len(data.classes)}",
        "steps": "none: the head is solved over the features of the network as it is"
        if recipe.head == "solved"
        else f"{recipe.total_steps(len(data.train)):,} of {recipe.batch_size * recipe.accumulate} examples, "
        f"peak learning rate {peak:.2g}",
    }


def _in_short(report: LoadReport) -> str:
    counts = {"adapted": len(report.adapted), "new": len(report.new), "ignored": len(report.ignored)}
    rest = "".join(f", {count} {what}" for what, count in counts.items() if count)
    return f"{report.source} ({report.kind} layout): {len(report.loaded)} tensors unchanged{rest}"


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    """Rows of one step as one, of what all of them have."""
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: rows[0][name] if name == "step" else sum(row[name] for row in rows) / len(rows) for name in names}
