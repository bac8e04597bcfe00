"""House rules that no linter knows, each with a broken twin: a small source that the rule must flag."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

import dpgm
import dpgm.methods

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"
MAX_LINES = 400


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name and its text."""

    name: str
    source: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    def within(self, *rooms: str) -> bool:
        return any(self.name == room or self.name.startswith(room + ".") for room in rooms)

    def nodes(self, *kinds: type[ast.AST]) -> Iterator[ast.AST]:
        return (node for node in ast.walk(self.tree) if isinstance(node, kinds))

    def calls(self) -> Iterator[tuple[str, ast.Call]]:
        """Every call, with its dotted name ("np.random.seed"; "?.normal_" for a method of an expression)."""
        for node in self.nodes(ast.Call):
            assert isinstance(node, ast.Call)
            yield dotted(node.func), node

    def imports(self) -> Iterator[str]:
        for node in self.nodes(ast.Import, ast.ImportFrom):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else "?"


def keyword(call: ast.Call, name: str) -> object:
    """The constant value of a keyword argument; its source text if it is no constant; None if it is absent."""
    for item in call.keywords:
        if item.arg == name:
            return item.value.value if isinstance(item.value, ast.Constant) else ast.unparse(item.value)
    return None


# --- the rules: each yields one sentence for every fault -------------------------------------------------------------


def short(module: Module) -> Iterator[str]:
    """A file is read in one sitting."""
    if (n := len(module.source.splitlines())) > MAX_LINES:
        yield f"{n} lines; allowed are {MAX_LINES}; split it by concern"


PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def no_pickle(module: Module) -> Iterator[str]:
    """Nothing is unpickled or pickled: loading a model must never run its code."""
    yield from (f"imports {name}" for name in module.imports() if name.split(".")[0] in PICKLES)
    for name, call in module.calls():
        if name == "torch.load" and keyword(call, "weights_only") is not True:
            yield "torch.load without weights_only=True"
        if name == "torch.save" or name.endswith(("read_pickle", "to_pickle")):
            yield f"{name} pickles; use safetensors or JSON"
        if name in {"np.load", "numpy.load"} and keyword(call, "allow_pickle") not in {None, False}:
            yield f"{name} with allow_pickle"


NUMPY_RANDOM_TYPES = {"Generator", "default_rng", "SeedSequence", "BitGenerator", "PCG64", "PCG64DXSM", "Philox"}
TORCH_DRAWS = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"} | {
    "rand_like",
    "randn_like",
    "randint_like",
}
TENSOR_DRAWS = {"normal_", "uniform_", "bernoulli_", "exponential_", "cauchy_", "random_", "log_normal_", "geometric_"}


def no_global_random(module: Module) -> Iterator[str]:
    """Every draw names its generator; the process-wide streams of random, NumPy and torch are never touched."""
    yield from (f"imports {name}" for name in module.imports() if name.split(".")[0] == "random")
    for node in module.nodes(ast.Attribute):
        name = dotted(node)
        if re.fullmatch(r"(np|numpy)\.random\.\w+", name) and name.split(".")[-1] not in NUMPY_RANDOM_TYPES:
            yield f"{name} uses NumPy's global stream"
        if re.fullmatch(r"torch\.(manual_seed|seed|random\.\w+|cuda\.manual_seed\w*|set_rng_state)", name):
            yield f"{name} touches torch's global stream"
    for name, call in module.calls():
        head, _, last = name.rpartition(".")
        draws = (head == "torch" and last in TORCH_DRAWS) or last in TENSOR_DRAWS
        if draws and keyword(call, "generator") is None:
            yield f"line {call.lineno}: {name} without generator="


ROWS_ROOMS = (
    "dpgm.schema",  # defines them
    "dpgm.data",  # reads them
    "dpgm.privacy.mechanism",  # the protocols' signatures
    "dpgm.privacy.curator",  # the one door
    "dpgm.mechanisms",  # the only code that computes on private rows
    "dpgm.methods.fit",  # hands the caller's rows to a curator
    "dpgm.__init__",  # exports the name
    "dpgm.evaluation",  # the test split
    "dpgm.testing",
    "dpgm.cli",
)


def rows_stay_home(module: Module) -> Iterator[str]:
    """Only the rooms above may name Rows; a method, a net, a sampler, the ledger and a model never see one."""
    if not module.within(*ROWS_ROOMS):
        yield from (
            f"imports {name}" for name in module.imports() if name in {"dpgm.schema.Rows", "dpgm.schema.rows.Rows"}
        )
        yield from ("names Rows" for node in module.nodes(ast.Attribute) if dotted(node).endswith("schema.Rows"))


SEEDED_ROOMS = ("dpgm.privacy.mechanism", "dpgm.evaluation.audit", "dpgm.testing")


