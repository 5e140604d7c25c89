"""Write docs/help.md from the command line itself; with --check, fail when the file is stale."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["COLUMNS"] = "100"
os.environ["TERMINAL_WIDTH"] = "100"

import typer.main
from typer.testing import CliRunner

from fluxscope.commands.main import build_app

TARGET = Path(__file__).with_name("help.md")


def help_pages() -> str:
    """The help page of every command, as Markdown."""
    app = build_app()
    names = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    pages = ["# Commands and settings\n", "Made by `python docs/make_help.py`; do not edit.\n"]
    for name in ("", *names):
        result = CliRunner().invoke(app, [name, "--help"] if name else ["--help"], prog_name="fluxscope")
        assert result.exit_code == 0, result.output
        pages.append(f"## fluxscope {name}".rstrip() + f"\n\n```\n{_trimmed(result.output)}\n```\n")
    return "\n".join(pages)


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def main() -> None:
    pages = help_pages()
    if "--check" not in sys.argv:
        TARGET.write_text(pages)
    elif not TARGET.is_file() or TARGET.read_text() != pages:
        sys.exit("docs/help.md is stale\n  Run: make docs")


if __name__ == "__main__":
    main()
