"""`python -m stack.cli`: the `stack` command where the script is not on PATH."""

from stack.cli import main

main()
