"""Upload a model to the Hugging Face hub, with a card that describes it."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ndvit.parts import ModelParts
from ndvit.weights.building import build
from ndvit.weights.card import model_card, without_folders
from ndvit.weights.file import MODEL_FILE, write_model
from ndvit.weights.opening import open_weights
from ndvit.weights.reading.hub import plain_errors


def push_to_hub(
    model: ModelParts | str | Path,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    message: str = "Upload with ndvit",
    licence: str | None = None,
) -> str:
    """Upload a model and a card that describes it, in one commit.

    No folder of this machine is published: of paths in the provenance only the last part is uploaded.

    Args:
        model: a model, a run folder (its results are added to the card) or a model file.
        repo_id: owner/name, or a name alone for your own namespace; the repository is created if it does not exist.
        private: whether a new repository is private; an existing one keeps its setting.
        token: access token with the right to write; by default HF_TOKEN or the token of `hf auth login`.
        message: message of the commit.
        licence: SPDX identifier for the card.

    Returns:
        The address of the repository's page.

    Raises:
        ValueError: for a model with parts that were never trained, or a malformed name.
        OSError: if the hub cannot be reached or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    results = None
    if isinstance(model, str | Path):
        beside = Path(model) / "results.json"
        results = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else None
        model = build(open_weights(model))
    if model.untrained:
        raise ValueError(f"{', '.join(model.untrained)} of this model are not trained: train it before you push it")
    api = HfApi(token=token)
    facts = {name: without_folders(fact) if isinstance(fact, str) else fact for name, fact in model.provenance.items()}
    published = replace(model, provenance=facts)
    with TemporaryDirectory() as folder:
        path = Path(folder) / MODEL_FILE
        write_model(published, path)
        with plain_errors(repo_id, "pushing to"):
            page = api.create_repo(repo_id, private=private, exist_ok=True)
            card = model_card(model, page.repo_id, licence=licence, results=results).encode()
            files = [CommitOperationAdd(MODEL_FILE, path), CommitOperationAdd("README.md", card)]
            api.create_commit(page.repo_id, files, commit_message=message)
    return str(page)
