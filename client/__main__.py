"""`python -m client`: the same as the `trident` command."""

from client.cli import main

main()
