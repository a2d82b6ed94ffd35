"""The analyses of spatial mixing, and how their results are shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from mixer_probe.capture import Inputs
from mixer_probe.core.analysis import Analysis, Room, View
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import Result
from mixer_probe.images import Images
from mixer_probe.mixing import (
    AttentionDistance,
    ClassLens,
    EffectiveReceptiveField,
    FrequencyProfile,
    Lesions,
    MixingSettings,
    ResidualStream,
    SpatialMixing,
    TokenComponents,
    UnitImportance,
    attention_distance,
    class_lens,
    effective_receptive_field,
    frequency_profile,
    lesions,
    residual_stream,
    spatial_mixing,
    token_components,
    unit_importance,
)
from mixer_probe.mixing.views.attention import attention_section
from mixer_probe.mixing.views.components import component_section
from mixer_probe.mixing.views.frequency import frequency_section
from mixer_probe.mixing.views.lens import lens_section
from mixer_probe.mixing.views.lesions import importance_section, lesions_section
from mixer_probe.mixing.views.receptive_field import receptive_field_section
from mixer_probe.mixing.views.residual import residual_section
from mixer_probe.mixing.views.spatial_mixing import spatial_mixing_section


def settings(i: Inputs) -> MixingSettings:
    """Those that a command gives (`shared["mixing"]`), else those of a report."""
    return i.share("mixing", lambda: MixingSettings(seed=i.settings.seed))


def images(i: Inputs) -> Images:
    """The images of which derivatives are taken."""
    return i.sample(settings(i).images)


def reading_images(i: Inputs) -> Images:
    """The images of which forward passes suffice."""
    return i.sample(settings(i).reading_images)


def decided_by(i: Inputs) -> Mapping[str, Any]:
    """What decides measurements of mixing besides the networks."""
    return {"images": i.images, "settings": settings(i)}


# Of a network and its untrained baseline, from images.
_measured = partial(Analysis, needs="images", baseline=True, decided_by=decided_by)


def jacobians(i: Inputs) -> Iterator[SpatialMixing]:
    """From where every block reads."""
    s = settings(i)
    yield spatial_mixing(i.model, images(i), positions=s.positions, probes=s.probes, seed=s.seed)


JACOBIANS = _measured(
    "jacobian",
    "spatial mixing",
    "From where does each block read, with and without its skip connection, and from the image?",
    (SpatialMixing,),
    jacobians,
)


def attention(i: Inputs) -> Iterator[AttentionDistance]:
    """How far heads attend, and tokens of large norm."""
    s = settings(i)
    yield attention_distance(i.model, reading_images(i), batch_size=s.batch_size)


ATTENTION = _measured(
    "attention",
    "attention distance",
    "How far does each head attend, and which tokens have a large norm?",
    (AttentionDistance,),
    attention,
    families=("vit",),
    default=False,
)


def receptive_fields(i: Inputs) -> list[Result]:
    """Effective receptive fields of the stem, where it has a grid, and of every block."""
    s = settings(i)
    stem = [layer.name for layer in i.model.layers if layer.kind == "stem" and layer.grid]
    options: dict[str, Any] = {"probes": s.probes, "batch_size": s.batch_size, "seed": s.seed}
    return [effective_receptive_field(i.model, images(i), [*stem, "blocks"], **options)]


RECEPTIVE_FIELDS = _measured(
    "erf",
    "effective receptive field",
    "On which pixels does a position depend, and how strongly?",
    (EffectiveReceptiveField,),
    receptive_fields,
)


def frequencies(i: Inputs) -> list[Result]:
    """Spatial frequencies of the residual stream."""
    return [frequency_profile(i.model, reading_images(i), batch_size=settings(i).batch_size)]


FREQUENCIES = _measured(
    "fourier",
    "spatial frequencies",
    "Do spatial and channel mixing raise or lower spatial frequencies?",
    (FrequencyProfile,),
    frequencies,
    default=False,
)


def lens(i: Inputs) -> Iterator[ClassLens]:
    """The class as read from the residual stream, with fitting and test images apart."""
    s = settings(i)
    train, test = (part.sample(s.reading_images, s.seed) for part in i.image_parts)
    yield class_lens(i.model, test, train, batch_size=s.batch_size, seed=s.seed)


LENS = _measured(
    "lens",
    "early reading",
    "After which block can the class be read, by the network's own head and by others?",
    (ClassLens,),
    lens,
    labelled=True,
    default=False,
    decided_by=lambda i: {**decided_by(i), "train": i.train, "seed": i.settings.seed},
)


def residual(i: Inputs) -> list[Result]:
    """Norm ratios of skip connections and branches, and contributions to the logits."""
    return [residual_stream(i.model, reading_images(i), batch_size=settings(i).batch_size)]


RESIDUAL = _measured(
    "residual",
    "residual stream",
    "How much does each branch add to the residual stream and to the logits?",
    (ResidualStream,),
    residual,
    default=False,
)


# Images of which the components of positions are taken, where there are so many.
_COMPONENT_IMAGES = 24


def components(i: Inputs) -> list[Result]:
    """Principal components of the positions of five blocks."""
    s = settings(i)
    most = [n for n in (s.reading_images, _COMPONENT_IMAGES) if n is not None]
    options: dict[str, Any] = {"batch_size": s.batch_size, "seed": s.seed}
    return [token_components(i.model, i.sample(min(most)), **options)]


COMPONENTS = _measured(
    "pca",
    "components of positions",
    "Which parts of the images have similar features at each depth?",
    (TokenComponents,),
    components,
    default=False,
)


def lesion_study(i: Inputs) -> Iterator[Result]:
    """Lesions, and the importance of units of a trained network that has an accuracy to lose."""
    s = settings(i)
    found = lesions(i.model, i.sample(s.lesion_images), batch_size=s.batch_size, seed=s.seed)
    yield found
    if found.able and found.model.trained:
        yield unit_importance(
            i.model,
            reading_images(i),
            most=s.units,
            ablated_images=s.unit_images,
            batch_size=s.batch_size,
            seed=s.seed,
        )


LESIONS = _measured(
    "lesions",
    "lesion accuracy",
    "Which branches, blocks and units does the accuracy depend on?",
    (Lesions, UnitImportance),
    lesion_study,
    default=False,
)


ROOM = Room(
    "mixing",
    "analysis of mixing",
    MeasureError,
    analyses=(
        JACOBIANS,
        ATTENTION,
        RECEPTIVE_FIELDS,
        COMPONENTS,
        FREQUENCIES,
        RESIDUAL,
        LENS,
        LESIONS,
    ),
    views=(
        View(SpatialMixing, spatial_mixing_section),
        View(AttentionDistance, attention_section),
        View(EffectiveReceptiveField, receptive_field_section),
        View(TokenComponents, component_section),
        View(FrequencyProfile, frequency_section),
        View(ResidualStream, residual_section),
        View(ClassLens, lens_section),
        View(Lesions, lesions_section),
        View(UnitImportance, importance_section),
    ),
)
