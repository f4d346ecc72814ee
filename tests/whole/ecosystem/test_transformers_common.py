"""transformers' own common tests on our models: `-m conformance`.

The tests are those of the installed version, in the sources that pip fetches into a temporary folder. What they import
and the sources lack has stand-ins here. Each test that fails must stand in `EXEMPTED` with a reason that is not a fault
of ours; an exemption whose test passes is one too many.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest
import transformers


pytestmark = [pytest.mark.conformance, pytest.mark.slow]

ROOT = Path(__file__).parents[3]
TESTERS = Path(__file__).with_name("transformers_testers.py")
CLASSES = re.findall(r"^class (\w+Test)\(", TESTERS.read_text(encoding="utf-8"), re.MULTILINE)
OUTCOMES = "outcomes.json"

RECORDER = f"""
import json
from pathlib import Path

outcomes, messages = {{}}, {{}}
ORDER = ["skipped", "passed", "failed"]

def pytest_runtest_logreport(report):  # also of subtests, under the name of their test
    if report.when != "call" and report.passed:
        return
    _, name, test = report.nodeid.split("::")
    seen = outcomes.setdefault(name, {{}})
    seen[test] = max(seen.get(test, "skipped"), report.outcome, key=ORDER.index)
    if report.failed:
        messages[f"{{name}}::{{test}}"] = report.longreprtext[-2000:]

def pytest_sessionfinish():
    Path({OUTCOMES!r}).write_text(json.dumps([outcomes, messages]))
"""

STAND_INS = {
    "conftest.py": RECORDER,
    "fetch_hub_objects_for_ci.py": "def url_to_local_path(url):\n    return url\n",
    "tests/__init__.py": "",
    "tests/exporters/__init__.py": "",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/generation/__init__.py": "",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/models/__init__.py": "",
    "tests/models/radio/__init__.py": "",
    "tests/models/radio/test_radio.py": TESTERS.read_text(encoding="utf-8"),
    "tests/utils/__init__.py": "",
    "tests/utils/test_configuration_utils.py": (
        'config_common_kwargs = {"return_dict": False, "output_hidden_states": True, "dtype": "float16"}\n'
    ),
}


class Exemption(NamedTuple):
    """Tests that need not pass.

    Attributes:
        tests: Pattern of their names.
        reason: Why that is no fault of ours.
        classes: Pattern of the names of their classes.
    """

    tests: str
    reason: str
    classes: str = "*"


EXEMPTED = [
    Exemption("test_model_get_set_embeddings", "it takes any input embedding for one of words, `nn.Embedding`"),
    Exemption(
        "test_can_load_ignoring_mismatched_shapes",
        "it sets every field whose name has `_std` to 1e-10, also the deviation that pixels are divided by",
    ),
    Exemption(
        "test_model_outputs_equivalence",
        "without names the answer is NVIDIA's: a dictionary of pairs, which is no tuple of the same order",
        "RadioModelWithAdaptorsTest",
    ),
    Exemption(
        "test_model_outputs_equivalence",
        "it compares two losses of masks, which transformers' RF-DETR takes at random points, each time others",
        "RadioFor[IU]n*SegmentationTest",
    ),
    Exemption(
        "test_keep_in_fp32_modules",
        "the detector stands in both lists: what opens a folder in bfloat16 reads one, quantizers read the other",
        "RadioFor[IOU][nb]*",
    ),
    Exemption(
        "test_attention_outputs",
        "it expects attention over the whole image; blocks with windows give that within each window",
        "RadioModelWithWindowsTest",
    ),
    Exemption(
        "test_retain_grad_hidden_states_attentions",
        "it takes the first output for a tensor; that of a backbone is the tuple of its maps",
        "RadioBackbone*Test",
    ),
    *(
        Exemption(
            name,
            "it expects those of one tower; as in transformers' CLIP they lie in the outputs of the two towers",
            "RadioForZeroShot*",
        )
        for name in ("test_hidden_states_output", "test_retain_grad_hidden_states_attentions")
    ),
    Exemption(
        "test_correct_missing_keys",
        "it opens a backbone alone as this model, whose text tower cannot be made of nothing",
        "RadioForZeroShot*",
    ),
]


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Run all of transformers' tests once; outcomes by class and test."""
    folder = tmp_path_factory.mktemp("transformers")
    fetch_tests(folder)
    for name, text in STAND_INS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    paths = [folder, folder / "packages", ROOT, ROOT / "tests" / "support" / "models"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/models/radio"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "HF_MODULES_CACHE": str(folder / "modules")},
        capture_output=True,
        text=True,
    )
    assert (folder / OUTCOMES).exists(), result.stdout[-4000:] + result.stderr[-4000:]
    found, messages = json.loads((folder / OUTCOMES).read_text(encoding="utf-8"))
    assert set(found) == set(CLASSES), result.stdout[-4000:]
    for name, message in messages.items():
        print(f"{name}\n{message}\n")  # noqa: T201  (which pytest shows beside the failures)
    return found


def fetch_tests(folder: Path) -> None:
    """Unpack the tests of the installed transformers, and the package that they are parametrized by."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "1", "--timeout", "15"]
    source = ["download", "--no-binary", ":all:", "--no-deps", "--dest", str(folder)]
    source += [f"transformers=={transformers.__version__}"]
    package = ["install", "--no-deps", "--target", str(folder / "packages"), "parameterized>=0.9,<1"]
    for command in (source, package):
        result = subprocess.run([*pip, *command], capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"needs the network to fetch transformers' tests: {result.stderr.strip()[-300:]}")
    (archive,) = folder.glob("transformers-*.tar.gz")
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            if match := re.fullmatch(r"[^/]+/(tests/\w+\.py)", member.name):
                content = tar.extractfile(member)
                assert content is not None
                (folder / "tests").mkdir(exist_ok=True)
                (folder / match[1]).write_bytes(content.read())


def exemptions_of(name: str, test: str) -> list[Exemption]:
    return [entry for entry in EXEMPTED if fnmatch(name, entry.classes) and fnmatch(test, entry.tests)]


@pytest.mark.parametrize("name", CLASSES)
def test_all_pass_that_are_not_exempted(name, outcomes):
    failed = [test for test, outcome in outcomes[name].items() if outcome == "failed"]
    assert [test for test in failed if not exemptions_of(name, test)] == []
    assert "passed" in outcomes[name].values()


@pytest.mark.parametrize("entry", EXEMPTED, ids=lambda entry: f"{entry.classes}-{entry.tests}")
def test_every_exemption_is_needed(entry, outcomes):
    covered = {
        f"{name}::{test}": outcome
        for name, found in outcomes.items()
        for test, outcome in found.items()
        if entry in exemptions_of(name, test)
    }
    assert [test for test, outcome in covered.items() if outcome == "passed"] == []
    assert "failed" in covered.values()


def test_the_numbers_are_told(outcomes, request):
    numbers = Counter(
        "exempted" if outcome == "failed" and exemptions_of(name, test) else outcome
        for name, found in outcomes.items()
        for test, outcome in found.items()
    )
    line = ", ".join(f"{numbers[kind]} {kind}" for kind in ("passed", "exempted", "failed", "skipped"))
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line(f"\ntransformers {transformers.__version__}: {line}")
    assert numbers["passed"] > 1000
