"""What a key looks like, and the one hash that is kept of it.

A key is 256 random bits, so one SHA-256 is right: slow, salted hashes (bcrypt, argon2) protect what people make up and
others can guess. Nobody guesses 256 bits at any speed, a salt would hide nothing, since no two keys are alike, and a
slow hash would be paid on every request.
"""

from __future__ import annotations

import hashlib
import re
import secrets

MARK = "preceptor_"
"""Every key begins with it, so that scanners for leaked secrets, and people, know one when they see one."""
_SHOWN = len(MARK) + 6
_KEY = re.compile(MARK + r"[0-9a-f]{20,}")
_ID = re.compile(r"key-[0-9a-f]{16}")


def new_key() -> str:
    """Makes a key."""
    return MARK + secrets.token_hex(32)


def new_id() -> str:
    """Makes the name by which a key is spoken of."""
    return f"key-{secrets.token_hex(8)}"


def is_id(text: str) -> bool:
    """Says whether a text can be the id of a stored key."""
    return _ID.fullmatch(text) is not None


def digest(key: bytes) -> bytes:
    """The hash that a key is known by."""
    return hashlib.sha256(key).digest()


def shown_prefix(key: str) -> str:
    """As much of a key as may be shown: 24 of its 256 bits."""
    return key[:_SHOWN]


def without_keys(text: str) -> str:
    """Blots out whatever looks like one of our keys, e.g. one that somebody pasted into a path."""
    return _KEY.sub(MARK + "***", text) if MARK in text else text