def noise_is_never_seeded(module: Module) -> Iterator[str]:
    """Privacy noise comes from the operating system; only tests and audits make a SeededNoise."""
    if not module.within(*SEEDED_ROOMS):
        yield from ("makes SeededNoise" for name, _ in module.calls() if name.split(".")[-1] == "SeededNoise")
    if module.within("dpgm.privacy", "dpgm.mechanisms"):
        for name, call in module.calls():
            if name.split(".")[-1] in {"default_rng", "manual_seed", "RandomState"}:
                yield f"line {call.lineno}: {name} makes a stream beside NoiseSource"


def proved_on_paper(module: Module) -> Iterator[str]:
    """Whatever states a cost or a sensitivity links the page that proves it, and the page exists."""
    if not module.within("dpgm.mechanisms"):
        return
    for node in module.nodes(ast.ClassDef):
        assert isinstance(node, ast.ClassDef)
        methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
        if node.name.startswith("_") or not methods & {"cost", "sensitivity"}:
            continue
        pages = re.findall(r"docs/proofs/[\w-]+\.md", ast.get_docstring(node) or "")
        if not pages:
            yield f"{node.name} links no docs/proofs/*.md in its docstring"
        yield from (f"{node.name} links {page}, which does not exist" for page in pages if not (ROOT / page).is_file())


MACHINE_PATH = re.compile(r"(?<![\w.<>])(/(home|root|tmp|work|Users|opt|mnt|var)/\w|[A-Z]:\\\w)")

TELLTALES = {"os.getcwd", "Path.cwd", "Path.home", "socket.gethostname", "platform.node", "getpass.getuser"}


def no_machine_paths(module: Module) -> Iterator[str]:
    """No path of somebody's machine stands in the sources, and none is asked for that would end up in an artefact."""
    for node in module.nodes(ast.Constant):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and MACHINE_PATH.search(node.value):
            yield f"line {node.lineno}: the path {node.value[:60]!r}"
    if not module.within("dpgm.data"):  # where data sets are looked for stays in the reader
        yield from (f"{name} tells who ran this, and where" for name, _ in module.calls() if name in TELLTALES)


