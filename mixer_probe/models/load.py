"""`load_model`: from a name, a checkpoint or a network of one's own to a `Model`."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_arch_name, get_pretrained_cfg, list_pretrained, split_model_name_tag
from torch import nn

from mixer_probe import zoo
from mixer_probe.core.errors import ModelError, closest
from mixer_probe.core.inputs import InputSpec
from mixer_probe.core.switches import copied, plain_modes, seeded
from mixer_probe.core.validate import check_text, checked
from mixer_probe.models.build import HUB, build, build_from_folder, read_config
from mixer_probe.models.checkpoint import read_checkpoint
from mixer_probe.models.hub import NOT_IN_CACHE, cache_folder, offline_if_unreachable
from mixer_probe.models.inputs import stated_input, timm_input, with_given
from mixer_probe.models.model import Model, Weights, make_model, to_channels_last
from mixer_probe.models.weights import check_finite, load_into
from mixer_probe.models.wrappers import check_parameters, unwrap
from mixer_probe.parallel import ranks

_FOLDER = "local-dir:"
_FILES = {".safetensors", ".pth", ".pt", ".bin", ".npz", ".ckpt", ".tar", ".h5"}
UNTRAINED_NOTE = "Untrained weights: nothing here was learned."
# timm's pretrained_cfg says in21k_ft_in1k, yet accuracies are those of the paper's ImageNet-1k
# rows; see timm PR #651.
GOOGLE_NOTE = (
    "timm calls these weights 'goog_in21k_ft_in1k', but they are the paper's Mixer trained on "
    "ImageNet-1k from scratch (its top-1 of {top1} % matches the paper's ImageNet-1k row, {paper} "
    "%, not the ImageNet-21k one). Fair peers are vit_base_patch16_224.augreg_in1k, deit_* and "
    "resnet50.a1_in1k."
)
_GOOGLE = {
    "mixer_b16_224.goog_in21k_ft_in1k": GOOGLE_NOTE.format(top1=76.616, paper=76.44),
    "mixer_l16_224.goog_in21k_ft_in1k": GOOGLE_NOTE.format(top1=72.084, paper=71.76),
}


@plain_modes()
@checked(ModelError)
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
    interpolation: str | None = None,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    name: str | None = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
    channels_last: bool = False,
    compiled: bool = False,
    **timm_arguments: Any,
) -> Model:
    """Load a network of the Mixer, ViT or CNN family.

    `model` is a timm name or name.tag, "hf-hub:owner/repo", "local-dir:FOLDER", "zoo:NAME" (add
    "?untrained" for its untrained baseline) or an nn.Module built from timm's blocks. `input_size`
    (channels, height, width), `mean` and `std` say what images it takes, `interpolation`,
    `crop_pct` and `crop_mode` how they are brought to that size (see `InputSpec`); they replace
    what timm knows, and an nn.Module without timm's pretrained_cfg needs the first three. For a
    network of another number of channels than 3, timm's mean and std follow as timm changes the
    weights: averaged for 1, repeated for more. `checkpoint` is a safetensors file, a torch file of
    plain data or an npz file of Google's, whose weights replace the pretrained ones; which of
    several in it were taken, and what was left out, is in the note of `weights`. `class_names` say
    what the outputs are called, in order, so that labels of images are found among them; the zoo's
    and ImageNet's are known. `device="auto"` takes CUDA, then MPS, then the CPU. Untrained weights
    are drawn with `seed`. Further arguments go to `timm.create_model` (num_classes, img_size,
    in_chans, ...) and win over what timm fixes for the name: load_model("mixer_b16_224",
    pretrained=False, patch_size=8, num_blocks=4) is such a Mixer.

    `channels_last` puts the weights of convolutions into that order in memory, in which they then
    compute. With `compiled` the blocks run through torch.compile where images stream through the
    network (`extract`, `stream`); a block runs as it is where gradients are asked for and where
    something inside of it is captured or changed. Both change the last bits of numbers, and are
    part of the identity of a stored run, not of the network's fingerprint.

    The network is put into eval mode. An nn.Module is used as it is, not copied; what training code
    put around it is taken off (`wrappers.unwrap`), as the note of its weights says. Networks are
    made outside of `torch.inference_mode`.

    Raises ModelError for an unknown name (with the closest ones), an unknown family, weights that
    are unavailable, or an input that `InputSpec` refuses, such as one `mean` for three channels,
    and CheckpointError for a file that is missing, truncated, pickled code, or for another network.
    """
    place, number = resolve_device(device), resolve_dtype(dtype)
    if place.type == "meta" and not isinstance(model, nn.Module):
        raise ModelError("the device 'meta' holds shapes and no numbers; use 'auto' or 'cpu'")
    given: dict[str, Any] = {"size": input_size, "mean": mean, "std": std}
    given |= {"interpolation": interpolation, "crop_pct": crop_pct, "crop_mode": crop_mode}
    if timm_arguments and (isinstance(model, nn.Module) or str(model).startswith("zoo:")):
        raise ModelError(
            "only networks that timm builds take further arguments, not "
            f"{', '.join(timm_arguments)}"
        )
    if isinstance(model, nn.Module):
        network, note = unwrap(model)
        check_parameters(network, on_meta=place.type == "meta" and checkpoint is None)
        found = _from_module(network, stated_input(network, given), note)
    elif not isinstance(model, str):
        raise ModelError(f"a model is a name or an nn.Module, not a {type(model).__name__}")
    elif model.startswith("zoo:"):
        found = _from_zoo(model, pretrained)
    else:
        found = _from_timm(model, pretrained and checkpoint is None, seed, timm_arguments)
    if checkpoint is not None:
        note = load_into(found.module, read_checkpoint(checkpoint), str(checkpoint))
        # What a module was taken out of is still so; what was said of the weights before is not.
        notes = [found.weights.note, note] if isinstance(model, nn.Module) else [note]
        found.weights = Weights(
            f"file {Path(checkpoint).name}", trained=True, note=" ".join(filter(None, notes))
        )
    found.input = with_given(found.input, given)
    found.name = name or found.name
    if class_names is not None:
        found.class_names = tuple(class_names)
    found.module.to(device=place, dtype=number)
    found.compiled = compiled
    if channels_last:
        to_channels_last(found.module)
    return found


def resolve_device(device: str | torch.device) -> torch.device:
    """ "auto" is CUDA, then MPS, then the CPU; of several GPUs "cuda" is another one for each
    process of torchrun. Raises ModelError for a device that is not there."""
    if str(device) in ("auto", "cuda") and torch.cuda.is_available() and ranks().local:
        return torch.device("cuda", ranks().local % torch.cuda.device_count())
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"no device '{device}' here ({reason}); use 'auto' or 'cpu'") from error
    return found


def resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """ "float32", "bfloat16", ... as torch's types. Raises ModelError for another name."""
    if dtype is None:
        return None
    found = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ModelError(
            f"'{dtype}' is no floating-point type; use 'float32', 'float64', 'bfloat16' or "
            "'float16'"
        )
    return found


