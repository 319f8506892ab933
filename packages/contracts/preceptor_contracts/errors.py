"""The one error family of Preceptor; every member raises these, CLIs and the gateway render them."""

from __future__ import annotations


class PreceptorError(Exception):
    """An expected failure, told as a sentence that names the value and a hint that says what to do.

    Args:
        message: One sentence; values quoted with `!r`.
        code: Stable machine-readable word, e.g. `unknown_served_name`.
        hint: What the reader can do about it; empty when the message already says it.
    """

    default_code = "error"

    def __init__(self, message: str, *, code: str | None = None, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()

    def __reduce__(self) -> tuple[object, ...]:
        # Exception pickling replays positional args only; ours are keyword-only.
        return (_rebuild, (type(self), self.message, self.code, self.hint))


def _rebuild(kind: type[PreceptorError], message: str, code: str, hint: str) -> PreceptorError:
    return kind(message, code=code, hint=hint)


class InvalidInput(PreceptorError, ValueError):
    """Something a person wrote (a file, a request, a setting) is wrong; nothing was done."""

    default_code = "invalid_input"


class PrerequisiteError(PreceptorError):
    """Something that must exist first does not; the hint carries the command that makes it."""

    default_code = "prerequisite_missing"


class ManifestInvalid(InvalidInput):
    """An adapter folder is incomplete, altered, or not made for this installation."""

    default_code = "manifest_invalid"
