"""The errors of sepgroupy: catch :class:`SepgroupyError` to catch them all."""

__all__ = ["ArgumentError", "DataError", "RunError", "SepgroupyError"]


class SepgroupyError(Exception):
    """Base of all errors of sepgroupy."""


class ArgumentError(SepgroupyError, ValueError):
    """An argument has an invalid value. The message names the argument, its value and valid values."""


class DataError(SepgroupyError):
    """A file is missing, broken or of another content than expected. The message names the file."""


class RunError(SepgroupyError):
    """A training run cannot continue: its loss is NaN or infinite, or one of its processes is lost."""
