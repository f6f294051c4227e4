"""The messages that docs/troubleshooting.md explains are those of the code."""

from __future__ import annotations

import ast
import re

import pytest

from .examples_of_pages import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
CODE = ("batch", "cli", "engines", "export", "optimize", "runtime", "serve", "storage")
MESSAGES = [
    row.split("|")[1].strip().strip("`")
    for table in re.findall(r"\| message .+\n\|---.+\n((?:\|.+\n)+)", PAGE)
    for row in table.splitlines()
]


def texts():
    """Yield every text of the code, with … for what is put into it."""
    for folder in CODE:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
                    yield "".join(map(str, parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


@pytest.fixture(scope="module")
def said():
    return set(texts())


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_one_of_the_code(message, said):
    pattern = re.compile(".*".join(map(re.escape, message.split("…"))), re.DOTALL)
    assert any(pattern.search(text) for text in said)


def test_messages_are_found():
    assert len(MESSAGES) > 30
