"""What both sides of the gap agree on: the manifest, the tar layout, digests, signatures and errors.

Standard library only, so that it runs inside ``runtime.pyz`` before anything else was verified.
"""

__version__ = "0.1.0"
