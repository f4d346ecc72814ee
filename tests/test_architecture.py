"""The arrows between packages and within `training/`, what remote code demands, and how files may be named."""

import ast
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from folders import FOLDERS
from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports

from modeling_radio.hub_radio import SOURCE_FILES


ROOT = Path(__file__).parents[1]
PACKAGES = {*FOLDERS, "modeling_radio", "benchmarks", "notebooks", "tests"}

# Which packages a package may import besides itself.
ARROWS = {
    "modeling_radio": set(),
    "core": {"modeling_radio"},
    "metrics": {"modeling_radio", "core"},
    "figures": {"modeling_radio", "core", "metrics"},
    "model_cards": {"modeling_radio", "core", "metrics"},
    "data": {"modeling_radio", "core", "metrics"},
    "conversion": {"modeling_radio", "core", "model_cards"},
    "training": {"modeling_radio", "core", "metrics", "figures", "model_cards", "data"},
    "tuning": {"data", "modeling_radio", "core", "metrics", "figures", "model_cards", "training"},
    "evaluation": {"data", "modeling_radio", "core", "metrics", "figures", "model_cards", "training", "tuning"},
    "extraction": {"data", "modeling_radio", "core", "metrics", "figures", "model_cards", "evaluation"},
    "serving": {"data", "modeling_radio", "core", "figures", "prediction"},
    "prediction": {"data", "modeling_radio", "core", "figures", "evaluation", "extraction"},
    "publishing": {"modeling_radio", "core", "model_cards", "extraction"},
    "studies": {"data", "modeling_radio", "core", "metrics", "figures", "training", "evaluation"},
    "demo": {
        "data",
        "modeling_radio",
        "core",
        "metrics",
        "figures",
        "model_cards",
        "training",
        "evaluation",
        "publishing",
    },
    "api": {
        "modeling_radio",
        "core",
        "metrics",
        "training",
        "tuning",
        "evaluation",
        "extraction",
        "prediction",
    },
    "benchmarks": {"data", "modeling_radio", "core", "training", "demo"},
    "notebooks": {"core"},
}

# The folders of `training/` from top to bottom: each imports only what stands on lower lines. Files beside them are
# commands, which stand above all.
ORDER = (
    ("distillation",),
    ("planning",),
    ("balancing", "auxiliary"),
    ("hooks",),
    ("upsampling", "student"),
    ("targets",),
    ("teachers", "views"),
    ("recipes",),
    ("losses",),
)


# The packages that a checkpoint's code finds in a clean environment; Pillow comes with torchvision.
REMOTE_CODE_PACKAGES = {"torch", "torchvision", "transformers", "huggingface_hub", "safetensors", "PIL"}
REMOTE_CODE_PACKAGES |= set(sys.stdlib_module_names)

# Machines that only train may lack these.
LAZY_PACKAGES = {"datasets", "evaluate", "faiss", "lance", "peft", "pyarrow", "sklearn"}
LAZY_PACKAGES |= {"fcntl", "resource"}  # not on Windows


# Files that open a model other than by `core/opening.py`, and why. `modeling_radio/` travels without that file.
OPENERS = {
    "api/__init__.py": "a class that the user may have written",
    "conversion/graphs/sam3_to_onnx.py": "transformers' SAM3 with our trunk",
    "conversion/release/worker.py": "another process, which runs NVIDIA's code",
    "conversion/text_tower.py": "a teacher of transformers",
    "core/opening.py": "the door itself",
    "demo/closing_page.py": "a line that is shown to the user",
    "evaluation/models/pretrained.py": "models of transformers that are compared with",
    "evaluation/tasks/concept_segmentation.py": "transformers' SAM3",
    "prediction/words.py": "transformers' SAM3",
    "publishing/checks.py": "another process, as a user of the Hub would",
    "publishing/reopen.py": "another process, as a user of the Hub would",
    "training/student/warm_start/start.py": "a network of transformers",
    "training/student/warm_start/vit.py": "a ViT of transformers",
    "training/teachers/published/base.py": "teachers of transformers",
    "tuning/adapters.py": "an adapter on an opened model, by peft",
}
OPENS_NO_MODEL = re.compile(r"(\w*Config|\w*Processor|\w*Tokenizer\w*)\.from_pretrained")


