"""The shared small study."""

from tests.tiny import study

__all__ = ["study"]
