"""Scripts of examples/ as executed pages."""

import ast
import re

HEADER = "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n  display_name: Python 3\n---\n"
CELL = re.compile(r"^# %%(.*)\n", re.M)


def myst_of_script(name: str, text: str) -> str:
    """The page of a script: its docstring, then its cells, or all of its code and what it prints.

    Cells begin with `# %%`, and cells of text with `# %% [markdown]`. Tags such as `remove-cell` follow as
    `# %% tags=remove-cell`.
    """
    docstring = ast.get_docstring(ast.parse(text))
    if docstring is None:
        raise ValueError(f"{name} has no docstring, which is the title of its page")
    title, _, rest = docstring.partition("\n")
    page = f"{HEADER}\n# {title.rstrip('.')}\n{rest}\n"
    code = text.split('"""', 2)[2].lstrip("\n")
    parts = CELL.split(code)
    if len(parts) == 1:
        module = name.removesuffix(".py")
        listing = f"## The script\n\n```python\n{code.rstrip()}\n```\n"
        run = f"from {module} import main\n\nmain()"
        return f"{page}\n## What it prints\n\n{_cell(run, 'hide-input')}\n{listing}"
    page += _cell(parts[0]) if parts[0].strip() else ""
    for options, body in zip(parts[1::2], parts[2::2]):
        if "[markdown]" in options:
            page += "\n" + re.sub(r"^# ?", "", body, flags=re.M) + "\n"
        else:
            page += _cell(body, options.partition("tags=")[2].strip())
    return page


def _cell(code: str, tags: str = "") -> str:
    option = f":tags: [{tags}]\n\n" if tags else ""
    return f"\n```{{code-cell}} ipython3\n{option}{code.strip()}\n```\n"
