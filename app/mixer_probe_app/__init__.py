"""What the pages share: which networks are chosen, what has been calculated, how it is shown. Nothing here measures anything."""

from mixer_probe_app.analyses import card, findings, probe, shared_images, similarity, stem, token_mixing, twin_token_mixing
from mixer_probe_app.charts import heatmap, probe_curves
from mixer_probe_app.choice import chooser, chosen, shown
from mixer_probe_app.messages import guarded, join, plain
from mixer_probe_app.page import begin
from mixer_probe_app.show import bullets, download_csv, figure, folded_table, sections

__all__ = [
    "begin",
    "bullets",
    "card",
    "chooser",
    "chosen",
    "download_csv",
    "figure",
    "findings",
    "folded_table",
    "guarded",
    "heatmap",
    "join",
    "plain",
    "probe",
    "probe_curves",
    "sections",
    "shared_images",
    "shown",
    "similarity",
    "stem",
    "token_mixing",
    "twin_token_mixing",
]
