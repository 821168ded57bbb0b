"""The doctor finds libraries by what their files say."""

from pathlib import Path

import pytest

from airlam import doctor


def test_llvm_versions_are_read_off_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["libLLVM-15.so.1", "libLLVM.so.19.1", "libLLVM-17.so"]
    for name in names:
        (tmp_path / name).touch()
    monkeypatch.setattr(doctor, "LLVM_PATTERNS", (str(tmp_path / "libLLVM*.so*"),))
    monkeypatch.delenv("DRJIT_LIBLLVM_PATH", raising=False)
    assert [major for major, _ in doctor.llvm_libraries()] == [19, 17, 15]
    monkeypatch.setenv("DRJIT_LIBLLVM_PATH", str(tmp_path / "libLLVM-15.so.1"))
    assert doctor.llvm_libraries()[0][0] == 15
    assert doctor._ray_tracing().works is None


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