@cache
def tree_of(path):
    """The syntax tree of a file, which no test changes."""
    return ast.parse(path.read_text())


@cache
def nodes_of(path):
    """All nodes of that tree: several tests read them."""
    return list(ast.walk(tree_of(path)))


def python_files(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def wrong_files(paths, find):
    """What `find` objects to in each file, without the files in which it finds nothing."""
    found = {str(path.relative_to(ROOT)): find(path) for path in paths}
    return {name: objections for name, objections in found.items() if objections}


def imported_packages(nodes):
    """Names of the packages that absolute imports name; a folder of ours inside `modeling_radio` is one of its own."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {package_of(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {package_of(f"{node.module}.{alias.name}") for alias in node.names}
    return names


def package_of(module):
    first, *rest = module.split(".")
    return rest[0] if first == "modeling_radio" and rest and rest[0] in PACKAGES - {"modeling_radio"} else first


def nodes_that_run_on_import(tree):
    """All syntax nodes outside function bodies and blocks that only type checkers read."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        is_for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not is_for_types and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting.extend(ast.iter_child_nodes(node))


def test_packages_import_only_along_the_arrows():
    """And each arrow is used, so that the list tells what there is."""
    imported = {package: set() for package in ARROWS}
    for path in python_files(*ARROWS):
        package = path.relative_to(ROOT).parts[0]
        imported[package] |= (imported_packages(nodes_of(path)) & PACKAGES) - {package}
    assert imported == ARROWS


def opens_models(path):
    """Calls of `from_pretrained` that open a model, also in the programs that a file starts in other processes."""
    calls = [ast.unparse(node.func) for node in nodes_of(path) if isinstance(node, ast.Call)]
    texts = [node.value for node in nodes_of(path) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    found = [call for call in calls if call.endswith(".from_pretrained")]
    found += [call for text in texts for call in re.findall(r"\S+\.from_pretrained(?=\()", text)]
    return [call for call in found if not OPENS_NO_MODEL.fullmatch(call)]


def test_models_are_opened_by_one_module():
    paths = [path for path in python_files(*FOLDERS) if "modeling_radio" not in path.relative_to(ROOT).parts]
    assert wrong_files(paths, opens_models).keys() == OPENERS.keys()


def test_folders_import_what_is_drawn_below_them():
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    drawing = page.partition("```\n")[2].partition("```")[0].splitlines()
    height = {name: -row for row, line in enumerate(drawing) for name in re.findall(r"(\w+)/(?= )", line)}
    assert {*height, "notebooks"} == {*ARROWS}
    assert not {(name, below) for name in height for below in ARROWS[name] - {name} if height[below] >= height[name]}


def test_folders_are_imported_as_parts_of_the_package():
    """`training.losses` beside `modeling_radio.training.losses` would be a second module with classes of its own."""

    line_with_one = re.compile(rf"^ *(?:from|import)\b.*(?<![.\w])(?:{'|'.join(FOLDERS)})\b", re.MULTILINE)

    def as_of_their_own(path):
        nodes = nodes_of(path) if line_with_one.search(path.read_text()) else []  # parsing all takes seconds
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0]
        return [name for name in names if name.partition(".")[0] in FOLDERS]

    assert not wrong_files(python_files(*ARROWS, "tests"), as_of_their_own)


def place_in_order(name):
    """Line of `ORDER` and folder that a module of `training` belongs to, given without that prefix."""
    folder = name.partition(".")[0]
    lines = [line for line, folders in enumerate(ORDER) if folder in folders]
    is_command = not lines and (ROOT / "training" / f"{folder}.py").is_file()
    return (-1 if is_command else lines[0]), folder


def imported_modules(nodes, package):
    """Full names of the modules of a package that are imported anywhere in a file."""
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module] if node.module != package else [f"{package}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith(f"{package}."))


def test_folders_of_training_import_only_downward():
    def upward(path):
        name = ".".join(path.relative_to(ROOT / "training").with_suffix("").parts).removesuffix(".__init__")
        line, own = place_in_order(name)
        modules = imported_modules(nodes_of(path), "modeling_radio.training")
        places = {module: place_in_order(module.removeprefix("modeling_radio.training.")) for module in modules}
        return [module for module, (there, other) in places.items() if other != own and there <= line]

    package = ROOT / "training" / "__init__.py"
    assert not wrong_files([path for path in python_files("training") if path != package], upward)


# Options of the step that few recipes have, and the places that may name them: their own, the recipe and the list.
OPTIONS = re.compile(r"(?i)\btap|_taps?\b|contrastive|contrasts|balancing|weighting|teacher_?dropping|AdaptiveWeights")
PLACES = ("auxiliary/", "balancing/", "recipes/", "distillation/hooks.py")


def test_options_of_the_step_are_named_in_their_own_folders_and_in_one_list():
    """Messages may name their settings, in backticks."""

    def named(path):
        text = re.sub(r"`[a-z_]+\.[a-z_]+`", "", path.read_text(encoding="utf-8"))
        is_place = str(path.relative_to(ROOT / "training")).startswith(PLACES)
        return [] if is_place else OPTIONS.findall(text)

    assert not wrong_files(python_files("training"), named)
    assert all(OPTIONS.search((ROOT / "training" / name).read_text()) for name in PLACES if name.endswith(".py"))


# Files of the package that saved folders have no copy of.
STAY_HOME = {
    "__init__.py",
    "__main__.py",
    "engines.py",
    "native.py",
    "projector.py",
    "tokenizer.py",
    "torch_hub.py",
}


def test_files_that_travel_are_listed():
    names = {path.name for path in (ROOT / "modeling_radio").glob("*.py")}
    assert set(SOURCE_FILES) == names - STAY_HOME


@pytest.mark.parametrize("name", SOURCE_FILES)
def test_network_is_ready_to_travel_as_remote_code(name):
    path = ROOT / "modeling_radio" / name
    tree = tree_of(path)
    optional = {"wrapped_radio.py": {"timm"}, "texts_radio.py": {"ftfy"}}.get(name, set())  # which say so where missing
    assert imported_packages(ast.walk(tree)) <= REMOTE_CODE_PACKAGES | optional
    relative = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    assert all(node.level == 1 and node.module for node in relative), "`from .name import ...` only"
    siblings = {node.module for node in relative}
    assert {f"{sibling}.py" for sibling in siblings} <= set(SOURCE_FILES)
    # transformers finds the files to copy in the text, docstrings included, by a regular expression.
    assert set(get_relative_imports(path)) == siblings


def in_circles(arrows):
    """The files that import themselves by way of others, and those that stand between two circles."""
    while ends := {name for name, others in arrows.items() if not others}:
        arrows = {name: others - ends for name, others in arrows.items() if name not in ends}
    while tops := arrows.keys() - set().union(*arrows.values()):
        arrows = {name: others for name, others in arrows.items() if name not in tops}
    return set(arrows)


def test_network_has_no_import_circle():
    """Imports in functions and for type checkers count. `import_sibling` alone goes from the network to subclasses."""
    arrows = {
        name: {f"{each}.py" for each in get_relative_imports(ROOT / "modeling_radio" / name)} for name in SOURCE_FILES
    }
    assert not in_circles(arrows)


def named_by(node):
    """Full names of what an import names, modules or objects in them."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    is_absolute = isinstance(node, ast.ImportFrom) and node.level == 0
    return {f"{node.module}.{alias.name}" for alias in node.names} if is_absolute else set()


def test_no_files_import_each_other_in_a_circle():
    """Imports in functions and for type checkers count."""
    files = {
        ".".join(("modeling_radio", *path.relative_to(ROOT).with_suffix("").parts)): path
        for path in python_files(*ARROWS)
        if path.parent != ROOT / "modeling_radio"
    }
    arrows = {}
    for name, path in files.items():
        named = set().union(*map(named_by, nodes_of(path)))
        arrows[name] = {each if each in files else each.rpartition(".")[0] for each in named} & files.keys() - {name}
    assert sum(map(len, arrows.values())) > len(files)
    assert not in_circles(arrows)


@pytest.mark.parametrize(
    ("entry", "most"), [("configuration", 4), ("image_processing", 4), ("modeling", 11), ("zero_shot", 15)]
)
def test_opening_a_class_fetches_few_files(entry, most):
    path = ROOT / "modeling_radio" / f"{entry}_radio.py"
    names = {path.name, *(Path(name).name for name in get_relative_import_files(path))}
    assert len(names) <= most
    others = ("eradio", "navit", "radio1d", "video_processing", "wrapped")
    assert not names & {f"{name}_radio.py" for name in others}


def is_run_by_evaluate(path):
    """Whether `evaluate.load` runs the file, a metric as a module of `evaluate`; nothing of ours imports it."""
    imported = imported_packages(nodes_that_run_on_import(tree_of(path)))
    return path.parent == ROOT / "metrics" and "evaluate" in imported


@cache
def imported_by_any():
    """Modules that a file of any package imports names from."""
    nodes = (node for path in python_files(*ARROWS) for node in nodes_of(path))
    return {node.module for node in nodes if isinstance(node, ast.ImportFrom)}


def test_nothing_imports_what_evaluate_runs():
    run = [path for path in python_files("metrics") if is_run_by_evaluate(path)]
    names = {".".join(("modeling_radio", *path.relative_to(ROOT).with_suffix("").parts)) for path in run}
    assert names
    assert not names & imported_by_any()


def test_packages_that_may_be_missing_are_imported_inside_functions():
    def imported_at_once(path):
        return imported_packages(nodes_that_run_on_import(tree_of(path))) & LAZY_PACKAGES

    paths = python_files(*FOLDERS, "benchmarks")
    assert not wrong_files([path for path in paths if not is_run_by_evaluate(path)], imported_at_once)


def defined_types(nodes):
    """Names of a file's classes and aliases of types without leading underscores; type variables `T` don't count."""
    for node in nodes:
        names = []
        if isinstance(node, ast.ClassDef):
            names = [node.name]
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
        yield from (name.lstrip("_") for name in names if re.fullmatch(r"_*[A-Z]\w*[a-z]\w*", name))


def test_no_type_is_defined_twice():
    """Classes, private ones too, and aliases: a reader who meets a name knows which type it is."""
    places = {}
    for path in python_files(*ARROWS):
        for name in defined_types(nodes_of(path)):
            places.setdefault(name, []).append(str(path.relative_to(ROOT)))
    assert len(places) > 100
    assert not {name: where for name, where in places.items() if len(where) > 1}


_OPENINGS = "(?:How|Of|What|Which|For|That|In which|As of)"
UNCLEAR_START = re.compile(rf'^ +\*{{0,2}}\w+: {_OPENINGS}\b.*|"""{_OPENINGS}\b.*', re.MULTILINE)


def test_docs_begin_with_a_noun_or_a_verb():
    """An argument is "File-name prefix", not "Of the files, without what tells one from the other"."""
    assert not wrong_files(python_files(*ARROWS), lambda path: UNCLEAR_START.findall(path.read_text(encoding="utf-8")))


UNPICKLING_PACKAGES = {"cPickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
# What a call must say so that files of strangers run no code: a keyword and its value.
CAREFUL_LOADS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    **{
        f"{name}.from_pretrained": ("trust_remote_code", False)
        for name in ("AutoConfig", "AutoImageProcessor", "AutoModel", "AutoProcessor", "AutoTokenizer")
    },
}
# Which run the code of checkpoints on purpose: NVIDIA's beside ours, in a process of its own, and the examples.
TRUSTING = ("conversion/release/worker.py", "notebooks/")
FREE_LOADS = {
    "eval",
    "exec",
    "pd.read_pickle",
    "torch.hub.load",
    "torch.jit.load",
    "yaml.full_load",
    "yaml.safe_load",  # without the bounds of `modeling_radio.core.settings.read_yaml`
    "yaml.unsafe_load",
}


def free_loads(tree):
    """What in a file may run the code of a file that it reads."""
    safe_loaders = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "yaml.SafeLoader" for base in node.bases)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in UNPICKLING_PACKAGES:
            if not node.attr.endswith("Error"):
                yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and node.module in {*UNPICKLING_PACKAGES, "torch", "numpy", "yaml"}:
            is_free = node.module in UNPICKLING_PACKAGES
            yield from (alias.name for alias in node.names if is_free or alias.name in ("load", "jit", "hub"))
        elif isinstance(node, ast.Call):
            name, keywords = ast.unparse(node.func), {word.arg: word.value for word in node.keywords}
            name = name.replace("numpy.", "np.").removeprefix("transformers.")
            keyword, value = CAREFUL_LOADS.get(name, (None, None))
            is_careful = keyword is None or getattr(keywords.get(keyword), "value", None) is value
            is_safe = name != "yaml.load" or ast.unparse([*node.args, *keywords.values()][1]) in safe_loaders
            if name in FREE_LOADS or not is_careful or not is_safe:
                yield ast.unparse(node)


