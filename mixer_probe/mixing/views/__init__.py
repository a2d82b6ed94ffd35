"""Results of this room as sections of a report: sentences, figures and tables."""
