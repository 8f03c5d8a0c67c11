"""The online side: spec, lock, store, pack, sign."""
