"""`python -m fluxscope`, and the `fluxscope` command."""

from fluxscope.commands.stop import clear_stop


def main() -> None:
    """Start the command line; it is imported here, where Ctrl-C already has its clear answer."""
    with clear_stop():
        from fluxscope.commands.main import build_app

        build_app()()


if __name__ == "__main__":
    main()
