"""C{python -m helix_revdial.cli}: the same as C{helix}."""

from helix_revdial.cli.main import main

main()
