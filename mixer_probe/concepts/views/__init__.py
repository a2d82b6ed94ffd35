"""Sections on the features that networks share."""
