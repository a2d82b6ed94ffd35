"""Sentences on results of this room, each with its numbers, intervals and nulls."""
