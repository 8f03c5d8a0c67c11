"""The command line of the builder's side: options in, one library call, one answer out; imports are late, for speed."""

from bundler.cli import bundles, caching, imaging, registries, reviewing, signing, specs
from bundler.cli.shared import main

__all__ = ["bundles", "caching", "imaging", "main", "registries", "reviewing", "signing", "specs"]
