"""Models to the Hugging Face hub, with a card that describes them."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from ndvit.network.committee import Model
from ndvit.weights.card import model_card, without_folders
from ndvit.weights.file import MODEL_FILE, save_model
from ndvit.weights.loading import load_model
from ndvit.weights.reading.hub import plain_errors


def push_to_hub(
    model: Model | str | Path,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    message: str = "Upload with ndvit",
    licence: str | None = None,
) -> str:
    """Upload a model and a card that describes it, in one commit.

    Folders of this machine stay here: of paths in the model's provenance the last part is uploaded.

    Args:
        model: a model, a run folder (whose results go into the card) or a model file.
        repo_id: owner/name, or a name alone for a repository of one's own; it is made if there is none.
        private: whether a repository that is made is private; one that exists stays as it is.
        token: of a user who may write there; none takes the one of HF_TOKEN or `hf auth login`.
        message: the commit's.
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
        model = load_model(model)
        results = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else None
    if untrained := model.untrained:
        raise ValueError(f"{', '.join(untrained)} of this model was never trained: train it before it is pushed")
    api, told = HfApi(token=token), model.provenance
    with TemporaryDirectory() as folder:
        path = Path(folder) / MODEL_FILE
        model.provenance = {k: without_folders(v) if isinstance(v, str) else v for k, v in told.items()}
        try:
            save_model(model, path)
        finally:
            model.provenance = told
        with plain_errors(repo_id, "pushing to"):
            page = api.create_repo(repo_id, private=private, exist_ok=True)
            card = model_card(model, page.repo_id, licence=licence, results=results).encode()
            files = [CommitOperationAdd(MODEL_FILE, path), CommitOperationAdd("README.md", card)]
            api.create_commit(page.repo_id, files, commit_message=message)
    return str(page)
