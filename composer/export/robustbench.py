"""Files for a RobustBench submission: the claim as its leaderboard's JSON, and a loader. What only the authors know is left empty."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from composer import atomic
from composer.export.card import name_of
from composer.subject.types import Bench, Subject

THREATS = {"linf": "Linf", "l2": "L2"}
LOADER = '''"""Loads {name}: images [N,{channels},{height},{width}] in [0,1] -> logits [N,{classes}]."""

from pathlib import Path

{imports}


def load_model(folder=Path(__file__).parent):
    """The network in eval mode, normalisation inside."""
{body}
'''


def write_claim(subject: Subject, bench: Bench, card: dict[str, Any], folder: Path) -> list[Path]:
    """<name>_robustbench.json and <name>_loader.py."""
    name = name_of(subject)
    claim = atomic.write_json(folder / f"{name}_robustbench.json", claim_of(subject, bench, card))
    loader = atomic.write_text(folder / f"{name}_loader.py", loader_of(subject, card))
    return [claim, loader]


def claim_of(subject: Subject, bench: Bench, card: dict[str, Any]) -> dict[str, Any]:
    """The leaderboard's fields. AutoAttack's number stands only where the standard version saw every test image; `open` says what is missing."""
    found, missing = full_autoattack(card, len(bench.y))
    threat = (found or {}).get("threat") or {}
    norm = (threat.get("norm") or {}).get("use", "")
    clean = _percent(found, "clean", len(bench.y))
    missing += ["link, name, authors and venue are the authors' to fill in", "additional_data: whether other images were trained on"]
    missing += [] if clean or not found else ["clean accuracy on all test images was not measured"]
    missing += [] if norm in THREATS or not found else [f"RobustBench has no leaderboard for the norm '{norm}'"]
    missing += [f"doubt: {flag}" for flag in ((found or {}).get("trust") or {}).get("flags", [])]
    return {"link": "", "name": "", "authors": "", "additional_data": None, "number_forward_passes": 1, "dataset": card["data"], "venue": "",
            "architecture": architecture(card), "threat_model": THREATS.get(norm, norm), "eps": _eps(threat.get("eps")), "clean_acc": clean,
            "reported": _percent(found, (found or {}).get("aa", ""), len(bench.y)), "autoattack_acc": _percent(found, (found or {}).get("aa", ""), len(bench.y)),
            "weights": card["weights"], "weights_sha256": card["weights_sha256"], "open": missing, "evaluations": card["evaluations"]}


def full_autoattack(card: dict[str, Any], images: int) -> tuple[dict[str, Any] | None, list[str]]:
    """The evaluation whose standard AutoAttack saw all images, and the name of that measure as `aa`; or why there is none."""
    partial = ""
    for each in card["evaluations"]:
        known = each.get("measures") or {n: {"use": n, "version": "standard"} for n in each["metrics"] if n == "aa"}
        for name, settings in known.items():
            if settings.get("use") != "aa" or settings.get("version", "standard") != "standard":
                continue
            if each["n"].get(name) == images:
                return {**each, "aa": name}, []
            partial = f"AutoAttack saw {each['n'].get(name):,} of {images:,} test images; the leaderboard wants all of them"
    return None, [partial or "AutoAttack (standard) was not measured"]


def architecture(card: dict[str, Any]) -> str:
    """As leaderboards write it."""
    model = card["model"]
    if model["kind"] != "composer":
        return str(model["named"])
    if model["use"] == "wrn":
        return f"WideResNet-{model['options'].get('depth', 34)}-{model['options'].get('width', 10)}"
    return {"resnet18": "ResNet-18", "preact_resnet18": "PreActResNet-18", "vgg16_bn": "VGG-16-BN"}.get(model["use"], model["use"])


def _percent(found: dict[str, Any] | None, name: str, images: int) -> str | None:
    value = ((found or {}).get("metrics") or {}).get(name)
    return f"{100 * value:.2f}" if value is not None and (found or {})["n"].get(name) == images else None


def _eps(eps: float | None) -> str:
    if not eps:
        return ""
    return f"{round(eps * 255)}/255" if abs(eps * 255 - round(eps * 255)) < 1e-6 else f"{eps:g}"


def loader_of(subject: Subject, card: dict[str, Any]) -> str:
    """Python that builds the network as it was named, and puts weights and normalisation in."""
    channels, height, width = card["input"]["shape"]
    if card["model"]["kind"] == "composer":
        imports, lines = ["from composer.export.card import load_card"], [f'return load_card(Path(folder) / "{card["name"]}.json")']
    else:
        made, imports = network_code(subject.built, card)
        lines = [f"network = {made}", f'network.load_state_dict(load_file(Path(folder) / "{card["weights"]}"))']
        imports = sorted([*imports, "from safetensors.torch import load_file"])
        if subject.mean is not None:
            imports = sorted([*imports, "from torch import nn", "from torchvision.transforms import Normalize"])
            lines.append(f"network = nn.Sequential(Normalize({list(subject.mean)}, {list(subject.std or ())}), network)")
        lines.append("return network.eval()")
    return LOADER.format(name=card["name"], channels=channels, height=height, width=width, classes=card["classes"], imports="\n".join(imports),
                         body="\n".join(f"    {line}" for line in lines))


def network_code(built: str, card: dict[str, Any]) -> tuple[str, list[str]]:
    """An expression that makes the network, and the imports it needs."""
    kind, _, name = built.partition(":")
    classes, channels = card["classes"], card["input"]["shape"][0]
    if kind == "torchvision":
        return f'models.get_model("{name.partition(":")[0]}", weights=None, num_classes={classes})', ["from torchvision import models"]
    if kind == "timm":
        return f'timm.create_model("{name}", num_classes={classes}, in_chans={channels})', ["import timm"]
    if kind.endswith(".py"):
        return f'runpy.run_path("{kind}")["{name}"]()', ["import runpy"]
    return f"{kind}.{name}()", [f"import {kind}"]
