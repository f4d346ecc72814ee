"""What an extra lacks is told by names and versions; what cannot be loaded or reached is printed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from modeling_radio import RadioConfig
from modeling_radio.core import doctor


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("", ["absent-always"]),
        ("train", ["absent-train"]),
        ("tasks", ["absent-train", "torch<1 (has {torch})"]),
        ("export", []),
    ],
)
def test_an_extra_lacks_what_it_and_those_that_it_names_lack(extra, expected):
    texts = [
        "torch>=1",
        "absent-always",
        "absent-train>=2; extra == 'train'",
        "modeling-radio[train]; extra == 'tasks'",
        "torch<1; extra == 'tasks'",
        "absent-elsewhere; sys_platform == 'nothing' and extra == 'train'",
        "pytest; extra == 'export'",
    ]
    version = doctor.installed_version("torch")
    requirements = [Requirement(text) for text in texts]
    assert doctor.lacking(requirements, extra) == [name.format(torch=version) for name in expected]


def test_it_prints_all_sections_where_torch_and_the_hub_are_out_of_reach(tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('no libcudart')")
    words = ["-c", "import sys; from modeling_radio_cli import main; sys.exit(main(['doctor', '--timeout', '1']))"]
    root = Path(doctor.__file__).parents[1]
    variables = {
        "PYTHONPATH": f"{tmp_path}:{root}",
        "HF_ENDPOINT": "http://localhost:9",
        "RADIO_CACHE": str(tmp_path / "c"),
    }
    done = subprocess.run([sys.executable, *words], env=variables, capture_output=True, text=True, check=True)
    titles = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert titles == ["Versions:", "Devices:", "Extras:", "Folders:", "Hub:"]
    assert "OSError: no libcudart" in done.stdout
    assert str(tmp_path / "c") in done.stdout
    assert "http://localhost:9 cannot be reached" in done.stdout


def test_a_folder_has_a_line_for_each_engine(tmp_path, capsys):
    RadioConfig.from_preset("c-radio_v3-b").save_pretrained(tmp_path)
    assert doctor.main([str(tmp_path)]) == 0
    engines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert engines.keys() == {"transformers", "vLLM", "SGLang", "llama.cpp", "TensorRT-Edge-LLM"}
    assert re.search(r"vLLM [\d.]+ \(run .*\).* other outputs: .*LayerScale.*aligned corners", engines["vLLM"])


@pytest.mark.parametrize("fields", [{"model_type": "vit"}, {"model_type": "radio", "args": {}}])
def test_a_folder_that_is_not_ours_is_refused(fields, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert doctor.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("radio doctor: error: `checkpoint` ")
