"""`python -m allranks` is `allranks`."""

from allranks.cli.main import main

main()
