"""`python -m timeline_cli`."""

from timeline_cli import main

main()
