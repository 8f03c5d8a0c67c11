"""The release's models behind an OpenAI-shaped HTTP interface: ``python -m runtime.server --release DIR``."""
