"""Archives of ``torch.export`` (``.pt2``), read so that nothing in them can run code of its own.

``torch.export.load`` trusts an archive: it unpickles constants, evaluates sizes and guards as Python, writes names into
code that it executes, and takes whatever lies below ``torch`` for an operator, ``torch.os.system`` too. So an archive
is built anew here, from no more than a network of tensors needs, and loaded when every text in it was checked.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Callable
from typing import Any

import torch

PROGRAM = "models/model.json"
CONSTANTS = "data/constants/model_constants_config.json"
EXAMPLE_INPUTS = "data/sample_inputs/model.pt"  # pickled and not needed
FORMAT = ("archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id")
FOLDERS = ("data/weights/", "data/constants/")

# Metadata are of the code that was exported; guards check shapes, and so does the network itself.
EMPTIED: dict[str, Any] = {"metadata": {}, "guards_code": []}
NAME = re.compile(r"[\w.+\-]*")
OPERATOR = re.compile(r"torch\.ops\.(?:aten|prims)\.(\w+)\.(\w+)")
# Others than torch.ops.aten: arithmetic of sizes, and parts of a network that run without gradients or in autocast.
SIZES = re.compile(
    r"_operator\.(eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|mod|pow|truediv|and_|or_|lshift|rshift|getitem)"
    r"|math\.trunc|torch\.sym_(not|int|float|ite|max|min|sqrt)"
)
PARTS = re.compile(r"torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)")
# Of an expression of sizes, as SymPy writes it: Add(Integer(1), Symbol('s0', positive=True, integer=True)).
EXPRESSION = (ast.Expression, ast.Call, ast.Name, ast.Load, ast.keyword, ast.Constant, ast.UnaryOp, ast.USub)
FUNCTIONS = re.compile(
    "Symbol|Integer|Rational|Float|Add|Mul|Pow|Mod|Max|Min|And|Or|Not|Equality|Unequality|StrictLessThan|LessThan"
    "|StrictGreaterThan|GreaterThan|FloorDiv|ModularIndexing|Where|PythonMod|CleanDiv|CeilToInt|FloorToInt|CeilDiv"
    "|LShift|RShift|PowByNatural|FloatPow|FloatTrueDiv|IntTrueDiv|TruncToFloat|TruncToInt|RoundToInt|ToFloat|Identity"
    "|true|false|oo|int_oo"
)
# What a tree of arguments may consist of; None is a tensor.
TREES = (None, "builtins.tuple", "builtins.list", "builtins.dict")


def load_exported(content: bytes, device: torch.device) -> Callable[[torch.Tensor], Any]:
    """The network in an archive, on a device.

    Raises:
        ValueError: for one that takes other inputs than a batch of images of any size, or holds more than a network.
    """
    from torch.export.passes import move_to_device_pass

    program = torch.export.load(io.BytesIO(_rebuilt(content)))
    if device.type != "cpu":
        program = move_to_device_pass(program, device)
    network: Callable[[torch.Tensor], Any] = program.module()
    return network


def _rebuilt(content: bytes) -> bytes:
    """The archive with what is needed of it, checked."""
    members = _members(content)
    if PROGRAM not in members:
        raise ValueError("it holds no network as torch.export.save writes it")
    program = _checked(json.loads(members[PROGRAM]))
    _check_input(program)
    for path, text in members.items():
        if path.endswith("_config.json"):
            _checked(json.loads(text))
    _check_constants(json.loads(members.get(CONSTANTS, b"{}")))
    members |= {PROGRAM: json.dumps(program).encode(), EXAMPLE_INPUTS: b""}
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for path, data in members.items():
            archive.writestr(f"network/{path}", data)
    return memory.getvalue()


def _members(content: bytes) -> dict[str, bytes]:
    """The files of an archive that are needed, by their paths below its own folder."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        paths = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        wanted = {path: info for path, info in paths.items() if path in (*FORMAT, PROGRAM) or path.startswith(FOLDERS)}
        if any(info.compress_type != zipfile.ZIP_STORED for info in wanted.values()):
            raise ValueError("it is compressed, which torch.export.save does not do")
        return {path: archive.read(info) for path, info in wanted.items()}


def _checked(value: Any, key: str = "") -> Any:
    """A part of a program as it is, less what is emptied. Raises ValueError for text that could run as code."""
    if isinstance(value, dict):
        _check_name(*value)
        return {name: EMPTIED[name] if name in EMPTIED else _checked(part, name) for name, part in value.items()}
    if isinstance(value, list):
        return [_checked(part, key) for part in value]
    if isinstance(value, str):
        CHECKS.get(key, _check_name)(value)
    return value


def _check_name(*names: str) -> None:
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name[:80]!r} is no name")


def _check_operator(target: str) -> None:
    """Operators of tensors, of sizes, and no function of Python's."""
    if SIZES.fullmatch(target) or PARTS.fullmatch(target):
        return
    name = OPERATOR.fullmatch(target)
    operator = name and getattr(getattr(torch.ops.aten, name[1], None), name[2], None)
    if not isinstance(operator, torch._ops.OpOverload) or "filename" in str(operator._schema):
        raise ValueError(f"{target[:80]!r} is no operator of tensors, and could run code")


def _check_expression(text: str) -> None:
    """SymPy evaluates it as Python."""
    for node in ast.walk(ast.parse(text, mode="eval")):
        unknown = not isinstance(node, EXPRESSION) or (isinstance(node, ast.Name) and not FUNCTIONS.fullmatch(node.id))
        if unknown or (isinstance(node, ast.Constant) and not NAME.fullmatch(str(node.value))):
            raise ValueError(f"{text[:80]!r} is no expression of sizes, and could run code")


def _check_tree(text: str) -> None:
    """Other types than Python's own import modules by name."""

    def check(tree: Any) -> None:
        if tree["type"] not in TREES or tree["context"] not in (None, "null", "[]"):
            raise ValueError("its inputs and outputs must be tensors, or tuples and lists of them")
        for child in tree["children_spec"]:
            check(child)

    check(json.loads(text)[1])


CHECKS: dict[str, Callable[[str], None]] = {
    "target": _check_operator,
    "as_operator": _check_operator,
    "expr_str": _check_expression,
    "in_spec": _check_tree,
    "out_spec": _check_tree,
    "as_string": lambda text: None,  # an argument, "bilinear" say: stays text
    "as_strings": lambda text: None,
}


def _check_constants(config: Any) -> None:
    """Tensors; other objects are pickled."""
    paths = [constant["path_name"] for constant in config.get("config", {}).values()]
    if not all(path.startswith("tensor_") for path in paths):
        raise ValueError("it holds pickled objects, which are not read since they can run code")


def _check_input(program: Any) -> None:
    """One tensor, whose first size may change."""
    module = program["graph_module"]
    inputs = [spec["user_input"]["arg"] for spec in module["signature"]["input_specs"] if "user_input" in spec]
    if len(inputs) != 1 or "as_tensor" not in inputs[0]:
        raise ValueError(f"it must take one tensor, the images; it takes {len(inputs)} inputs")
    name = inputs[0]["as_tensor"]["name"]
    sizes = module["graph"]["tensor_values"][name]["sizes"]
    if "as_int" in sizes[0]:
        raise ValueError(
            f"it takes batches of {sizes[0]['as_int']} images alone; export it with "
            f'dynamic_shapes={{"{name}": {{0: torch.export.Dim.AUTO}}}} and an example of 2 images or more'
        )
