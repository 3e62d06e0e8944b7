"""What a user may name, and what he is told where it is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from composer.errors import ComposerError
from composer.subject import asked as words
from composer.subject import door, find, library
from composer.subject.foreign import import_model
from composer.subject.normalise import parse

CODE = '''
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def number():
    return 3

def broken():
    raise RuntimeError("no weights here")

class Holder:
    made = net()
    number = 5

class Lost(nn.Module):
    """A tensor that is no buffer stays where it is."""
    def __init__(self, key=""):
        super().__init__()
        self.body, self.key, self.scale = net(), key, torch.ones(1, 10, device="cpu" if key else "meta")
    def forward(self, x):
        return self.body(x) * self.scale + ({}[self.key] if self.key else 0)

def keyless():
    return Lost("no such key")

def nowhere():
    return net().to("meta")

def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))

def leaves():
    raise SystemExit("usage: train.py")

def two_lines():
    raise RuntimeError("first line\\nsecond line")
'''


def test_a_run_by_name_folder_beginning_and_file(store: Any) -> None:
    names = (store.run, str(store.folder), "standard", str(store.folder / "final.safetensors"))
    digests = {find.subject(store.asked(name))[0].digest for name in names}
    assert len(digests) == 1


def test_the_checkpoints_of_a_runs_nodes(store: Any) -> None:
    node = next((store.out / "nodes").iterdir())
    for file in ("checkpoint.safetensors", next(node.glob("best-*.safetensors")).name):
        subject, _ = find.subject(store.asked(str(node / file)))
        assert subject.kind == "checkpoint" and subject.facts["run"] == store.run
        expected = {k: v for k, v in subject.model.state_dict().items()}
        assert all(torch.equal(expected[k], v) for k, v in subject.weights.items())
    assert find.subject(store.asked(str(node / file)))[0].digest == find.subject(store.asked(store.run))[0].digest


def test_a_run_knows_its_network_and_normalisation(store: Any) -> None:
    for more in ({"normalise": "none"}, {"setting": "digits"}, {"model": "small_cnn"}):
        with pytest.raises(ComposerError, match="which knows its own"):
            find.subject(store.asked(store.run, **more))


def test_an_unfinished_run_and_an_unknown_name(store: Any, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(ComposerError, match="is not finished"):
        find.subject(store.asked(str(tmp_path)))
    with pytest.raises(ComposerError, match="no run, no file of weights and no module:function") as caught:
        find.subject(store.asked(store.run[:-1] + "7"))
    assert f"did you mean {store.run}?" in caught.value.fix
    torch.save({}, tmp_path / "weights.pt")
    for name, fix in ((str(tmp_path / "weigths.pt"), f"did you mean {tmp_path}/weights.pt?"), (str(tmp_path / "nowhere" / "x.pt"), "name a file")):
        with pytest.raises(ComposerError, match="there is no file ") as caught:
            find.subject(store.asked(name))
        assert fix in caught.value.fix and caught.value.why


def test_functions(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_for_composer.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    by_name, by_file = (find.subject(store.asked(t, data="digits"))[0] for t in ("mine_for_composer:net", "mine_for_composer.py:net"))
    assert isinstance(by_name.model, nn.Sequential) and not by_name.model.training and by_name.digest == by_file.digest
    assert isinstance(import_model("mine_for_composer:Holder.made")[0], nn.Sequential)
    for target, what in (("mine_for_composer:number", "gave a int"), ("mine_for_composer:broken", "failed when it was called"),
                         ("mine_for_composer:nothing", "has no 'nothing'"), ("mine_for_nobody:net", "cannot be imported"),
                         ("mine_for_composer:Holder.number", "is a int"), ("mine_for_composer:nowhere", "holds no numbers"), ("mine_for_composer:lazy", "holds no numbers"),
                         ("mine_for_composer:leaves", "SystemExit: usage"), ("mine_for_composer:two_lines", "RuntimeError: first line\\nFix")):
        with pytest.raises(ComposerError, match=what):
            find.subject(store.asked(target, data="digits"))


def test_a_forward_pass_that_fails_is_told_with_a_remedy(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_for_composer.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    for name, why, fix in (("Lost", "not on the expected device", "register_buffer"), ("keyless", "KeyError: 'no such key'", "batch of images alone")):
        with pytest.raises(ComposerError, match="cannot take images of 1x8x8") as caught:
            door.evaluate(store.asked(f"mine_for_composer.py:{name}", data="digits", protocol="cheap"))
        assert why in caught.value.why and fix in caught.value.fix


def test_a_file_that_cannot_be_imported(store: Any, tmp_path: Path) -> None:
    for text, why, fix in (("def net(:\n", "SyntaxError", "mend the file"), ("import sys\nsys.exit(3)\n", "SystemExit: 3", "mend the file")):
        (tmp_path / "bad.py").write_text(text)
        with pytest.raises(ComposerError, match="cannot be imported") as caught:
            find.subject(store.asked(f"{tmp_path}/bad.py:net", data="digits"))
        assert why in caught.value.why and fix in caught.value.fix


def test_code_is_part_of_what_was_judged(store: Any, tmp_path: Path) -> None:
    """The same weights under changed code are another subject."""
    digests = set()
    for scale in (1, 2):
        (tmp_path / f"v{scale}.py").write_text(CODE.replace("nn.Linear(64, 10))", f"nn.Linear(64, 10), nn.Softplus(beta={scale}))"))
        digests.add(find.subject(store.asked(f"{tmp_path}/v{scale}.py:net", data="digits"))[0].digest)
    assert len(digests) == 2


def test_a_function_behind_a_normalisation_that_was_said(store: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    subject, bench = find.subject(store.asked(f"{tmp_path}/mine.py:net", data="digits", normalise="mean=0.5,std=1/4"))
    net = import_model(f"{tmp_path}/mine.py:net")[0]
    with torch.no_grad():
        assert torch.allclose(subject.model(bench.x[:9]), net((bench.x[:9] - 0.5) / 0.25), atol=1e-6)


def test_numbers_of_a_normalisation(digits: Any) -> None:
    assert parse("half", digits).mean == (0.5,) and parse("none", digits).mean is None
    assert parse("mean=0.5, std=1/255", digits).std == (1 / 255,)
    for wrong in ("mean=0.5", "mean=0.5,std=0", "cifra10", "mean=a,std=b", "mean=1/0,std=1"):
        with pytest.raises(ComposerError, match="this is not a normalisation"):
            parse(wrong, digits)
    with pytest.raises(ComposerError, match="of 3 channels"):
        parse("cifar10", digits)


def test_networks_in_words() -> None:
    assert words.model_table("resnet18") == '{ use = "resnet18" }'
    assert words.model_table("torchvision:resnet50") == '{ use = "torchvision", name = "resnet50" }'
    assert "6n+4" in words.model_table("wrn-34-10") and "6n+2" in words.model_table("wrn-32-10") and "width = 10" in words.model_table("wrn-32-10")


def test_what_the_command_line_says_of_judging(store: Any) -> None:
    recipe = words.ground(store.asked("x", data="digits", protocol="cheap", eps="8/255", norm="l2", n=16, model="mlp", sets=("evaluate.pgd-20.steps=2",)))
    assert recipe.threat.eps == pytest.approx(8 / 255) and recipe.threat.norm.use == "l2" and recipe.model.use == "mlp"
    measures = words.measures(recipe, 16)
    assert {m.name: m.n for m in measures} == {"clean": 16, "pgd-20": 16} and measures[1].options["steps"] == 2
    with pytest.raises(ComposerError, match="there is no bench for it"):
        words.ground(store.asked("x", data="npz"))


@pytest.mark.parametrize(("more", "where", "fix"), [
    ({"protocol": "cheapp"}, "--protocol cheapp", "cheap"), ({"eps": "8/0"}, "--eps 8/0", "8/255"), ({"norm": "linff"}, "--norm linff", "linf"),
    ({"model": "small_cnnn"}, "--model small_cnnn", "small_cnn"), ({"protocol": "cheap", "sets": ("evaluate.n=4", "evaluate.pdg-20.n=3")}, "--set #2", "pgd-20")])
def test_a_mistake_is_told_of_the_flag_that_was_typed(store: Any, more: dict[str, Any], where: str, fix: str) -> None:
    with pytest.raises(ComposerError) as caught:
        words.ground(store.asked("x", data="digits", **more))
    (one,) = caught.value.all
    assert one.where.startswith(where) and fix in one.fix


def test_numbers_that_cannot_be(store: Any) -> None:
    for more, what in (({"n": 0}, "--n 0"), ({"n": 361}, "there are 360 test images"), ({"batch_size": 0}, "--batch-size 0"),
                       ({"sets": ('evaluate.p={ use = "pgd", steps = 0 }',)}, "moves no image"), ({"sets": ('evaluate.p={ use = "fgsm", eps = -0.1 }',)}, "eps = -0.1")):
        with pytest.raises(ComposerError, match=what):
            door.evaluate(store.asked(store.run, protocol="cheap", **more))
    with pytest.raises(ComposerError, match="this is no table"):
        words.ground(store.asked("x", data="digits", model='{ use = "small_cnn"'))


def test_an_export_that_cannot_be_written_is_told_before_the_attacks(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "judge", lambda *_, **__: pytest.fail("attacked first"))
    (tmp_path / "file").write_text("")
    for file, why in ((tmp_path / "x.csv", "ending"), (tmp_path / "file" / "x.npz", "cannot")):
        with pytest.raises(ComposerError, match="--export") as caught:
            door.evaluate(store.asked(store.run, protocol="cheap"), export=file)
        assert why in caught.value.why and not list(tmp_path.glob(".probe*"))


def test_library_networks_without_their_weights(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ComposerError, match="are not on this machine") as caught:
        library.pretrained("torchvision", "resnet18", False)
    assert "--download" in caught.value.fix
    with pytest.raises(ComposerError, match="no weights 'V9'"):
        library.pretrained("torchvision", "resnet18:V9", False)
    with pytest.raises(ComposerError, match="no classification network 'resnet19'"):
        library.pretrained("torchvision", "resnet19", False)


def test_library_weights_that_lie_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = models.get_model_weights("squeezenet1_1").DEFAULT
    file = tmp_path / "hub" / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    file.parent.mkdir(parents=True)
    net = models.squeezenet1_1(weights=None)
    torch.save(net.state_dict(), file)
    found, normalisation, lines = library.pretrained("torchvision", "squeezenet1_1", False)
    assert all(torch.equal(v, found.state_dict()[k]) for k, v in net.state_dict().items())
    assert normalisation.mean == (0.485, 0.456, 0.406) and "224x224" in lines[0]


def test_a_torchvision_file_has_torchvisions_names(store: Any, tmp_path: Path) -> None:
    from torchvision import models

    net = models.get_model("squeezenet1_1", weights=None, num_classes=10)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    recipe = words.ground(store.asked("x", data="cifar10", model="torchvision:squeezenet1_1"))
    from composer.subject.files import _network, _put, held

    class Shape:
        shape, classes = (3, 32, 32), 10

    made = _network(recipe.model, Shape)
    _put(made, held(tmp_path / "w.pt", made.state_dict()).state)
    assert all(torch.equal(v, made.state_dict()[k]) for k, v in net.state_dict().items())


def test_measures_of_training_are_refused_for_a_bare_model_and_taken_for_a_run(store: Any, tmp_path: Path) -> None:
    sets = ('evaluate.val={ use = "clean", split = "val" }',)
    result = door.evaluate(store.asked(store.run, sets=sets))
    assert result["n"]["val"] == 64 and "val" not in result["data"]["images"]
    torch.save(store.weights, tmp_path / "w.pt")
    with pytest.raises(ComposerError, match="a bare model does not know its training"):
        door.evaluate(store.asked(str(tmp_path / "w.pt"), model="small_cnn", normalise="none", data="digits", protocol="cheap", sets=sets))
