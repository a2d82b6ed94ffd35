"""`load_model`: from a name, a checkpoint or a network of one's own to a `Model`."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from timm.models import get_arch_name, get_pretrained_cfg, list_pretrained, split_model_name_tag
from torch import nn

from mixer_probe import zoo
from mixer_probe.errors import ModelError, closest
from mixer_probe.models.model import InputSpec, Model, Weights, make_model
from mixer_probe.models.weights import load_into, read_checkpoint

UNTRAINED_NOTE = "Untrained: random weights, nothing here was learned."
# timm's pretrained_cfg says in21k_ft_in1k, yet accuracies are those of the paper's ImageNet-1k rows; see timm PR #651.
GOOGLE_NOTE = (
    "timm calls these weights 'goog_in21k_ft_in1k', but they are the paper's Mixer trained on ImageNet-1k from scratch "
    "(its top-1 of {top1} % matches the paper's ImageNet-1k row, {paper} %, not the ImageNet-21k one). "
    "Fair peers are vit_base_patch16_224.augreg_in1k, deit_* and resnet50.a1_in1k."
)
_GOOGLE = {
    "mixer_b16_224.goog_in21k_ft_in1k": GOOGLE_NOTE.format(top1=76.616, paper=76.44),
    "mixer_l16_224.goog_in21k_ft_in1k": GOOGLE_NOTE.format(top1=72.084, paper=71.76),
}


def load_model(
    model: str | nn.Module,
    *,
    pretrained: bool = True,
    checkpoint: str | Path | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    input_size: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: str = "bicubic",
    crop_pct: float = 1.0,
    name: str | None = None,
    seed: int = 0,
    **timm_arguments: Any,
) -> Model:
    """Load a network of the Mixer, ViT or CNN family.

    `model` is a timm name or name.tag, "hf-hub:owner/repo", "local-dir:FOLDER", "zoo:NAME" (add "?untrained" for its random
    twin) or an nn.Module built from timm's blocks; the last needs `input_size` (channels, height, width), `mean` and `std`
    unless it carries timm's pretrained_cfg, and `interpolation` and `crop_pct` say how images are brought to that size.
    `checkpoint` is a safetensors or weights-only torch file whose weights replace the pretrained ones. `device="auto"` takes
    CUDA, then MPS, then the CPU. Untrained weights are drawn with `seed`. Further arguments go to `timm.create_model`
    (num_classes, img_size, ...).

    Raises ModelError for an unknown name (with the closest ones), an unknown family, or weights that cannot be had, and
    CheckpointError for a file that is missing, truncated, pickled code, or for another network.
    """
    if isinstance(model, nn.Module):
        found = _from_module(model, name, input_size, mean, std, interpolation, crop_pct)
    elif model.startswith("zoo:"):
        found = _from_zoo(model)
    else:
        found = _from_timm(model, pretrained and checkpoint is None, seed, timm_arguments)
    if checkpoint is not None:
        load_into(found.module, read_checkpoint(checkpoint), str(checkpoint))
        found.weights = Weights(f"file {Path(checkpoint).name}", trained=True)
    if name:
        found.name = name
    found.module.to(device=resolve_device(device), dtype=resolve_dtype(dtype))
    return found


def resolve_device(device: str | torch.device) -> torch.device:
    """ "auto" is CUDA, then MPS, then the CPU. Raises ModelError for a device that is not there."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"no device '{device}' here ({reason}); use 'auto' or 'cpu'") from error
    return found


def resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """ "float32", "bfloat16", ... as torch's types. Raises ModelError for another name."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ModelError(f"'{dtype}' is no floating-point type; use 'float32', 'float64', 'bfloat16' or 'float16'")
    return found


# -- the zoo -----------------------------------------------------------------------------------------------------------


def _from_zoo(text: str) -> Model:
    name, _, option = text.removeprefix("zoo:").partition("?")
    if option not in ("", "untrained"):
        raise ModelError(f"'{text}' has the unknown option '{option}'; the only one is '?untrained'")
    card = zoo.card(name)
    spec = InputSpec(_triple(card.input_size), tuple(card.mean), tuple(card.std))
    untrained = bool(option)
    weights = (
        Weights(f"random, as {card.name} began (seed {card.seed})", trained=False, note=UNTRAINED_NOTE)
        if untrained
        else Weights(f"bundled checkpoint {card.name}", trained=True, note=card.data_note)
    )
    network = zoo.load(card.name, untrained=untrained)
    shown = f"zoo:{card.name}" + ("?untrained" if untrained else "")
    twin = None if untrained else (lambda: _from_zoo(f"zoo:{card.name}?untrained"))
    return make_model(shown, network, spec, weights, twin)


# -- timm --------------------------------------------------------------------------------------------------------------


def _from_timm(name: str, pretrained: bool, seed: int, arguments: dict[str, Any]) -> Model:
    remote = name.startswith(("hf-hub:", "hf_hub:", "local-dir:"))
    check_name(name)
    tag = name if remote else _full_name(name)
    network = _create(name, pretrained, seed, arguments)
    weights = _timm_weights(tag, pretrained, seed)
    shown = tag if pretrained else name
    return make_model(shown, network, timm_input(network), weights, _timm_twin(name, seed, arguments) if pretrained else None)


def _timm_weights(tag: str, pretrained: bool, seed: int) -> Weights:
    if not pretrained:
        return Weights(f"random (seed {seed})", trained=False, note=UNTRAINED_NOTE)
    return Weights(tag, trained=True, note=google_note(tag))


def google_note(tag: str) -> str:
    """What the Google Mixer tags really hold ("" for all others); sources: timm's results files, timm PR #651."""
    return _GOOGLE.get(tag.removeprefix("hf-hub:timm/"), "")


