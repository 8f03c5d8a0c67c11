"""The command that compares 8-bit with exact vectors; nothing is imported here, so that it can be sealed first."""