# -- the zoo ---------------------------------------------------------------------------------------


@plain_modes()
def _from_zoo(text: str, pretrained: bool) -> Model:
    name, _, option = text.removeprefix("zoo:").partition("?")
    if option not in ("", "untrained"):
        raise ModelError(
            f"'{text}' has the unknown option '{option}'; the only one is '?untrained'"
        )
    card = zoo.card(name)
    spec = InputSpec(card.input_size, card.mean, card.std)
    untrained = bool(option) or not pretrained
    note = (
        f"{card.data_note}, seed {card.seed}, {card.epochs} epochs; "
        f"accuracy {100 * card.test_accuracy:.1f} % on {card.test_images:,} CIFAR-10 test images."
    )
    weights = (
        Weights(
            f"random, as {card.name} began (seed {card.seed})", trained=False, note=UNTRAINED_NOTE
        )
        if untrained
        else Weights(f"bundled checkpoint {card.name}", trained=True, note=note)
    )
    with seeded(card.seed):
        network = zoo.load(card.name, untrained=untrained)
    shown = f"zoo:{card.name}" + ("?untrained" if untrained else "")
    found = make_model(shown, network, spec, weights, lambda: _from_zoo(f"zoo:{card.name}", False))
    found.class_names = card.class_names
    return found


# -- timm ------------------------------------------------------------------------------------------


@plain_modes()
def _from_timm(name: str, pretrained: bool, seed: int, arguments: dict[str, Any]) -> Model:
    check_name(name)
    name = name.replace("hf_hub:", HUB)
    tag = name if name.startswith((HUB, _FOLDER)) else _full_name(name)
    from_folder, note = name.startswith(_FOLDER), ""
    remote = name.startswith(HUB) or (pretrained and not from_folder)
    try:
        with seeded(seed), ExitStack() as stack:
            # timm logs what the errors here already say.
            logger = logging.getLogger("timm")
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
            if remote:
                stack.enter_context(offline_if_unreachable())
            if from_folder:
                network, note = build_from_folder(
                    Path(name.removeprefix(_FOLDER)), pretrained, **arguments
                )
            else:
                network = build(name, pretrained, **arguments)
        if pretrained and not from_folder:
            check_finite(network, name)
            # timm leaves the classifier of the weights out, without a word, where the network has
            # another number of classes.
            known, own = (
                (getattr(network, "pretrained_cfg", None) or {}).get("num_classes"),
                getattr(network, "num_classes", 0),
            )
            if known and own and known != own:
                note = f"Its head for {own} classes is random: the weights' own has {known}."
    except ModelError:
        raise
    except TypeError as error:
        raise ModelError(
            f"{name} does not take these arguments ({error}); see timm.create_model"
        ) from error
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if isinstance(error, NOT_IN_CACHE):
            reason = "no copy there, and the hub does not answer"
        raise ModelError(
            _unavailable(name, reason) if remote else f"cannot build {name}: {reason}"
        ) from error
    weights = (
        Weights(tag, trained=True, note=" ".join(filter(None, [google_note(tag), note])))
        if pretrained
        else Weights(f"random (seed {seed})", trained=False, note=UNTRAINED_NOTE)
    )
    shown = tag if pretrained else name
    return make_model(
        shown,
        network,
        timm_input(network),
        weights,
        lambda: _from_timm(name, False, seed, arguments),
    )


