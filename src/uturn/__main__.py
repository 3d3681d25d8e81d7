"""``python -m uturn`` is the command line."""

from uturn.cli import main

main(prog_name="uturn")
