"""The command that asks a release's models; nothing is imported here, so that it can be sealed first."""
