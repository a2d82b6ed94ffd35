"""What every other package rests on: identity of data and networks, files, and checks of
arguments."""
