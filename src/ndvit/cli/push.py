from ndvit.cli.printing import out


def push(
    run: str,
    repo: str,
    *,
    private: bool = False,
    licence: str | None = None,
    message: str = "Upload with ndvit",
) -> None:
    """Upload a model and its card to the Hugging Face hub, in one commit.

    Args:
        run: A run folder or a model.safetensors.
        repo: owner/name; created if it does not exist. Log in with `hf auth login` or HF_TOKEN.
        private: Make a new repository private.
        licence: SPDX identifier for the card, such as mit.
        message: The commit's message.
    """
    from ndvit.weights.publish import push_to_hub

    out(push_to_hub(run, repo, private=private, licence=licence, message=message))