def test_no_file_of_strangers_runs_code():
    def free(path):
        is_trusting = str(path.relative_to(ROOT)).startswith(TRUSTING)
        return [name for name in free_loads(tree_of(path)) if not (is_trusting and name.startswith("Auto"))]

    assert not wrong_files(python_files(*ARROWS), free)


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path)",
        "numpy.load(path, allow_pickle=True)",
        "yaml.load(text, yaml.Loader)",
        "class Mine(yaml.Loader): pass\nyaml.load(text, Loader=Mine)",
        "pickle.loads(content)",
        "pickle.Unpickler(file).load()",
        "from pickle import load",
        "from torch import load",
        "import joblib\njoblib.load(path)",
        "eval(text)",
        "AutoTokenizer.from_pretrained(folder)",
        "transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)",
        "yaml.safe_load(text)",
    ],
)
def test_code_that_would_run_code_of_strangers_is_found(code):
    assert list(free_loads(ast.parse(code)))


EXCHANGES = re.compile(
    r"\b(distributed|dist)\.(all_|barrier|broadcast|reduce|gather|scatter)|ccelerator\.(reduce|gather|wait_for)"
    r"|gather_object|broadcast_object_list|main_process_first|wait_for_everyone"
)


def test_exchanges_between_ranks_pass_through_one_file():
    """It refuses them where ranks take turns, also in a single process."""
    files = [path for path in python_files(*ARROWS) if EXCHANGES.search(path.read_text(encoding="utf-8"))]
    assert [str(path.relative_to(ROOT)) for path in files] == ["core/ranks.py"]


def test_every_test_file_is_named_after_what_it_tests():
    """What spans several files stands in `tests/whole`."""
    names = [path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")]
    names = [name for name in names if name.parts[0] in PACKAGES]
    assert names
    assert not [name for name in names if not (ROOT / name.with_name(name.name.removeprefix("test_"))).is_file()]


def test_no_file_names_a_path_of_one_machine():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folders = ("work", "root", "home/[a-z]+", "Users/[A-Za-z]+")
    pattern = re.compile(rf"(?<![\w.$}}~-])/(?:{'|'.join(folders)})/|\.\./shared")
    found = []
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.is_file() and path != Path(__file__):
            text = path.read_bytes().decode(errors="ignore")
            found += [f"{name}: {match.group()}" for match in pattern.finditer(text)]
    assert not found
