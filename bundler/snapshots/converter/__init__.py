"""The converter: a script and its pinned requirements, run in a virtual environment of its own."""