def google_note(tag: str) -> str:
    """What the Google Mixer tags really hold ("" for all others); sources: timm's results files,
    timm PR #651."""
    return _GOOGLE.get(tag.removeprefix("hf-hub:timm/"), "")


def check_name(name: str) -> None:
    """Raise ModelError, with the closest names, for a model that `load_model` cannot know; reads no
    weights."""
    if not name.startswith(_FOLDER):
        check_text("the name of a model", name, ModelError)
    if Path(name).suffix in _FILES:
        raise ModelError(
            f"'{name}' is named like a file of weights, which does not say of which network: give "
            f"the network's name and checkpoint='{name}' (load_model), or --checkpoint {name}"
        )
    if name.startswith("zoo:"):
        zoo.card(name.removeprefix("zoo:").partition("?")[0])
    elif name.startswith(_FOLDER):
        read_config(Path(name.removeprefix(_FOLDER)))
    elif not name.startswith((HUB, "hf_hub:")):
        arch, tag = split_model_name_tag(name)
        if not timm.is_model(arch):
            raise ModelError(
                f"no model '{arch}' in timm {timm.__version__}; {closest(arch, timm.list_models())}"
            )
        tags = [split_model_name_tag(full)[1] for full in list_pretrained(arch + ".*")]
        if tag and tag not in tags:
            raise ModelError(
                f"no pretrained tag '{tag}' of {arch} in timm {timm.__version__}; "
                f"{closest(tag, tags)}"
            )


def _full_name(name: str) -> str:
    """The name with the tag that timm takes when none is given."""
    arch, tag = split_model_name_tag(name)
    config = get_pretrained_cfg(name, allow_unregistered=True)
    found = tag or (config.tag if config else "")
    return f"{arch}.{found}" if found else arch


def _unavailable(name: str, reason: str) -> str:
    """A message on weights that could not be loaded, for this `reason`: where they were looked for,
    and what to give instead."""
    config = None if name.startswith(HUB) else get_pretrained_cfg(name, allow_unregistered=True)
    repository = name.removeprefix(HUB) if config is None else config.hf_hub_id
    if repository:
        # timm abbreviates "timm/NAME.TAG" to "timm/".
        repository = f"timm/{_full_name(name)}" if repository == "timm/" else repository
        place = f"the Hugging Face repository {repository} and the cache {cache_folder()}"
    else:
        place = (
            str(config.url)
            if config and config.url
            else "nothing: timm lists no download source for these weights"
        )
    arch = "NAME" if name.startswith(HUB) else get_arch_name(name)
    return (
        f"the weights of {name} are unavailable: tried {place} ({reason.rstrip('.')}). Give a file "
        f"instead: load_model('{arch}', checkpoint='model.safetensors') or --checkpoint, or use "
        "zoo:mixer"
    )


# -- a custom model --------------------------------------------------------------------------------


@plain_modes()
def _from_module(
    network: nn.Module, spec: InputSpec, note: str = "", untrained: bool = False
) -> Model:
    weights = Weights("the network as given", trained=True, note=note)
    if untrained:
        network = copied(network)
        with seeded(0):
            reinitialise(network)
        weights = Weights("random (seed 0)", trained=False, note=UNTRAINED_NOTE)
    return make_model(
        type(network).__name__,
        network,
        spec,
        weights,
        lambda: _from_module(network, spec, untrained=True),
    )


@torch.no_grad()
def reinitialise(network: nn.Module) -> None:
    """Re-initialise the weights in place: every module's own reset_parameters, then the network's
    init_weights.

    Parameters that neither sets (tokens, gates of a class without a reset) are drawn from N(0,
    0.02^2), so that nothing that was learned stays."""
    for parameter in network.parameters():
        parameter.fill_(math.nan)
    # Inner modules first: what a module says about its parts wins over what they say about
    # themselves.
    for module in reversed(list(network.modules())):
        _call_without_arguments(module, "reset_parameters")
    _call_without_arguments(network, "init_weights")
    for parameter in network.parameters():
        if not parameter.isfinite().all():
            nn.init.normal_(parameter, std=0.02)


def _call_without_arguments(module: nn.Module, name: str) -> None:
    """Call a method that may be missing, or may be one that needs arguments and so is none of
    torch's or timm's."""
    method = getattr(module, name, None)
    if callable(method) and all(
        p.default is not p.empty for p in inspect.signature(method).parameters.values()
    ):
        method()
