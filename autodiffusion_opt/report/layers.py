"""The table of a denoiser's layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from autodiffusion_opt.sampling.layers import Layer


def layer_rows(layers: Sequence[Layer], total: int) -> list[dict[str, Any]]:
    """One row a layer, as ``layers --json`` prints it; ``share`` is of the FLOPs of the whole forward pass."""
    return [
        {
            "index": layer.index,
            "path": layer.path,
            "kind": layer.kind,
            "flops": layer.flops,
            "saved_flops": layer.saved_flops,
            "share": layer.flops / total,
            "parameters": layer.parameters,
            "removable": layer.removable,
        }
        for layer in layers
    ]


def layer_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The same for a person."""
    table = Table("index", "path", "kind", "MFLOP", "share", "parameters", "removable", caption=_summary(rows))
    for row in rows:
        numbers = f"{row['flops'] / 1e6:,.3f}", f"{row['share']:.1%}", f"{row['parameters']:,}"
        table.add_row(str(row["index"]), row["path"], row["kind"], *numbers, "yes" if row["removable"] else "no")
    return table


def _summary(rows: Sequence[dict[str, Any]]) -> str:
    kinds: dict[str, int] = {}
    for row in rows:
        kinds[row["kind"]] = kinds.get(row["kind"], 0) + 1
    listed = " + ".join(f"{count} {kind}" for kind, count in kinds.items())
    share = sum(row["share"] for row in rows)
    return f"{len(rows)} layers ({listed}), {share:.1%} of the FLOPs of one forward pass of one image"
