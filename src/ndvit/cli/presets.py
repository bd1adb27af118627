import re

from ndvit.cli.options import field_docs
from ndvit.cli.printing import out
from ndvit.config import Recipe, ViTConfig
from ndvit.config.presets import AUTO, PRESETS, check_preset


def presets(name: str | None = None, /) -> None:
    """List the presets and their purposes; or show everything that one sets, and the source of its values.

    Args:
        name: Only this one, with its network, its rules, and every value that differs from the default.
    """
    if name is None:
        out(f"{'auto':13} the default: one of these, by the model and the data; see `ndvit presets auto`")
        for known, preset in PRESETS.items():
            out(f"{known:13} {preset.about}")
        out("\n`ndvit presets NAME` shows the values of one; every flag of `ndvit train` overrides one of them.")
        return
    check_preset(name)
    if name == "auto":
        out(f"auto: {AUTO}")
        return
    preset = PRESETS[name]
    out(f"{name}: {preset.about}\nsource   {preset.source or 'measured by ndvit'}")
    out(f"network  {preset.model or 'that of the trained weights'}")
    for rule in preset.rules():
        out(f"rule     {rule}")
    docs = field_docs(ViTConfig) | field_docs(Recipe)
    for field, value in {**preset.network, **preset.recipe}.items():
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        meaning = re.split(r"[.;](?: |$)(?![^(]*\))", docs[field])[0]  # the first sentence
        out(f"  {field:18} {text:14} {meaning}")
    out("All other options have their defaults, see `ndvit train --help`; flags override the preset's values.")
