"""The command ``memscope``, and ``python -m memscope``."""

from memscope.base.stop import leave, stop_on_signals, stopped


def main() -> None:
    """Run the command line; a signal stops it from the first import on."""
    try:
        stop_on_signals()
        from memscope.cli.main import main as run

        run()
    finally:
        if stopped():  # whatever came out of the interruption
            leave()


if __name__ == "__main__":
    main()
