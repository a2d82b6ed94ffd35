"""How figures look, and figures that several rooms share."""
