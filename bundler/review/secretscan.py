"""Secrets that slipped into an application's files: few patterns, each with hardly any false alarm.

What was found is named by kind and line, and never repeated.
"""

import re
from collections.abc import Iterator
from typing import BinaryIO, Final

_PATTERNS: Final = (
    ("private key", rb"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY-----"),
    ("AWS access key", rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    ("GitHub token", rb"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{60,255})\b"),
    ("GitLab token", rb"\bglpat-[A-Za-z0-9_-]{20,255}"),
    ("Hugging Face token", rb"\bhf_[A-Za-z0-9]{30,255}\b"),
    ("API key of a language model's provider", rb"\bsk-(?:ant-|proj-)?[A-Za-z0-9_-]{40,255}"),
    ("Google API key", rb"\bAIza[0-9A-Za-z_-]{35}\b"),
    ("Slack token", rb"\bxox[abprs]-[0-9A-Za-z-]{20,255}"),
    ("PyPI token", rb"\bpypi-AgE[A-Za-z0-9_-]{50,255}"),
)
_ALL: Final = re.compile(b"|".join(b"(%b)" % pattern for _, pattern in _PATTERNS))
_BLOCK: Final = 1024 * 1024
_OVERLAP: Final = 512  # longer than any match
_MOST: Final = 20  # findings in one file


def find_secrets(stream: BinaryIO) -> tuple[str, ...]:
    """Return what looks like a secret in a content, as ``KIND, line N``; at most 20.

    Raises:
        OSError: It can't be read.
    """
    found = dict.fromkeys(_matches(stream))
    return tuple(found)[:_MOST]


def _matches(stream: BinaryIO) -> Iterator[str]:
    tail, line = b"", 1
    while block := stream.read(_BLOCK):
        data = tail + block
        for match in _ALL.finditer(data):
            kind = _PATTERNS[(match.lastindex or 1) - 1][0]
            number = line + data.count(b"\n", 0, match.start())
            yield f"{kind}, line {number}"
        tail = data[-_OVERLAP:]
        line += data.count(b"\n", 0, len(data) - len(tail))
