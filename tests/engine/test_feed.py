"""Where the images lie does not matter: on the device, streamed from the host, mapped from disk; the same batches, the same weights, bit for bit."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch

from composer.data.mapped import FOLDER
from composer.data.sets import Split, data_set
from composer.engine import images
from composer.engine.feed import Feed
from composer.engine.images import Resident, Streamed, place_of
from composer.engine.session import Session, Settings
from composer.engine.streams import Streams
from composer.recipe.load import load
from composer.recipe.types import Use

CPU = torch.device("cpu")
AUGMENT = (Use("crop", "augment", "crop", {"pad": 1}), Use("flip", "augment", "flip", {}), Use("mixup", "augment", "mixup", {}))


def some(n: int, extra: int = 0):
    generator = torch.Generator().manual_seed(n)

    def split(k):
        return Split(torch.randint(0, 256, (k, 3, 6, 5), generator=generator, dtype=torch.uint8), torch.randint(0, 4, (k,), generator=generator))

    return data_set("some", split(n), split(3), 4, extra=split(extra) if extra else None, extra_fraction=0.3 if extra else 0.0)


def feed(dataset, streamed: bool, **more) -> Feed:
    made = Feed(dataset, torch.arange(len(dataset.train))[2:], batch_size=8, streams=Streams(3), augment=AUGMENT, **more)
    if streamed:
        made.held["images"] = Streamed([s.x for s in made.splits], CPU)
    return made


@pytest.mark.parametrize("extra", [0, 5])
@pytest.mark.parametrize("keep_last", [True, False])
def test_streamed_batches_are_the_resident_ones(extra, keep_last):
    dataset = some(31, extra)
    one, two = feed(dataset, False, keep_last=keep_last), feed(dataset, True, keep_last=keep_last)
    assert isinstance(one.images, Resident) and isinstance(two.images, Streamed)
    seen = 0
    for epoch in (1, 2, 3):
        for a, b in zip(one.batches(epoch, 10 * epoch), two.batches(epoch, 10 * epoch), strict=True):
            assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and torch.equal(a.i, b.i) and torch.equal(a.y_soft, b.y_soft)
            seen += 1
    assert seen == 3 * one.steps


def test_rows_and_images_are_what_the_streams_say():
    """Written out here: the order of an epoch, the extra rows in laps of their own, bytes over the scale; from any batch on."""
    dataset = some(31, 5)
    made = Feed(dataset, torch.arange(31), batch_size=8, streams=Streams(3))
    own, other = 6, 2
    assert (made.own, made.from_extra, made.steps) == (own, other, 6)
    pool, labels = torch.cat([dataset.train.x, dataset.extra.x]), torch.cat([dataset.train.y, dataset.extra.y])
    for epoch in (1, 2):
        order = Streams(3).permutation("data/order", epoch, 31)
        for k, batch in enumerate(made.batches(epoch, 0)):
            places = [((epoch - 1) * made.steps + k) * other + j for j in range(other)]
            more = [int(Streams(3).permutation("data/extra", at // 5, 5)[at % 5]) + 31 for at in places]
            rows = torch.cat([order[k * own:(k + 1) * own], torch.tensor(more)])
            assert torch.equal(batch.i, rows) and torch.equal(batch.y, labels[rows]) and torch.equal(batch.x, pool[rows].float() / 255)
    late = list(made.batches(2, 7, 4))
    assert len(late) == 2 and torch.equal(late[0].i, list(made.batches(2, 0))[4].i)


def test_the_next_rows_are_gathered_while_a_step_runs(monkeypatch):
    """By one thread, one batch ahead; a loop that ends early leaves no thread behind; an error of the thread is the loop's."""
    made, gathered, plain = feed(some(40), True), [], Streamed._gather
    ready = threading.Event()

    def gather(self, rows, out):
        gathered.append(threading.current_thread().name)
        if len(gathered) == 2:
            ready.set()
        return plain(self, rows, out)

    monkeypatch.setattr(Streamed, "_gather", gather)
    before = threading.active_count()
    batches = made.batches(1, 0)
    next(batches)
    assert ready.wait(5), "the second batch is not gathered before it is asked for"
    assert len(set(gathered)) == 1 and threading.main_thread().name not in gathered
    batches.close()
    assert threading.active_count() == before and len(gathered) <= 3
    monkeypatch.setattr(Streamed, "_gather", lambda *args: (_ for _ in ()).throw(OSError("the disk is gone")))
    with pytest.raises(OSError, match="gone"):
        list(made.batches(1, 0))


