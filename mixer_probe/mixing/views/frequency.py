"""The report on spatial frequencies of the residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mixer_probe.core.section import Picture, Section, Table, table_of
from mixer_probe.core.words import images_text, primary, untrained_warning
from mixer_probe.mixing.figures.frequency import frequency_depth, frequency_profiles
from mixer_probe.mixing.findings.frequency import frequency_sentences
from mixer_probe.mixing.frequency import FrequencyProfile
from mixer_probe.mixing.views.panels import by_networks


def frequency_section(results: Sequence[FrequencyProfile]) -> list[Section]:
    """Spatial frequencies and variance of the residual stream after every sublayer."""
    own, images = primary(results), images_text(results[0].images)
    pictures = [
        *(
            Picture(
                partial(frequency_depth, group),
                "Relative log amplitude of the highest spatial frequency (Park and Kim 2022), and "
                f"variance over positions, of the residual stream; {images}.",
                "Amplitudes are relative to the mean over positions (frequency zero), on the "
                "diagonal of the spectrum; a drop means a smoother map. Colours: the sublayer that "
                "the stream has passed. Bars: 95 % intervals over images. Dotted: untrained "
                "baseline. Stages with other grids have other frequencies, so that steps between "
                "them are no change.",
                "Amplitude of the highest frequency and spatial variance against depth",
                name=f"frequency-depth{end}",
            )
            for end, group in by_networks(results)
        ),
        Picture(
            partial(frequency_profiles, own),
            "Relative log amplitude against spatial frequency at every place of the residual "
            "stream.",
            "One line per place, coloured by relative depth; dashed after spatial mixing. "
            "Frequencies are in π per position of the grid of that place.",
            "Relative log amplitude against spatial frequency by depth",
            name="frequency-profiles",
            folded=True,
        ),
    ]
    frame = table_of(results)
    formats = {
        column: "{:.4g}"
        for column in frame.columns
        if column not in ("model", "trained", "place", "kind", "n")
    }
    table = Table("Every place of the residual stream.", frame, formats, folded=True)
    sentences = tuple(text for r in own for text in frequency_sentences(r, results))
    return [
        Section(
            "frequencies",
            "Spatial frequencies",
            sentences,
            (*pictures, table),
            untrained_warning(r.model for r in results),
        )
    ]
