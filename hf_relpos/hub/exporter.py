"""Writing the package's code beside a model, so that it loads with ``trust_remote_code=True`` where the package is not installed.

transformers' loader follows only ``from .name import X`` within one flat folder, found by a regular expression. So the packages
``encodings``, ``attention`` and ``models`` are flattened: ``encodings/t5.py`` becomes ``relpos_t5.py``, and every relative import is rewritten. The
whole catalogue goes along, so that the config of a published model can change later.
"""

import ast
import inspect
from pathlib import Path
from typing import Any

from ..encodings import __file__ as _encodings_file
from ..encodings.build import named_methods
from ..encodings.encoding import Encoding
from ..models.encoder_decoder import loaders_of, parts_of

ROOT = Path(_encodings_file).parent.parent
PACKAGE = __name__.split(".")[0]
PREFIX = "relpos_"
EXPORT_PACKAGES = ("encodings", "attention", "models")


class ExportError(ValueError):
    """The code of a model cannot be written in a form that loads elsewhere."""


def export_code(model: Any, folder: Path) -> list[Path]:
    """Write all code that ``model`` needs to ``folder`` and name its classes in ``model.config.auto_map``.

    Raises :class:`ExportError` when an encoding registered by the user has no file of its own or imports more than can go along.
    """
    config = model.config
    family = type(model).__module__.rpartition(".")[2]
    methods = {cls: None for part in parts_of(config).values() for cls, _ in named_methods(part.rel_pos)}
    extra = [cls for cls in methods if not cls.__module__.startswith(f"{PACKAGE}.")]
    sources = collect(ROOT / "models" / f"{family}.py")
    texts = {target: flatten(source) for source, target in sources.items()}
    for cls in extra:
        name, text = _foreign(cls)
        if f"{name}.py" in texts:
            raise ExportError(
                f"the file of encoding {cls.name!r} would be exported as {name}.py, which the package uses itself"
            )
        texts[f"{name}.py"] = text
        catalogue = f"{PREFIX}catalogue.py"
        texts[catalogue] = texts[catalogue].replace(
            "\n\nMETHODS", f"\nfrom .{name} import {cls.__name__}\n\nMETHODS", 1
        )
    written = []
    for name, text in sorted(texts.items()):
        path = folder / name
        path.write_text(text, encoding="utf-8")
        written.append(path)
    config.auto_map = auto_map(config, f"{PREFIX}{family}")
    return written


def auto_map(config: Any, module: str) -> dict[str, str]:
    """The ``auto_map`` of a config whose classes are exported as ``module``: every class that it loads as, by its Auto class."""
    entries = {name: f"{module}.{cls.__name__}" for name, cls in loaders_of(config).items()}
    return {"AutoConfig": f"{module}.{type(config).__name__}", **entries}


def collect(start: Path) -> dict[Path, str]:
    """Files reachable by relative imports from ``start``, with their names in the flat folder; ExportError when two would share one."""
    found: dict[Path, str] = {}
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        target = f"{PREFIX}{path.stem}.py"
        if target in found.values():
            raise ExportError(f"two files would be exported as {target}; one is {path}")
        found[path] = target
        waiting += [_resolve(path, node) for node in _relative_imports(path)]
    return found


def _relative_imports(path: Path) -> list[ast.ImportFrom]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]


def _resolve(path: Path, node: ast.ImportFrom) -> Path:
    folder = path.parent if node.level == 1 else path.parent.parent
    target = folder.joinpath(*(node.module or "").split(".")).with_suffix(".py")
    if not node.module or not target.is_file():
        raise ExportError(
            f"{path}:{node.lineno}: only 'from .name import X' and 'from ..package.name import X' can be exported"
        )
    return target


def flatten(path: Path) -> str:
    """The text of a file with its relative imports rewritten for the flat folder."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for node in _relative_imports(path):
        name = f"{PREFIX}{_resolve(path, node).stem}"
        written = f"from {'.' * node.level}{node.module} import"
        line = lines[node.lineno - 1]
        if written not in line:
            raise ExportError(f"{path}:{node.lineno}: expected {written!r}")
        lines[node.lineno - 1] = line.replace(written, f"from .{name} import")
    return "".join(lines)


def _foreign(cls: type[Encoding]) -> tuple[str, str]:
    """Module name and text of the file of an encoding that the user registered, its imports of this package rewritten."""
    try:
        path = Path(inspect.getfile(cls))
        text = path.read_text(encoding="utf-8")
    except (OSError, TypeError) as error:
        raise ExportError(
            f"the encoding {cls.name!r} has no source file that could go along with the model: define it in a .py file"
        ) from error
    if cls.__module__ == "__main__" or not path.stem.isidentifier():
        raise ExportError(f"the encoding {cls.name!r} is defined in {path}, a script: define it in a module of its own")
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise ExportError(
                f"{path}:{node.lineno}: the file of encoding {cls.name!r} imports other files of yours; make it one file"
            )
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            parts = (node.module or "").split(".")
            if len(parts) != 3 or parts[1] != "encodings" or node.end_lineno != node.lineno:
                raise ExportError(
                    f"{path}:{node.lineno}: import what the encoding {cls.name!r} needs on one line from {PACKAGE}.encodings.<file>, "
                    f"not from {node.module}"
                )
            lines[node.lineno - 1] = lines[node.lineno - 1].replace(node.module or "", f".{PREFIX}{parts[2]}", 1)
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == PACKAGE for alias in node.names):
            raise ExportError(
                f"{path}:{node.lineno}: write 'from {PACKAGE}.encodings.<file> import ...' instead of 'import {PACKAGE}'"
            )
    return f"{PREFIX}{path.stem}", "".join(lines)
