"""`composer plugin new` and `composer plugin check`: begin a plugin with its test, and try one file against the contracts."""

from __future__ import annotations

import keyword
from pathlib import Path

from composer.errors import ComposerError, suggest

_HEAD = '"""{name}: say in one line what this plugin brings."""\n\nfrom __future__ import annotations\n\n'

_LOSS = '''from typing import Annotated

import torch.nn.functional as F

from composer import loss
from composer.shapes import Gt, Labels, Logits, PerExample


@loss
def {name}(logits: Logits, y: Labels, *, temperature: Annotated[float, Gt(0)] = 1.0) -> PerExample:
    """Cross entropy of the logits over a temperature.

    Formula: -log softmax(z / t)_y   [nats]
    Paper:   say which, with the equation's number
    """
    return F.cross_entropy(logits / temperature, y, reduction="none")
'''
_LOSS_TEST = '''def test_at_temperature_one_it_is_cross_entropy():
    t = tensors(dtype=torch.float64)
    torch.testing.assert_close({name}(t["logits"], t["y"]), -t["logp"].gather(1, t["y"][:, None])[:, 0])
'''
_VIEW = '''from composer import view
from composer.shapes import Labels, PerExample, Probs


@view
def {name}(probs: Probs, y: Labels) -> PerExample:
    """Probability of the true class.

    Formula: p_y   [1]
    Paper:   say which, with the equation's number
    """
    return probs.gather(1, y.unsqueeze(1)).squeeze(1)
'''
_VIEW_TEST = '''def test_it_lies_between_zero_and_one():
    t = tensors()
    out = {name}(t["probs"], t["y"])
    assert ((out > 0) & (out < 1)).all()
'''
_GAIN = '''from composer import gain
from composer.shapes import Labels, PerExample, Probs


@gain(neutral={{"power": 0.0}})
def {name}(probs: Probs, y: Labels, *, power: float = 1.0) -> PerExample:
    """Weight that grows as the true class becomes unlikely.

    Formula: (2 - p_y)^power   [1]
    Paper:   say which, with the equation's number
    """
    return (2 - probs.gather(1, y.unsqueeze(1)).squeeze(1)) ** power
'''
_GAIN_TEST = '''def test_unlikely_examples_weigh_more():
    probs = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    out = {name}(probs, torch.tensor([0, 0]))
    assert out[1] > out[0]
'''
_RADIUS = '''from typing import Annotated

from composer import radius
from composer.shapes import Ge, Labels, PerExample, Probs, Scalar


@radius(neutral={{"alpha": 0.0}})
def {name}(clean_probs: Probs, y: Labels, eps: Scalar, *, alpha: Annotated[float, Ge(0)] = 1.0) -> PerExample:
    """Radius that shrinks where the natural image is classified without confidence.

    Formula: eps · p_y^alpha   [pixels]
    Paper:   say which, with the equation's number
    """
    return eps * clean_probs.detach().gather(1, y.unsqueeze(1)).squeeze(1) ** alpha
'''
_RADIUS_TEST = '''def test_it_never_exceeds_the_threat():
    t = tensors()
    assert ({name}(t["clean_probs"], t["y"], t["eps"]) <= t["eps"]).all()
'''
_INNER = '''from composer import inner
from composer.shapes import Images, Norm, Scalar, Start, Tensor, ThreatPixels, ThreatSteps


@inner
def {name}(x: Images, climb, eps: Scalar, draws, *, step: ThreatPixels, steps: ThreatSteps, start: Start, norm: Norm) -> dict[str, Tensor]:
    """Projected ascent with steps of a fixed length.

    Formula: x_(t+1) = project(x_t + step · steepest(grad))   [pixels]
    Paper:   say which, with the equation's number
    """
    ball = norm(x, eps)
    point = ball.project(start(x, ball, draws["start"][0]))
    for _ in range(steps):
        point = ball.project(point + step * ball.steepest(climb(point=point).grads["point"]))
    return {{"point": point}}
'''
_INNER_TEST = '''def test_it_finds_the_best_attack_on_a_linear_model():
    done = {{r.contract for r in contracts("inner", {name})}}
    assert {{"optimum linf", "optimum l2", "inside"}} <= done
'''
_PART = '''from typing import Annotated

import torch

from composer import part
from composer.shapes import Ge, Le, Logits, Tensor


@part(neutral={{"decay": 0.0}})
class {name}:
    """Moving average of the logits by position in the batch.

    Formula: e_t = decay · e_(t-1) + (1 - decay) · z_t   [logits]
    Paper:   say which, with the equation's number
    """

    makes = ("logits",)
    per_point = True
    writes_model = False

    def __init__(self, *, decay: Annotated[float, Ge(0), Le(1)] = 0.5):
        self.decay = decay
        self.offset = 0             # the batch's row that the rows given begin with: batches are divided among workers and micro-batches

    def start(self, facts) -> None:
        self.memory = {{point: torch.zeros(facts.batch_size, facts.classes, device=facts.device) for point in facts.points}}

    def read(self, logits: Logits, *, point: str) -> dict[str, Tensor]:
        held = self.memory[point][self.offset : self.offset + len(logits)]
        return {{"logits": self.decay * held + (1 - self.decay) * logits}}

    def after_step(self, logits: Logits, *, point: str) -> None:
        self.memory[point][: len(logits)].copy_(self.read(logits.detach(), point=point)["logits"])

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.memory)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for point, memory in self.memory.items():
            memory.copy_(state[point])
'''
_PART_TEST = '''def test_it_can_be_saved_and_goes_on_bit_for_bit():
    assert "resume" in {{r.contract for r in contracts("part", {name})}}
'''
_SCHEDULE = '''from composer import schedule
from composer.options import whole_epochs
from composer.shapes import Epochs


@schedule
def {name}(epoch: int, epochs: int, *, value: float, after: Epochs = "1/2") -> float:
    """Half the value once some epochs are completed.

    Formula: value, then value / 2 from the epoch after `after`   [unit of value]
    Paper:   say which, with the equation's number
    """
    return value / 2 if epoch > whole_epochs(after, epochs) else value
'''
_SCHEDULE_TEST = '''def test_it_halves_after_half_the_run():
    assert [{name}(epoch, 4, value=1.0) for epoch in (1, 2, 3, 4)] == [1.0, 1.0, 0.5, 0.5]
'''
_PHASE = '''from composer import phase


@phase
def {name}(terms):
    """Halve nothing, but name every term's weight: an edit of the recipe for some epochs.

    Formula: weight_t = 0.5 for every term t   [1]
    Paper:   say which, with the equation's number
    """
    return {{"set": {{f"terms.{{term}}.weight": 0.5 for term in terms}}, "drop": [], "put": {{}}}}
'''
_PHASE_TEST = '''def test_it_sets_every_weight():
    assert {name}(("ce",)) == {{"set": {{"terms.ce.weight": 0.5}}, "drop": [], "put": {{}}}}
'''
TEMPLATES = {"loss": (_LOSS, _LOSS_TEST), "view": (_VIEW, _VIEW_TEST), "gain": (_GAIN, _GAIN_TEST), "radius": (_RADIUS, _RADIUS_TEST),
             "inner": (_INNER, _INNER_TEST), "part": (_PART, _PART_TEST), "schedule": (_SCHEDULE, _SCHEDULE_TEST), "phase": (_PHASE, _PHASE_TEST)}


