"""Files and names that are nearly right: mutations of valid ones, made by a seeded generator."""

from __future__ import annotations

import copy
import io
import json
import math
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

# What stands in place of a value.
VALUES: tuple[Any, ...] = (
    *(0, -1, 1, 3, 10**6, 2**63 - 1, 2**64, -(2**63), 10**400, 0.0, -0.5, 1e308, 5e-324),
    *(math.nan, math.inf, -math.inf, True, False, "", " ", "x" * 10_000, "[/red]", "\x1b[31m", "a\nb", "\0", "\u202e"),
    *(
        "..",
        "/",
        "~",
        "/dev/null",
        ".",
        "digits",
        "a/b",
        "-1",
        "nan",
        "🙂" * 50,
        [],
        [[]],
        [1, "a"],
        {},
        {"kind": "fid"},
    ),
    *({"kind": "fid"}, {"": 1}, list(range(1000)), [[[[[[]]]]]], "http://x", "python:x", "*.toml"),
)
LETTERS = "abcdefghijklmnopqrstuvwxyz_-.[]/\x1b\0\n🙂"


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the values of tables and lists are, with those inside them."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, part in inner for place in ((*path, key), *paths_of(part, (*path, key)))]


def mistyped(word: str, random: Random) -> str:
    """A word with a letter more, fewer or changed."""
    place = random.randrange(len(word) + 1)
    return word[:place] + random.choice(["", random.choice(LETTERS)]) + word[place + random.randrange(2) :]


def mutated(value: Any, random: Random, times: int) -> Any:
    """A copy with so many of its parts deleted, renamed, moved or replaced."""
    value = json.loads(json.dumps(value))
    for _ in range(times):
        places = paths_of(value)
        if not places:
            return copy.deepcopy(random.choice(VALUES))
        *outer, key = random.choice(places)
        table = value
        for part in outer:
            table = table[part]
        action = random.randrange(5)
        if action == 0:
            del table[key]
        elif action == 1 and isinstance(table, dict):
            table[mistyped(str(key), random)] = table.pop(key)
        elif action == 2 and isinstance(table, dict):
            table[mistyped(str(key), random)] = copy.deepcopy(table[key])
        elif action == 3 and isinstance(table[key], str):
            table[key] = mistyped(table[key], random)
        else:
            table[key] = copy.deepcopy(random.choice(VALUES))  # which may be changed in its turn
    return value


def toml(value: Any) -> str:
    """A value as TOML writes it inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(str(key))} = {toml(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value, ensure_ascii=True).replace("\\ud83d\\ude42", "🙂")


def toml_file(tables: Any, random: Random) -> bytes:
    """The text of a file; now and then cut off, doubled, or with bytes that are no text."""
    if not isinstance(tables, dict):
        tables = {"study": tables}
    content = "".join(f"{toml(str(key))} = {toml(value)}\n" for key, value in tables.items()).encode()
    return damaged(content, random) if random.random() < 0.15 else content


def damaged(content: bytes, random: Random) -> bytes:
    """Bytes cut off, doubled, or changed."""
    place = random.randrange(len(content) + 1)
    return random.choice(
        [
            content[:place],
            content + content,
            content[:place] + random.randbytes(8) + content[place:],
            content[:place] + bytes([random.randrange(256)]) + content[place + 1 :],
            b"[" * 10_000 + content,
            b"x = " + b"9" * 5000 + b"\n" + content,
            b"x = 0x" + b"f" * 5000 + b"\n" + content,
            b"",
        ]
    )


def storage_url(folder: Path, random: Random) -> str:
    """A storage's URL, as people and accidents write it."""
    (folder / "a b").mkdir(exist_ok=True)
    (folder / "text.db").write_text("no database")
    urls = [
        "postgresql://[::1",
        *(":memory:", "sqlite://", "sqlite:///:memory:", "sqlite:///a\0b", "sqlite:///\0", "://"),
        *(
            "sqlite:////proc/none/x.db",
            "sqlite:////dev/null",
            "sqlite:////dev/null/x.db",
            f"sqlite:///{folder}/a folder",
        ),
        *(f"sqlite:///{folder}/text.db", f"sqlite:///{'x' * 10_000}", f"{'x' * 10_000}://", "x" * 10_000, "sqlite:"),
        *("oracle://me:secret@localhost/x", "mssql://localhost/x", "nodialect://localhost/x", "sqlite+nodriver:///x"),
        *("postgresql+nodriver://localhost/x", "postgresql://localhost:99999/x", "postgresql://localhost:x/y"),
        *(
            "mysql://localhost/x",
            "mysql+pymysql://localhost:1/x",
            "postgresql://me:secret@localhost:1/x",
            "\x1b[31m://x",
        ),
        *("sqlite:///[/red].db?mode=ro", "sqlite:///x.db?timeout=many", "sqlite:///x.db?cache=[", "http://localhost/x"),
        *(
            "sqlite:///x.db?uri=true",
            "file:x.db",
            "/tmp/x.db",
            "studies.db",
            "sqlite://localhost/x.db",
            "sqlite:///\udc80.db",
        ),
        *(
            "postgresql://localhost:-1/x",
            "redis://localhost",
            "journal.log",
            "sqlite:///file:x?mode=memory&uri=true",
            "?",
        ),
    ]
    return random.choice(urls)