def _timm_twin(name: str, seed: int, arguments: dict[str, Any]) -> Callable[[], Model]:
    return lambda: _from_timm(name, False, seed, arguments)


def timm_input(network: nn.Module) -> InputSpec:
    """Input of a timm network from its pretrained_cfg."""
    config = resolve_data_config(model=network)
    size = _triple(config["input_size"])
    return InputSpec(size, tuple(config["mean"]), tuple(config["std"]), config["interpolation"], config["crop_pct"])


def check_name(name: str) -> None:
    """Raise ModelError, with the closest names, for a model that `load_model` cannot know; reads no weights."""
    if name.startswith("zoo:"):
        zoo.card(name.removeprefix("zoo:").partition("?")[0])
    elif name.startswith("local-dir:"):
        _check_folder(name)
    elif not name.startswith(("hf-hub:", "hf_hub:")):
        _check_timm_name(name)


def _check_timm_name(name: str) -> None:
    arch, tag = split_model_name_tag(name)
    if not timm.is_model(arch):
        raise ModelError(f"no model '{arch}' in timm {timm.__version__}; {closest(arch, timm.list_models())}")
    tags = [split_model_name_tag(full)[1] for full in list_pretrained(arch + ".*")]
    if tag and tag not in tags:
        raise ModelError(f"no pretrained tag '{tag}' of {arch} in timm {timm.__version__}; {closest(tag, tags)}")


def _check_folder(name: str) -> None:
    folder = Path(name.removeprefix("local-dir:"))
    if not (folder / "config.json").is_file():
        raise ModelError(f"no config.json in {folder}; local-dir: takes a folder as timm's save_for_hf writes it")


def _full_name(name: str) -> str:
    """The name with the tag that timm takes when none is given."""
    arch, tag = split_model_name_tag(name)
    config = get_pretrained_cfg(name, allow_unregistered=True)
    found = tag or (config.tag if config else "")
    return f"{arch}.{found}" if found else arch


def _create(name: str, pretrained: bool, seed: int, arguments: dict[str, Any]) -> nn.Module:
    try:
        with seeded(seed), _quiet_timm():
            return timm.create_model(name, pretrained=pretrained, **arguments)
    except TypeError as error:
        raise ModelError(f"{name} does not take these arguments ({error}); see timm.create_model") from error
    except Exception as error:
        raise ModelError(_why_no_weights(name, pretrained, error)) from error


def _why_no_weights(name: str, pretrained: bool, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if name.startswith("local-dir:"):
        return f"cannot load {name}: {reason}; the folder needs config.json and model.safetensors of the same network"
    if not pretrained and not name.startswith("hf-hub:"):
        return f"cannot build {name}: {reason}"
    arch = get_arch_name(name) if not name.startswith("hf-hub:") else "NAME"
    return (
        f"the weights of {name} could not be had: tried {_tried(name)} ({reason}). "
        f"Give a file instead: load_model('{arch}', checkpoint='model.safetensors') or --checkpoint, or use zoo:mixer"
    )


def _tried(name: str) -> str:
    from huggingface_hub import constants

    config = None if name.startswith("hf-hub:") else get_pretrained_cfg(name, allow_unregistered=True)
    hub = name.removeprefix("hf-hub:") if config is None else (config.hf_hub_id or config.url or "no known place")
    hub = f"{hub}{name}" if hub.endswith("/") else hub
    return f"the Hugging Face repository {hub} and the cache {constants.HF_HUB_CACHE}"


# -- a person's own network --------------------------------------------------------------------------------------------


def _from_module(
    network: nn.Module,
    name: str | None,
    input_size: Sequence[int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    interpolation: str,
    crop_pct: float,
) -> Model:
    known = timm_input(network) if getattr(network, "pretrained_cfg", None) else None
    if known is None and (input_size is None or mean is None or std is None):
        raise ModelError(
            f"{type(network).__name__} does not say what images it takes; "
            "give input_size=(3, height, width), mean=(r, g, b) and std=(r, g, b)"
        )
    spec = InputSpec(
        _triple(input_size or known.size),  # type: ignore[union-attr]
        tuple(mean or known.mean),  # type: ignore[union-attr]
        tuple(std or known.std),  # type: ignore[union-attr]
        interpolation,
        crop_pct,
    )
    shown = name or type(network).__name__
    weights = Weights("the network as given", trained=True)
    return make_model(shown, network, spec, weights, lambda: _module_twin(network, shown, spec))


def _module_twin(network: nn.Module, name: str, spec: InputSpec) -> Model:
    twin = copy.deepcopy(network)
    with seeded(0):
        reinitialise(twin)
    return make_model(name, twin, spec, Weights("random (seed 0)", trained=False, note=UNTRAINED_NOTE))


def reinitialise(network: nn.Module) -> None:
    """Fresh random weights in place: every module's own reset_parameters, then the network's init_weights if it has one."""
    for module in network.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    initialise = getattr(network, "init_weights", None)
    if callable(initialise):
        initialise()


def _triple(size: Sequence[int]) -> tuple[int, int, int]:
    if len(size) != 3:
        raise ModelError(f"input_size is (channels, height, width), not {tuple(size)}")
    return int(size[0]), int(size[1]), int(size[2])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from torch's CPU generator seeded with `seed`, and leave the caller's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def _quiet_timm() -> Iterator[None]:
    """timm logs what the errors here already say."""
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
