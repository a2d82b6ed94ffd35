"""Every interval of every type of result has a case in test_coverage, or a reason why it needs
none.

The walk is over the fields of all result types and the columns of their golden tables: a new pair
of bounds fails here."""

from __future__ import annotations

import csv
import re
from dataclasses import fields

import pytest

from mixer_probe.report.views import all_views
from tests.helpers.golden import GOLDEN
from tests.stats.test_coverage import AT_LEAST, CASES

SHARE, RIDGE, MEAN = "share (Wilson), n = 12", "accuracy of ridge probes, n = 50", "mean, n = 12: "
BALANCED = "balanced accuracy of ridge probes, n = 100"
NULL, RANGE = "no interval: of a null", "no interval: least and largest of a few draws"
COPIED = "no interval: that of another result, which is simulated for it"
FREQUENCY = "no case here: test_atoms simulates the maps of images"
CKA = "CKA, n = 20: three dimensions, related"
# Of "low_r2" and "r2_low" the key is "r2", of "low" alone "".
REASONS: dict[str, str] = {
    "AccuracyCost": COPIED,
    "Agreement": MEAN + "correlations, long tail down",
    "ArchitectureComparison": "kept, n = 200: 0.9, 0.6",
    "ArchitectureComparison gap": "kept, two families of two, n = 200",
    "ArchitectureComparison behind": "kept, two families of two, n = 200",
    "AttentionDistance distance": MEAN + "errors, log-normal",
    "AttentionDistance relative": MEAN + "errors, log-normal",
    "AttentionDistance entropy": MEAN + "errors, log-normal",
    "AttentionDistance prefix": MEAN + "errors, log-normal",
    "AttentiveResult": RIDGE,
    "Calibration": SHARE,
    "ChannelsNeeded random": RANGE,
    "ClassLens": SHARE,
    "ClassLens agreement": SHARE,
    "ClassLens behind": "paired shares (Tango), n = 100: 0.9, 0.8",
    **{
        f"ConceptSharing {name}": "no case here: test_sharing simulates other images"
        for name in ("r2", "cofiring", "sharing")
    },
    "ConceptAtoms frequency": FREQUENCY,
    "ConceptAtoms logit": MEAN + "gains, skewed",
    "ConceptAtoms effect": MEAN + "errors, log-normal",
    "ConceptAtoms excess": "crossed effects, 10 draws, n = 50",
    "ConceptAtoms accuracy": "paired shares (Tango), n = 100: 0.9, 0.8",
    "ConceptAtoms class_accuracy": "paired shares (Tango), n = 100: 0.9, 0.8",
    "ControlTask": RIDGE,
    "ControlTask selectivity": "selectivity, n = 200",
    "ControlTask relative": "relative selectivity, n = 200",
    "DistortionAccuracy accuracy": SHARE,
    "DistortionAccuracy drop": "paired shares (Tango), n = 100: 0.9, 0.8",
    "DistortionAccuracy kept": "kept, n = 200: 0.9, 0.6",
    "DistortionAccuracy agreement": SHARE,
    **{
        f"EffectiveReceptiveField {name}": (
            "no case here: test_receptive_field simulates the maps of images"
        )
        for name in (
            "area",
            "area_50",
            "area_95",
            "area_99",
            "centre",
            "centre_row",
            "centre_column",
            "gaussian",
            "sigma",
            "sigma_row",
            "sigma_column",
        )
    },
    "ErrorConsistency": "kappa, n = 200: 0.7, 0.6",
    "ErrorConsistency null": NULL,
    "Faithfulness": MEAN + "errors, log-normal",
    "FewShotResult": "draws and images (few-shot), 3 draws, n = 200",
    "FewShotResult images": "images alone (few-shot), 3 draws, n = 200",
    "FewShotResult seeds": "draws alone (few-shot), 3 draws",
    **{
        f"KernelTying {unit}null_count_{fraction}": NULL
        for unit in ("", "unit_")
        for fraction in (50, 90, 99)
    },
    **{
        f"FrequencyProfile {name}": MEAN + "errors, log-normal"
        for name in ("profiles", "amplitude", "variance", "amplitude_change", "variance_change")
    },
    "ModelCost": "median of times, n = 7",
    "Lesions accuracy": SHARE,
    "Lesions drop": "paired shares (Tango), n = 100: 0.9, 0.8",
    "Narrative": COPIED,
    "OnlineCode": "length of the online code, 3 orders",
    **{
        f"PatchPosition {name}": (
            "no case here: test_patch_position_intervals simulates whole probes"
        )
        for name in ("r2", "accuracy", "distance_px")
    },
    "PerturbationCurves": MEAN + "areas, most small",
    "PerturbationCurves gain": MEAN + "gains, skewed",
    "PositionProbe": RIDGE,
    "PositionProbe prefix": RIDGE,
    "PositionProbe pooled": RIDGE,
    "ProbeResult": RIDGE,
    "ProbeResult balanced": BALANCED,
    "RandomLabels": "random labels, 5 draws",
    **{
        f"RandomisationCheck {name}": "crossed effects, 10 draws, n = 50"
        for name in ("spearman", "signed_spearman", "ssim")
    },
    "RandomisationCheck null_spearman": "maps of different images, n = 12",
    "ReportDiff": "difference of reports, n = 50: 0.3, 0.5",
    "ReportDiff a": COPIED,
    "ReportDiff b": COPIED,
    "RepresentationShift cka": CKA,
    "RepresentationShift cosine": "mean cosine, n = 12",
    **{
        f"ResidualStream {name}": MEAN + "errors, log-normal"
        for name in ("ratio", "prefix_ratio", "contribution")
    },
    "SimilarityMatrix": CKA,
    "TokenComponents together": (
        "no case here: test_components simulates the components of images"
    ),
    **{
        f"SpatialMixing{which}": "no case here: test_spatial_mixing simulates samples of images"
        for which in ("", " overall")
    },
    "Stitching": SHARE,
    "Stitching own": SHARE,
    "Stitching recovered": "kept, n = 200: 0.9, 0.6",
    "TargetProbe": "R2, n = 100: 0.75",
    "UnitImportance margin_drop": MEAN + "gains, skewed",
    "UnitImportance accuracy_drop": "paired shares (Tango), n = 100: 0.9, 0.8",
    "UnitImportance rank_correlation": "rank correlation, n = 32: 0.5",
}


def bounds() -> set[str]:
    """Type and number of everything that is called low."""
    found = set()
    for kind in all_views():
        with (GOLDEN / f"{kind.__name__}.csv").open(newline="") as file:
            columns = next(csv.reader(file))
        for name in [*columns, *(field.name for field in fields(kind))]:
            if re.search(r"(^|_)low(_|$)", name):
                number = re.sub(r"^low_|_low$|^low$", "", name)
                found.add(f"{kind.__name__} {number}".strip())
    return found


def test_every_interval_is_simulated_or_has_a_reason() -> None:
    assert bounds() == set(REASONS)


@pytest.mark.parametrize(
    "case", sorted({reason for reason in REASONS.values() if not reason.startswith("no ")})
)
def test_the_case_exists(case: str) -> None:
    assert case in CASES | AT_LEAST
