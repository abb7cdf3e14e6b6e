"""Print the commands of a Markdown file's code blocks that follow a line ``<!-- run -->``, one a line."""

import sys
from pathlib import Path


def commands(text: str) -> list[str]:
    """Lines of marked fenced blocks, without comments and blank lines; a trailing backslash continues a line."""
    listed: list[str] = []
    marked = inside = False
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() == "<!-- run -->":
            marked = True
        elif line.startswith("```"):
            inside = marked and not inside
            marked = False
        elif inside and line.strip() and not line.lstrip().startswith("#"):
            listed.append(line.split("  #")[0].strip())
    return listed


if __name__ == "__main__":
    listed = commands(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if not listed:
        sys.exit("no block is marked <!-- run -->")
    print("\n".join(listed))
