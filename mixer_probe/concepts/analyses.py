"""The analyses of features that networks share, and how their results are shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mixer_probe.capture import Inputs
from mixer_probe.concepts.atoms import ConceptAtoms
from mixer_probe.concepts.matches import ConceptMatches
from mixer_probe.concepts.sharing import ConceptSharing
from mixer_probe.concepts.stitching import Stitching, stitch
from mixer_probe.concepts.views.atoms import atom_sections
from mixer_probe.concepts.views.matches import matches_section
from mixer_probe.concepts.views.sharing import sharing_sections
from mixer_probe.concepts.views.stitching import stitching_section
from mixer_probe.core.analysis import Analysis, Room, View
from mixer_probe.core.errors import MeasureError

# A study stitches so many layers of each network, and fits on and tests on samples of so many
# images: every pair of layers runs all of them under every condition.
DEPTHS, TRAIN_IMAGES, TEST_IMAGES = 4, 2000, 1000


def stitching(pair: Sequence[Inputs]) -> Iterator[Stitching]:
    """Two networks stitched in both directions by ridge maps, with the controls; nothing for a
    network with itself."""
    a, b = pair
    if a is b:
        return
    s = a.settings
    train, test = a.image_parts
    train, test = train.sample(TRAIN_IMAGES, s.seed), test.sample(TEST_IMAGES, s.seed)
    controls = ("shuffled", "untrained", "class noise")
    for donor, receiver in ((a, b), (b, a)):
        made = [
            name
            for name in controls
            if name != "untrained" or (s.baselines and donor.record.trained)
        ]
        yield stitch(
            donor.model,
            receiver.model,
            train,
            test,
            depths=DEPTHS,
            controls=made,
            batch_size=s.batch_size,
            seed=s.seed,
        )


ROOM = Room(
    "concepts",
    "analysis of shared features",
    MeasureError,
    (
        Analysis(
            "stitching",
            "model stitching",
            "Can the first part of one network serve the last part of another?",
            (Stitching,),
            stitching,
            needs="pairs",
            labelled=True,
            default=False,
            in_memory=True,
        ),
    ),
    (
        View(ConceptSharing, sharing_sections),
        View(ConceptAtoms, atom_sections),
        View(ConceptMatches, matches_section),
        View(Stitching, stitching_section),
    ),
)