def nothing_left_open(module: Module) -> Iterator[str]:
    """No stubs."""
    for number, line in enumerate(module.source.splitlines(), 1):
        if word := re.search(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", line):
            yield f"line {number}: {word[0]}"


RULES: list[Callable[[Module], Iterator[str]]] = [
    short,
    no_pickle,
    no_global_random,
    rows_stay_home,
    noise_is_never_seeded,
    proved_on_paper,
    no_machine_paths,
    nothing_left_open,
]

# (rule, module, source): each source breaks its rule once, in the smallest way.
BROKEN = [
    (short, "dpgm.nets.unet", "x = 1\n" * (MAX_LINES + 1)),
    (no_pickle, "dpgm.artefact", "import pickle"),
    (no_pickle, "dpgm.artefact", "from joblib import load"),
    (no_pickle, "dpgm.artefact", "torch.load(path)"),
    (no_pickle, "dpgm.artefact", "torch.load(path, weights_only=False)"),
    (no_pickle, "dpgm.artefact", "torch.save(model, path)"),
    (no_pickle, "dpgm.data.images", "np.load(path, allow_pickle=True)"),
    (no_global_random, "dpgm.nets.unet", "import random"),
    (no_global_random, "dpgm.nets.unet", "torch.manual_seed(0)"),
    (no_global_random, "dpgm.nets.unet", "np.random.normal(size=3)"),
    (no_global_random, "dpgm.nets.unet", "torch.randn(3)"),
    (no_global_random, "dpgm.nets.unet", "x.normal_()"),
    (no_global_random, "dpgm.nets.unet", "with torch.random.fork_rng():\n    pass"),
    (rows_stay_home, "dpgm.methods.vae", "from dpgm.schema import Rows"),
    (rows_stay_home, "dpgm.privacy.ledger", "from dpgm.schema import Rows"),
    (rows_stay_home, "dpgm.nets.vae", "import dpgm.schema\n\ndef f(rows: dpgm.schema.Rows): ..."),
    (noise_is_never_seeded, "dpgm.methods.vae", "noise = SeededNoise(0)"),
    (noise_is_never_seeded, "dpgm.cli", "noise = mechanism.SeededNoise(seed)"),
    (noise_is_never_seeded, "dpgm.mechanisms.noise", "rng = np.random.default_rng(0)"),
    (proved_on_paper, "dpgm.mechanisms.noise", "class Loud:\n    '''No page.'''\n    def cost(self): ..."),
    (proved_on_paper, "dpgm.mechanisms.queries", "class Q:\n    'docs/proofs/none.md'\n    def sensitivity(self): 0"),
    (no_machine_paths, "dpgm.data.named", "FOLDER = '/home/me/data'"),
    (no_machine_paths, "dpgm.data.named", "FOLDER = r'C:\\data'"),
    (no_machine_paths, "dpgm.artefact", "run['folder'] = os.getcwd()"),
    (nothing_left_open, "dpgm.nets.unet", "raise NotImplementedError"),
    (nothing_left_open, "dpgm.nets.unet", "x = 1  # TODO: two"),
]

# (rule, module, source): what the rules must leave alone.
SOUND = [
    (no_pickle, "dpgm.artefact", "torch.load(path, weights_only=True); np.load(path, allow_pickle=False)"),
    (no_global_random, "dpgm.nets.unet", "torch.randn(3, generator=rng); x.normal_(generator=rng)"),
    (no_global_random, "dpgm.nets.unet", "rng = np.random.default_rng(0); y = rng.normal(size=3)"),
    (rows_stay_home, "dpgm.mechanisms.queries", "from dpgm.schema import Rows"),
    (noise_is_never_seeded, "dpgm.evaluation.audit", "noise = SeededNoise(0)"),
    (proved_on_paper, "dpgm.mechanisms.noise", "class Clip:\n    def apply(self): ..."),
    (no_machine_paths, "dpgm.cli", "HELP = 'images/train/3/0.png, docs/proofs/gaussian.md'"),
]


def title(rule: Callable[[Module], Iterator[str]]) -> str:
    return rule.__name__


@cache
def modules() -> list[Module]:
    files = sorted(SRC.rglob("*.py"))
    return [Module(".".join(f.relative_to(SRC).with_suffix("").parts), f.read_text("utf-8")) for f in files]


@pytest.mark.parametrize("rule", RULES, ids=title)
def test_house_keeps_rule(rule: Callable[[Module], Iterator[str]]) -> None:
    faults = [f"{module.name}: {fault}" for module in modules() for fault in rule(module)]
    assert not faults, f"{rule.__doc__}\n" + "\n".join(faults)


@pytest.mark.parametrize(("rule", "name", "source"), BROKEN)
def test_rule_flags_its_broken_twin(rule: Callable[[Module], Iterator[str]], name: str, source: str) -> None:
    assert list(rule(Module(name, source)))


@pytest.mark.parametrize(("rule", "name", "source"), SOUND)
def test_rule_leaves_sound_code_alone(rule: Callable[[Module], Iterator[str]], name: str, source: str) -> None:
    assert not list(rule(Module(name, source)))


def test_every_rule_has_a_broken_twin() -> None:
    assert {rule for rule, _, _ in BROKEN} == set(RULES)


# --- papers ----------------------------------------------------------------------------------------------------------


def pages() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def dead_links(page: Path, text: str) -> list[str]:
    links = re.findall(r"\]\(([^)#\s]+)", text)
    return [link for link in links if "://" not in link and not (page.parent / link).exists()]


def test_links_between_pages_lead_somewhere() -> None:
    assert not {str(p.relative_to(ROOT)): dead for p in pages() if (dead := dead_links(p, p.read_text("utf-8")))}
    assert dead_links(ROOT / "README.md", "[a](docs/none.md), [b](README.md#two-commands)") == ["docs/none.md"]


def unwelcome(text: str) -> list[str]:
    """Paths of somebody's machine, and index hosts or files where a version is meant."""
    fault = re.compile(MACHINE_PATH.pattern + r"| @ |file:/|--[\w-]*index")
    return [line for line in text.splitlines() if fault.search(line)]


def test_pins_and_papers_name_no_machine() -> None:
    files = [ROOT / "constraints.txt", ROOT / "pyproject.toml", *pages()]
    assert not {f.name: bad for f in files if (bad := unwelcome(f.read_text("utf-8")))}
    assert len(unwelcome("torch @ file:///mnt/torch.whl\n--extra-index-url x\nsee /home/me/x\ntorch==2.13.0")) == 3


def commands(readme: str) -> list[str]:
    """The lines of the bash blocks, as .ci/run takes them."""
    return [line for block in re.findall(r"```bash\n(.*?)```", readme, re.DOTALL) for line in block.splitlines()]


def test_readme_has_the_two_commands_that_ci_runs() -> None:
    job, tests = commands((ROOT / "README.md").read_text("utf-8"))
    install = "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt "
    assert job.startswith(install + ". && .venv/bin/dpgm run ")
    assert tests.startswith(install + "'.[test]' && .venv/bin/pytest")
    assert len(commands("```bash\na\n```\n```bash\nb\nc\n```\n```python\nd\n```")) == 3


def test_readme_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [example] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert dpgm.load("mine").guarantee.epsilon <= 1


def test_readme_chooses_among_methods_that_exist() -> None:
    table = (ROOT / "README.md").read_text("utf-8").split("## How to choose")[1]
    named = set(re.findall(r"\| `([\w-]+)`", table))
    assert named
    assert named <= set(dpgm.methods.names())


def test_every_dependency_is_pinned_and_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.split(r"[<>=\[]", item)[0] for group in groups for item in group} - {"dpgm"}
    pins = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()}
    page = (ROOT / "docs/dependencies.md").read_text("utf-8")
    assert names - pins == {"torchvision"}  # has no CPU build to test with
    assert not {name for name in names if f"`{name}`" not in page}
