"""Runs the notebooks of examples/ without Jupyter; python tests/notebooks.py stores what they print and draw."""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "examples"
NAMES = tuple(path.stem for path in sorted(FOLDER.glob("*.ipynb")))


def cells(name: str, **sizes: int) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Runs a notebook; yields code cells with their outputs. `sizes` replace the numbers that it assigns to them."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for cell in json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            yield cell, _outputs("".join(cell["source"]), f"{name}.ipynb", sizes, namespace)


def _outputs(source: str, file: str, sizes: dict[str, int], namespace: dict[str, Any]) -> list[dict[str, Any]]:
    body = ast.parse(source, file).body
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in sizes:
            node.value = ast.copy_location(ast.Constant(sizes[node.targets[0].id]), node.value)
    shown = body.pop().value if isinstance(body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(ast.Module(body, []), file, "exec"), namespace)
        value = None if shown is None else eval(compile(ast.Expression(shown), file, "eval"), namespace)
    text = printed.getvalue()
    outputs = [{"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}] if text else []
    if value is not None:
        outputs.append({"data": _data(value), "metadata": {}, "output_type": "display_data"})
    return outputs


def _data(value: Any) -> dict[str, Any]:
    if not hasattr(value, "savefig"):
        return {"text/plain": [repr(value)]}
    from PIL import Image  # comes with matplotlib

    stream, small = io.BytesIO(), io.BytesIO()
    value.savefig(stream, dpi=72)
    colours = Image.open(stream).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    colours.save(small, "PNG", optimize=True)
    return {"image/png": base64.b64encode(small.getvalue()).decode(), "text/plain": ["<Figure>"]}


def store(name: str) -> None:
    """Writes the outputs into the notebook."""
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text())
    code = (cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    for count, (cell, (_, outputs)) in enumerate(zip(code, cells(name)), 1):
        cell["execution_count"], cell["outputs"] = count, outputs
    (FOLDER / f"{name}.ipynb").write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    for chosen in sys.argv[1:] or NAMES:
        store(chosen)
