"""The errors that sepgroupy raises on purpose: catch :class:`SepgroupyError` to catch them all."""

__all__ = ["ArgumentError", "DataError", "RunError", "SepgroupyError"]


class SepgroupyError(Exception):
    """Base of every error that sepgroupy raises on purpose."""


class ArgumentError(SepgroupyError, ValueError):
    """An argument has a value that cannot be right; the message names it, its value and what would be."""


class DataError(SepgroupyError):
    """A file from outside is missing, broken or not what it should be; the message names it."""


class RunError(SepgroupyError):
    """A training run cannot go on: its loss is NaN or infinite, or one of its processes is lost."""
