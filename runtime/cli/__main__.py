"""``python -m runtime.cli``: the same as the ``runtime`` command."""

import sys

from runtime.cli import main

sys.exit(main())
