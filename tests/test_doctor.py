"""The doctor finds libraries by what their files say."""

import os
from pathlib import Path

import pytest

from airlam import doctor, llvm


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("libLLVM-15.so.1", "libLLVM.so.19.1", "libLLVM-17.so"):
        (tmp_path / name).touch()
    monkeypatch.setattr(llvm, "LLVM_PATTERNS", (str(tmp_path / "libLLVM*.so*"),))
    monkeypatch.delenv("DRJIT_LIBLLVM_PATH", raising=False)
    return tmp_path


def test_llvm_versions_are_read_off_the_names(libraries: Path) -> None:
    assert [major for major, _ in llvm.llvm_libraries()] == [19, 17, 15]
    assert doctor._ray_tracing().detail == f"LLVM 19 at {libraries / 'libLLVM.so.19.1'}"


def test_a_good_library_that_the_user_names_is_taken(
    libraries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = str(libraries / "libLLVM-17.so")
    monkeypatch.setenv("DRJIT_LIBLLVM_PATH", named)
    assert llvm.choose_llvm() == named == os.environ["DRJIT_LIBLLVM_PATH"]


@pytest.mark.parametrize("name", ["libLLVM-15.so.1", "libLLVM-18.so"])
def test_an_old_or_absent_one_is_passed_over(
    name: str, libraries: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DRJIT_LIBLLVM_PATH", str(libraries / name))
    newest = str(libraries / "libLLVM.so.19.1")
    assert llvm.choose_llvm() == newest == os.environ["DRJIT_LIBLLVM_PATH"]
    assert name in caplog.text


def test_without_a_good_one_the_doctor_says_what_to_install(
    libraries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (libraries / "libLLVM.so.19.1").unlink()
    (libraries / "libLLVM-17.so").unlink()
    finding = doctor._ray_tracing()
    assert finding.works is None and "LLVM 15" in finding.detail and "libllvm19" in finding.remedy
    assert llvm.choose_llvm() is None and "DRJIT_LIBLLVM_PATH" not in os.environ


def test_a_crash_of_a_library_is_a_finding() -> None:
    works, detail = doctor._try("import os; os.abort()")
    assert not works and detail
    assert doctor._try("print('fine')") == (True, "fine")


def test_every_finding_that_does_not_work_says_how_to_mend_it() -> None:
    findings = [
        *(doctor._optional(name) for name in doctor.OPTIONAL),
        *(map(doctor._weights, doctor.WEIGHTS)),
    ]
    assert all(finding.remedy.startswith("pip install") for finding in findings)
