"""Sentences on the features that networks share."""
