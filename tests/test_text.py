"""Text from anywhere as it is shown: escapes in place of what a terminal obeys, no markup, nothing too long."""

from __future__ import annotations

import subprocess

import pytest

from autodiffusion_opt.errors import named_reason_of, nearest, reason_of, unknown_text
from autodiffusion_opt.text import (
    MESSAGE,
    as_message,
    code_in_markdown,
    in_markdown,
    listed,
    quoted,
    shell_word,
    visible,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("[/red] Grüße 漢字 ∞", "[/red] Grüße 漢字 ∞"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\udc80", "\\udc80"),
    ],
)
def test_what_is_not_printed_is_shown_as_its_escape(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    shown = visible("begin" + "x" * 100_000 + "end", 100)
    assert len(shown) == 100
    assert (shown[:5], shown[-3:]) == ("begin", "end")
    assert "more]" in shown
    assert len(visible("\x1b" * 100_000, 100)) == 100


def test_a_message_keeps_its_lines_but_not_too_many() -> None:
    assert as_message("first\nsecond\x07") == "first\nsecond\\x07"
    shown = as_message("\n".join(f"mistake {index}: {'x' * 90}" for index in range(1000)))
    assert len(shown) <= MESSAGE + 40
    assert shown.splitlines()[-1].startswith("... and 9")
    assert len(as_message("y" * 10**6)) < MESSAGE


def test_values_that_have_no_short_text_are_quoted_all_the_same() -> None:
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    assert quoted(10**5000) == "a int too long to show"
    assert quoted(nested) == "a list too long to show"
    assert len(quoted("x" * 10**6)) == 120
    while nested:  # or Python's own stack overflows when it is freed
        nested = nested.pop()  # type: ignore[assignment]


def test_names_are_listed_as_far_as_they_are_few() -> None:
    assert listed(["a", "b"]) == "a, b"
    text = unknown_text("a study", "name-700", [f"name-{index}" for index in range(1000)] + ["z" * 10**6])
    assert len(text) < 1500
    assert "more; got 'name-700'. Did you mean 'name-700'?" in text


def test_the_nearest_of_long_names_is_looked_for_in_little_time() -> None:
    assert nearest("x" * 100_000 + "y", ["x" * 100_000]).startswith(" Did you mean 'xxx")


def test_a_reason_is_never_empty() -> None:
    assert reason_of(ValueError()) == reason_of(ValueError("\n \n")) == "ValueError"
    assert reason_of(FileNotFoundError(2, "No such file")) == "No such file"
    assert reason_of(ValueError("\n  first\nsecond")) == "first"
    assert named_reason_of(KeyError()) == "KeyError"
    assert named_reason_of(KeyError("a")) == "KeyError: 'a'"


@pytest.mark.parametrize(
    "text", ["plain-name_1.toml", "a b", "it's", "a\nb", "a\x1b[0m\\'$(rm)`ls`", "-x", "[100, 500]", "\u202eß"]
)
def test_a_shell_reads_a_word_as_the_text(text: str) -> None:
    word = shell_word(text)
    assert word.isprintable() or text == "\u202eß"
    said = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, env={"LC_ALL": "C.UTF-8"})
    assert said.stdout.decode() == text


def test_markdown_reads_as_the_text() -> None:
    name = "x\n# Heading <script>alert(1)</script> [a](b) | `c`"
    assert in_markdown(name) == ("x\\\\n\\# Heading \\<script\\>alert(1)\\</script\\> \\[a\\](b) \\| \\`c\\`")
    assert code_in_markdown("a`b``c") == "```a`b``c```"
    assert code_in_markdown("`") == "`` ` ``"