def scaffold(name: str, kind: str = "loss", folder: str | Path = "plugins") -> tuple[Path, Path]:
    """Write `folder/NAME.py`, a small working primitive to change, and `folder/test_NAME.py` beside it; returns both.

    Errors: a name Python does not allow, a kind without a template, a file that exists (nothing is overwritten).
    """
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith(("_", "test_")):
        raise ComposerError(f"a plugin cannot be called '{name}'", why="the name becomes a function's and a file's",
                            fix="use lower-case letters, digits and underscores, a letter first, not test_")
    if kind not in TEMPLATES:
        raise ComposerError(f"there is no template for kind '{kind}'", fix=suggest(kind, TEMPLATES, "templates"))
    plugin, test = Path(folder) / f"{name}.py", Path(folder) / f"test_{name}.py"
    taken = [path for path in (plugin, test) if path.exists()]
    if taken:
        raise ComposerError(f"'{taken[0]}' exists", why="nothing is overwritten", fix="choose another name or folder")
    body, check = TEMPLATES[kind]
    imports = "".join(f"import {module}\n" for module in ("torch",) if "torch." in check)
    kit = "contracts, plugin, tensors" if "tensors(" in check else "contracts, plugin"
    plugin.parent.mkdir(parents=True, exist_ok=True)
    plugin.write_text(_HEAD.format(name=name) + body.format(name=name), encoding="utf-8")
    test.write_text("from __future__ import annotations\n\n" + imports + ("\n" if imports else "") + f"from composer.testing import {kit}\n\n"
                    f"{name} = plugin(__file__).{name}\n\n\ndef test_contracts():\n    contracts(\"{kind}\", {name})\n\n\n" + check.format(name=name),
                    encoding="utf-8")
    return plugin, test


def check_plugin(path: str | Path) -> list[tuple[str, str, bool, str]]:
    """Load one plugin file, or every plugin of a folder, and run the contracts on each primitive it registers.

    Returns rows (primitive, contract, ok, message), primitives as "kind/name". The registry is left as it was.
    Errors: ComposerError where the file is missing, cannot be loaded, or registers nothing.
    """
    from composer import plugins
    from composer._testing.scratch import scratch
    from composer.registry import REGISTRY
    from composer.testing import contracts

    path = Path(path).expanduser().resolve()
    files = plugins.files_of(path) if path.is_dir() else [path]
    with scratch():
        plugins.load_shipped(without=files)
        for file in files:
            plugins.load_file(file, f"plugin check {path}")
        made = [p for p in REGISTRY.all() if p.file and p.file.resolve() in files]
        if not made:
            raise ComposerError("no primitive is registered", where=str(path), why="a plugin registers by the decorators of composer",
                                fix="put @loss (or another kind) above the function")
        return [(r.primitive, r.contract, r.ok, r.message) for p in made for r in contracts(p.kind, p.name, strict=False)]