def changed(text: str, random: Random) -> str:
    """The text, mistyped now and then."""
    return mistyped(text, random) if random.random() < 0.4 else text


def png(random: Random, width: int = 8, height: int = 8) -> bytes:
    """An image file, of noise."""
    memory = io.BytesIO()
    Image.frombytes("RGB", (width, height), random.randbytes(width * height * 3)).save(memory, "PNG")
    return memory.getvalue()


def vast_png(random: Random) -> bytes:
    """A header that claims a square kilometre of pixels."""
    image = png(random)
    return image[:16] + struct.pack(">II", 2**30, 2**30) + image[24:]


def npz(**arrays: Any) -> bytes:
    """A file of arrays, with pickles where they are objects."""
    memory = io.BytesIO()
    np.savez(memory, **arrays)
    return memory.getvalue()


def vast_npz() -> bytes:
    """A header that claims more than any memory holds."""
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 1000000000), }"
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n"
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr("mu.npy", member)
        archive.writestr("sigma.npy", member)
    return memory.getvalue()


def bad_images(folder: Path, random: Random) -> Path:
    """A folder of images of which one or more are none."""
    folder.mkdir()
    for index in range(3):
        (folder / f"{index}.png").write_bytes(png(random))
    bad: list[Callable[[], object]] = [
        lambda: (folder / "bad.png").write_bytes(damaged(png(random), random)),
        lambda: (folder / "link.png").symlink_to(folder / "nowhere"),
        lambda: (folder / "circle.png").symlink_to(folder / "circle.png"),
        lambda: (folder / "folder.png").mkdir(),
        lambda: (folder / "vast.png").write_bytes(
            png(random)[:16] + struct.pack(">II", 2**30, 2**30) + png(random)[24:]
        ),
        lambda: (folder / "[red]\x1b\n.png").write_text("no image"),
        lambda: [path.unlink() for path in list(folder.iterdir())[1:]],
        lambda: (folder / "state.json").write_text("{}"),
        lambda: (folder / "dataset_dict.json").write_text("["),
        lambda: (folder / "empty.jpg").write_bytes(b""),
    ]
    for _ in range(random.randrange(1, 3)):
        action = random.choice(bad)
        bad.remove(action)
        action()
    return folder


def bad_archive(path: Path, random: Random) -> Path:
    """An ``.npz`` file that is no reference, or nearly one."""
    eye = np.eye(4)
    contents: list[Callable[[], bytes]] = [
        lambda: npz(mu=np.zeros(4), sigma=eye)[: random.randrange(400)],
        lambda: npz(mu=np.array([{}, {}], dtype=object), sigma=eye),
        lambda: npz(mu=np.zeros(3), sigma=eye),
        lambda: npz(mu=np.full(4, np.nan), sigma=eye),
        lambda: npz(mu=np.zeros(4), sigma=-eye),
        lambda: npz(mu=np.array(["a"] * 4), sigma=eye),
        lambda: npz(features=np.zeros((1, 4))),
        lambda: npz(arr_0=np.zeros((5, 0, 8, 3), np.uint8)),
        lambda: npz(arr_0=np.zeros((5, 8, 8, 3))),
        lambda: npz(other=eye),
        lambda: damaged(npz(mu=np.zeros(4), sigma=eye), random),
        vast_npz,
        lambda: b"",
    ]
    path.write_bytes(random.choice(contents)())
    return path
