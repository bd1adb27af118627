"""What requests and answers look like: these classes make the documentation at /docs."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


def _example(**values: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [values]}, extra="forbid")


class EncodedFile(BaseModel):
    """A file inside JSON."""

    model_config = _example(file="iVBORw0KGgo...", name="a.png")
    file: str = Field(description="Content in base64.")
    name: str = Field("", description="Name of the file; its ending tells the kind of file.")


class ArrayInputs(BaseModel):
    """Examples as arrays of numbers, or as files."""

    model_config = _example(inputs=[[0.1, -0.4, None, 0.9]])
    inputs: list[list[Any]] | list[EncodedFile] = Field(
        description="One array for each example: (time,), (channels, time, ...); null is a missing value. Or files."
    )


class ClassAnswer(BaseModel):
    """The answer of a classifier."""

    model_config = _example(name="a.png", **{"class": "cat"}, probabilities={"cat": 0.91, "dog": 0.09})
    name: str
    class_: str = Field(alias="class", description="The most probable class.")
    probabilities: dict[str, float]


class LabelsAnswer(BaseModel):
    """The answer of a model with several labels."""

    model_config = _example(name="a.wav", labels=["rain"], probabilities={"rain": 0.8, "wind": 0.2})
    name: str
    labels: list[str]
    probabilities: dict[str, float]


class NumbersAnswer(BaseModel):
    """The answer of a regression."""

    model_config = _example(name="inputs[0]", values={"age": 31.5}, intervals={"age": [26.1, 36.9]})
    name: str
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]] | None = Field(None, description="Lower and upper bound of each number.")


class WindowAnswer(BaseModel):
    """The answer for one window of a recording (per_window): one of the other answers, with start and end."""

    model_config = ConfigDict(extra="allow")
    name: str
    start: float = Field(description="In seconds where the sample rate is known, else in samples.")
    end: float


class Fault(BaseModel):
    """A file that cannot be answered, while others are."""

    model_config = _example(name="b.png", error="b.png: is not a picture, or has a format that PIL cannot read")
    name: str
    error: str


class Answers(BaseModel):
    """Answers in the order of the files or arrays."""

    model_config = ConfigDict(extra="forbid")
    model: str
    version: str
    predictions: list[ClassAnswer | LabelsAnswer | NumbersAnswer | WindowAnswer]
    faults: list[Fault] = []
    notes: list[str] = Field([], description="What was decided while the data were read, and doubts about them.")


class Explained(BaseModel):
    """Why a model answered as it did."""

    model_config = ConfigDict(extra="forbid")
    name: str
    target: int = Field(description="Index of the output that is explained.")
    label: str = Field(description="Its name, such as a class.")
    predicted: str
    method: str
    signed: bool = Field(description="Whether negative relevance speaks against the output.")
    answers: list[float]
    rate: float | None
    bands: dict[str, Any] | None
    example: dict[str, Any] = Field(
        description="The example: a picture as a data URI, or values, shortened for a page."
    )
    view: dict[str, Any] = Field(description="The example as the network reads it.")
    relevance: list[list[float | None]] = Field(
        description="Relevance of the parts of the example, in rows: channels of a signal, rows of a picture."
    )


class Explanations(BaseModel):
    """Explanations in the order of the files or arrays."""

    model_config = ConfigDict(extra="forbid")
    model: str
    version: str
    explanations: list[Explained]
    faults: list[Fault] = []
    notes: list[str] = []


class Problem(BaseModel):
    """Why a request was not answered."""

    model_config = _example(error="the queue is full: try again later")
    error: str
    faults: list[Fault] | None = None


class ModelFacts(BaseModel):
    """A model of the service."""

    model_config = ConfigDict(extra="forbid")
    name: str
    state: str = Field(description="ready, loading, unloaded (loaded at the first request) or failed.")
    version: str | None = None
    task: str | None = None
    outputs: list[str] | None = Field(None, description="Names of classes or numbers.")
    kind: str | None = Field(None, description="signal or image.")
    channels: int | None = None
    size: list[int] | None = None
    rate: float | None = Field(None, description="Samples per second (Hz) of recordings; null without.")
    runtime: str | None = Field(None, description="What computes the network.")
    searching: bool | None = Field(None, description="Whether a faster way to compute is still looked for.")
    explains: bool | None = None


class Tensor(BaseModel):
    """A tensor of the Open Inference Protocol."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [{"name": "input", "shape": [1, 1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]
        },
    )
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] = []


class InferRequest(BaseModel):
    """A request of the Open Inference Protocol, version 2."""

    id: str = ""
    parameters: dict[str, Any] = {}
    inputs: list[Tensor]
    outputs: list[dict[str, Any]] = []


class InferAnswer(BaseModel):
    """An answer of the Open Inference Protocol, version 2."""

    id: str = ""
    model_name: str
    model_version: str
    outputs: list[Tensor]
