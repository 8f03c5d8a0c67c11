"""``python -m bundler.cli``."""

from bundler.cli import main

main()
