"""`python -m timeline_cli`."""

from . import main

main()
