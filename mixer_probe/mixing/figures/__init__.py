"""Figures of results of this room, one function a figure. Nothing is shown or saved here."""
