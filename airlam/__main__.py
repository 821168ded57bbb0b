"""``python -m airlam`` is the ``airlam`` command."""

from airlam.cli import main

main()
