"""The doctor's findings and the way into MLflow's page."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from composer import doctor, ui
from composer.errors import ComposerError


def test_report_is_json_and_reads_well(tmp_path):
    plugins = [SimpleNamespace(path="mine/mail.py", stands_for="plugins/mail.py"), SimpleNamespace(path="x.py", stands_for=None)]
    report = doctor.doctor(tmp_path / "runs", tmp_path / "data", plugins)
    json.dumps(report)
    text = "\n".join(doctor.lines(report))
    for part in ("python", "torch", "pyautoattack", "GiB free", "not there yet", "mine/mail.py stands in for plugins/mail.py", "CPUs", "load"):
        assert part in text
    assert len(report["stand_ins"]) == 1


def test_torch_is_imported_only_when_asked(tmp_path):
    code = f"import sys; from composer.doctor import doctor; doctor({str(tmp_path)!r}); print('torch' in sys.modules, 'mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False False\n"


def test_missing_and_too_old_packages_say_what_will_not_work(monkeypatch, tmp_path):
    real = doctor.metadata.version

    def version(name):
        if name == "pyautoattack":
            raise doctor.metadata.PackageNotFoundError(name)
        return "3.2.0" if name == "mlflow" else real(name)

    packaging = pytest.importorskip("packaging.specifiers")
    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setattr(doctor, "_requirements", lambda: {"mlflow": packaging.SpecifierSet(">=3.13,<4")})
    report = doctor.doctor(tmp_path)
    assert "pyautoattack  missing: the measure aa will not work" in doctor.lines(report)
    assert any("pyautoattack" in each for each in report["problems"]) and any("mlflow 3.2.0" in each and "3.13" in each for each in report["problems"])


def test_a_foreign_composer_is_one_sentence_and_cheap(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "HERE", doctor.HERE)
    assert doctor.foreign_composer() is None
    best = min(_timed(doctor.foreign_composer) for _ in range(5))
    assert best < 0.005, f"{best * 1000:.1f} ms"
    (tmp_path / "mosaicml-0.32.1.dist-info").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    said = doctor.foreign_composer()
    assert "MosaicML" in said and "pip uninstall" in said and "\n" not in said


def test_another_package_of_our_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "composer", SimpleNamespace(__file__=str(tmp_path / "composer" / "__init__.py")))
    assert str(tmp_path) in doctor.foreign_composer()


def test_files_of_mosaicml_mixed_into_ours(tmp_path, monkeypatch):
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "trainer.py").touch()
    monkeypatch.setattr(doctor, "HERE", tmp_path)
    assert doctor.foreign_composer()


def _timed(work):
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


@pytest.mark.parametrize("text, ours", [("#!/usr/bin/python\nfrom composer.cli import main\n", True),
                                        ("#!/usr/bin/python\nfrom composer.cli.launcher import main\n", False), ("#!/usr/bin/env php\n", False)])
def test_the_command_of_the_shell(tmp_path, monkeypatch, text, ours):
    script = tmp_path / "composer"
    script.write_text(text)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    said = doctor.foreign_command()
    assert (said is None) if ours else ("rcomposer" in said and str(script) in said)


def test_disk_of_a_folder_that_is_not_there_yet(tmp_path):
    facts = doctor.disk(tmp_path / "a" / "b")
    assert not facts["exists"] and facts["writable"] and facts["free_gib"] >= 0


# -- ui

@pytest.fixture
def executed(monkeypatch):
    """The command line that the process would become."""
    calls = []
    monkeypatch.setattr(ui.os, "execve", lambda *args: calls.append(args))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return calls


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_server_gets_absolute_addresses(tmp_path, monkeypatch, executed, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    port = free_port()
    ui.ui("runs", port)
    (_, line, environment), = executed
    assert line[line.index("--backend-store-uri") + 1] == f"sqlite:///{tmp_path}/runs/mlflow.db"
    for option in ("--default-artifact-root", "--artifacts-destination"):
        assert line[line.index(option) + 1] == (tmp_path / "runs" / "artifacts").as_uri()
    assert line[line.index("--port") + 1] == str(port) and environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    said = capsys.readouterr()
    assert said.out == "" and f"http://127.0.0.1:{port}" in said.err


def test_a_port_in_use_is_one_sentence(tmp_path, executed):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ComposerError, match=f"port {port} .*in use") as caught:
            ui.ui(tmp_path, port)
    assert f"--port {port + 1}" in caught.value.fix and not executed


@pytest.mark.parametrize("port", [70000, -1])
def test_a_port_that_is_none(tmp_path, executed, port):
    with pytest.raises(ComposerError, match=f"port {port}"):
        ui.ui(tmp_path, port)


def test_no_store_and_no_mlflow(tmp_path, monkeypatch, executed):
    with pytest.raises(ComposerError, match="no store"):
        ui.ui(tmp_path / "none")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ComposerError, match="mlflow is not installed"):
        ui.ui(tmp_path)


def test_a_server_elsewhere_is_named_not_started(tmp_path, monkeypatch, executed, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@tracking.example")
    ui.ui(tmp_path)
    said = capsys.readouterr().err
    assert "https://tracking.example" in said and "secret" not in said and not executed
