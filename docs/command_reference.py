"""The directive ``commands``: the reference of the command line, made of its parsers."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from importlib import import_module

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from bksdm.cli.arguments import Parser
from bksdm.cli.commands import COMMANDS


def reference() -> str:
    """Return the reference of all commands, as Markdown."""
    return "\n".join(line for name in COMMANDS for line in _command(name))


def _command(name: str) -> Iterator[str]:
    parser = Parser(prog=f"bksdm {name}")
    import_module(f"bksdm.cli.{name}").configure(parser)
    yield from (f"## {name}", "", _sentence(COMMANDS[name]), "")
    yield from _described(parser)
    if parser.epilog:
        yield from ("```text", parser.epilog.strip("\n"), "```", "")


def _described(parser: argparse.ArgumentParser) -> Iterator[str]:
    # The first two are what argparse calls positional arguments and options.
    standard, own = parser._action_groups[:2], parser._action_groups[2:]
    yield from _table(action for group in standard for action in group._group_actions)
    for group in own:
        yield from (str(group.title).capitalize(), "", *_table(group._group_actions))
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                kind = action.choices[choice.dest]
                title = kind.prog.removeprefix("bksdm ")
                yield from (f"### {title}", "", _sentence(str(choice.help)), "")
                yield from _described(kind)


def _table(actions: Iterable[argparse.Action]) -> Iterator[str]:
    rows = [row for action in actions for row in _rows(action)]
    if rows:
        yield from ("| argument | what it does |", "|---|---|", *rows, "")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _rows(action: argparse.Action) -> Iterator[str]:
    if isinstance(action, argparse._SubParsersAction) or {"--help", "--debug"} & {
        *action.option_strings
    }:
        return
    if action.option_strings:
        value = "" if action.nargs == 0 else f" {_metavar(action)}"
        *others, last = action.option_strings
        shown = ", ".join([*(f"`{flag}`" for flag in others), f"`{last}{value}`"])
    else:
        shown = f"`{_metavar(action)}`"
    told = action.help or f"one of {', '.join(action.choices or ())}"
    yield "| " + " | ".join(cell.replace("|", r"\|") for cell in (shown, _escaped(told))) + " |"


def _metavar(action: argparse.Action) -> str:
    if action.choices and action.metavar is None:
        return "|".join(map(str, action.choices))
    return str(action.metavar or action.dest.upper())


def _escaped(text: str) -> str:
    """Return Markdown that shows a text as it is, but for what stands in backquotes."""
    plain = re.split(r"(`[^`]*`)", text)
    plain[::2] = (re.sub(r"([*_<>\[\]{}$\\])", r"\\\1", part) for part in plain[::2])
    return "".join(plain)


class Commands(SphinxDirective):
    """Puts the reference of all commands where it stands."""

    def run(self) -> list[nodes.Node]:
        """Return the reference."""
        return self.parse_text_to_nodes(reference(), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Make the directive known to Sphinx."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
