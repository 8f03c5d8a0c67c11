"""Packing, signing, volumes, the kit, and building again."""