# -- runs ------------------------------------------------------------------------------------------------------------------------------


def test_a_run_from_disk_has_the_same_bits(go, tmp_path, tiny):
    """mart_ours, with augmentation and validation: weights, key and metrics; and the place is really the disk."""
    crop = {"augment.crop": "{pad=1}"}
    plain, disk = go("mart_ours", tmp_path / "a", **crop), go("mart_ours", tmp_path / "b", settings={"data_on": "disk", "data_root": tmp_path / "data"}, **crop)
    assert disk["weights_sha256"] == plain["weights_sha256"] and disk["prefix_key"] == plain["prefix_key"] and disk["metrics"] == plain["metrics"]
    session = Session(load("mart_ours", setting=tiny), 0, Settings(out=tmp_path, device="cpu", data_on="disk", data_root=tmp_path / "data"))
    made = session.feed(session.nodes[0].segment)
    assert made.place == "disk" and isinstance(made.images, Streamed) and session.dataset.train.mapped
    assert {p.suffix for p in (tmp_path / "data" / FOLDER).iterdir()} == {".npy", ".txt"}
    assert made.images is session.feed(session.nodes[0].segment).images, "the images are set up once"


def test_a_run_streamed_from_the_host_has_the_same_bits(go, tmp_path, monkeypatch):
    plain = go("trades", tmp_path / "a")
    monkeypatch.setattr("composer.engine.feed.place_of", lambda *args: "host")
    assert go("trades", tmp_path / "b")["weights_sha256"] == plain["weights_sha256"]


def test_where_images_go(monkeypatch):
    gpu = SimpleNamespace(type="cuda")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=100))
    found = {(asked, size, mapped): place_of(asked, size, mapped, gpu) for asked in ("auto", "device", "host", "disk") for size in (25, 26) for mapped in (False, True)}
    assert found["auto", 25, False] == found["auto", 25, True] == "device" and found["auto", 26, False] == "host" and found["auto", 26, True] == "disk"
    assert all(place == "device" for (asked, *_), place in found.items() if asked == "device")
    assert found["host", 25, False] == "host" and found["disk", 25, True] == "disk"
    assert place_of("host", 1, False, CPU) == "device" and place_of("auto", 1, True, CPU) == "disk"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_places_agree_on_cuda():
    """The device's own gather, pinned memory and the side stream give the same bytes; a step that reads a batch late still finds it whole."""
    device = torch.device("cuda")
    dataset = some(300, 50)
    made = {on: Feed(dataset, torch.arange(300), batch_size=16, streams=Streams(3, device), augment=AUGMENT, device=device, data_on=on) for on in ("device", "host")}
    assert isinstance(made["device"].images, Resident) and isinstance(made["host"].images, Streamed)
    for a, b in zip(made["device"].batches(1, 0), made["host"].batches(1, 0), strict=True):
        busy = torch.ones(2048, 2048, device=device)
        for _ in range(20):
            busy = busy @ busy / 2048
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and torch.equal(a.i, b.i)


def test_a_ring_of_pinned_buffers_is_used_in_turn(monkeypatch):
    """On a CPU the ring is simulated: no buffer is filled again before its copy was waited for, three batches later."""
    made = feed(some(80), True)
    source, log = made.images, []

    class Event:
        def __init__(self, k):
            self.k = k

        def record(self):
            log.append(("copied", self.k))

        def synchronize(self):
            log.append(("free", self.k))

    monkeypatch.setattr(Streamed, "_ring", lambda self, most: [(torch.empty(most, 3, 6, 5, dtype=torch.uint8), Event(k)) for k in range(images.RING)])
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args, plain=torch.Tensor.to, **more: self.clone() if more.get("non_blocking") else plain(self, *args, **more))
    rows = made._rows_of(1, 0)
    found = [x.clone() for x in source.fetch(rows, 8)]
    assert all(torch.equal(x, made.splits[0].x[here]) for x, (here, _) in zip(found, rows, strict=True))
    for k in range(images.RING):
        assert [what for what, which in log if which == k][:3] == ["free", "copied", "free"]
