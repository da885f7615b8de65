"""How our code gets to a server that does not have it: as the source text of its modules.

A request is a pickle, and a pickle is a program. Ours begins with a step that puts the modules the
request names, and those they import, where the server's ``import`` finds them; the rest then
refers to them by name. So decorators, ``super()``, dataclasses and the identity of classes mean
there what they mean here, whatever the server's version of Python.

nnsight's own way is to ship every function and class a request touches by value, which changes
what some of them mean, and takes a second to build for a single read.
"""

import ast
import bz2
import importlib
import json
import pickle
import re
import tokenize
from collections.abc import Iterable
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from interventions.errors import RemoteError

STAYS = (
    __package__ or "interventions.remote",
    "interventions.prompt.making",
    "interventions.prompt.picture_placing",
    "interventions.architectures.family_layouts",
    "interventions.architectures.family_towers",
    "interventions.architectures.adapters",
    *(f"interventions.architectures.{what}_finding" for what in ("anatomy", "spot", "tower")),
    "interventions.tensor_files",
)
"""What is not sent: what sends requests, makes prompts, and says where pictures' tokens lie; files;
and what is done with a model where it is loaded: finding its parts, switching its adapters."""

# Runs on the server, with SOURCES, the bz2 of a JSON object {module: [text, is a package,
# libraries it imports]}. It may not refer to anything of ours. Modules are kept between requests,
# so that what was sent before is not unpacked again; their lines, for tracebacks and for nnsight,
# which reads the source of traces, are given each time, as servers forget them.
INSTALL = '''
import bz2, importlib.abc, importlib.machinery, json, linecache, sys, types

class Absent(types.ModuleType):
    """Stands for a library that the server lacks: it can be imported and named, not used."""
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self.__name__}.{name}")
    def __call__(self, *args, **kwargs):
        raise ImportError(f"{self.__name__} is not on the server. Return tensors instead.")
    def __or__(self, other):
        return self
    def __getitem__(self, key):
        return self
    __ror__ = __or__

class Shipped(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    name = "modules shipped by interventions"
    def __init__(self):
        self.sources, self.unpacked = {}, set()
    def find_spec(self, name, path=None, target=None):
        if name in self.sources:
            package = self.sources[name][1]
            return importlib.machinery.ModuleSpec(name, self, is_package=package)
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        text, _, libraries = self.sources[module.__name__]
        stood_in = []
        for one in libraries:
            try:
                __import__(one)
            except ImportError:
                for part in (one.split(".")[0], one):
                    if part not in sys.modules:
                        sys.modules[part] = Absent(part)
                        stood_in.append(part)
        try:
            file = self.file(module.__name__)
            exec(compile(text, file, "exec"), module.__dict__)
        finally:
            for one in stood_in:
                del sys.modules[one]
    def file(self, name):
        return name.replace(".", "/") + ("/__init__.py" if self.sources[name][1] else ".py")
    def take(self, packed):
        known = packed in self.unpacked
        sources = {} if known else json.loads(bz2.decompress(packed))
        if any(self.sources.get(name, new) != new for name, new in sources.items()):
            self.sources, self.unpacked = {}, set()
        self.unpacked.add(packed)
        if not self.sources:
            ours = {name.split(".")[0] for name in sources}
            for one in [one for one in sys.modules if one.split(".")[0] in ours]:
                del sys.modules[one]
        self.sources.update(sources)
        for name, (text, _, _) in self.sources.items():
            lines = text.splitlines(keepends=True)
            linecache.cache[self.file(name)] = (len(text), None, lines, self.file(name))

shipped = next((x for x in sys.meta_path if getattr(x, "name", "") == Shipped.name), None)
if shipped is None:
    shipped = Shipped()
    sys.meta_path.insert(0, shipped)
shipped.take(SOURCES)
'''

# What stands for a package's own __init__: its public names, found when they are asked for, so
# that naming one does not bring all of them along.
LAZY = """
import importlib
PUBLIC = {public!r}
def __getattr__(name):
    if name not in PUBLIC:
        raise AttributeError(f"module {{__name__!r}} has no attribute {{name!r}}")
    return getattr(importlib.import_module(PUBLIC[name]), name)
"""


class Luggage:
    """Packages that travel with requests, and what is known of their modules."""

    def __init__(self) -> None:
        self.folders: dict[str, Path] = {}
        self._modules: dict[str, tuple[str, set[str], list[str]]] = {}
        self._packed: dict[frozenset[str], bytes] = {}

    def add(self, package: str) -> None:
        """Take a package along, by its top-level name, wherever a request refers to it."""
        file = importlib.import_module(package).__file__
        if file is None:
            raise RemoteError(f"{package} has no source files, so it cannot travel to a server.")
        self.folders[package] = Path(file).parent

    def path_of(self, module: str) -> Path | None:
        """The source file of a module, or None if it is not of a package that travels."""
        top, *rest = module.split(".")
        if top not in self.folders:
            return None
        base = self.folders[top].joinpath(*rest)
        for path in (base / "__init__.py", base.with_suffix(".py")):
            if path.is_file():
                return path
        return None

    def _read(self, module: str) -> tuple[str, set[str], list[str]]:
        """Text of a module, the modules of ours that it imports, and the libraries."""
        if module not in self._modules:
            path = self.path_of(module)
            assert path is not None
            text = path.read_text(encoding="utf-8")
            ours, libraries = set(), set()
            for name, top_level in imports(text, module):
                if name.split(".")[0] in self.folders:
                    ours |= {
                        enclosing
                        for enclosing in within(name)
                        if self.path_of(enclosing) is not None
                    }
                    ours |= self._behind(name)
                elif top_level:
                    libraries.add(name)
            self._modules[module] = (text, ours, sorted(libraries))
        return self._modules[module]

    def _behind(self, name: str) -> set[str]:
        """The modules that the public names of a package are from: of one, or of ``package.*``."""
        package, _, last = name.partition(".")
        path = self.path_of(package)
        assert path is not None
        public = public_names(path.read_text(encoding="utf-8"))
        modules = [module for public_name, module in public.items() if last in (public_name, "*")]
        return {enclosing for module in modules for enclosing in within(module)}

    def closure(self, modules: Iterable[str]) -> frozenset[str]:
        """The modules of ours among ``modules``, and all of ours that they import."""
        ours: set[str] = set()
        waiting = [enclosing for name in modules for enclosing in within(name)]
        while waiting:
            module = waiting.pop()
            if module in ours or module.startswith(STAYS) or self.path_of(module) is None:
                continue
            ours.add(module)
            if module not in self.folders:  # a package's own names are found when asked for
                waiting += self._read(module)[1]
        return frozenset(ours)

    def packed(self, modules: frozenset[str]) -> bytes:
        """The sources of modules, compressed."""
        if modules not in self._packed:
            sources = {}
            for name in sorted(modules):
                text, _, libraries = self._read(name)
                if name in self.folders:
                    text, libraries = LAZY.format(public=public_names(text)), []
                path = self.path_of(name)
                assert path is not None
                text = for_machines(text)
                sources[name] = (text, path.name == "__init__.py", libraries)
            self._packed[modules] = bz2.compress(json.dumps(sources).encode())
        return self._packed[modules]


def for_machines(text: str) -> str:
    """A module's source without docstrings and comments; every line keeps its number.

    Examples
    --------
    >>> for_machines("# why\\nx = 1  # one\\n")
    '\\nx = 1\\n'
    """
    lines = text.splitlines(keepends=True)
    for token in tokenize.generate_tokens(StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip() + "\n"
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
            continue
        start, stop = node.lineno - 1, node.end_lineno or node.lineno
        before = lines[start][: node.col_offset]
        alone = not before.strip() and not lines[stop - 1][node.end_col_offset :].strip()
        if isinstance(node.value.value, str) and alone:
            lines[start:stop] = [f'{before}""\n', *["\n"] * (stop - start - 1)]
    return "".join(lines)


def within(module: str) -> list[str]:
    """A module and the packages it is in."""
    parts = module.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def imports(text: str, module: str) -> Iterable[tuple[str, bool]]:
    """Names a module imports, and whether it does so as soon as it is imported itself."""
    waiting: list[tuple[ast.AST, bool]] = [(ast.parse(text, module), True)]
    while waiting:
        node, at_once = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
            yield from ((f"{alias.name}.*", False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, at_once
            yield from ((f"{node.module}.{alias.name}", False) for alias in node.names)
        at_once = at_once and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        waiting += [(child, at_once) for child in ast.iter_child_nodes(node)]


def public_names(text: str) -> dict[str, str]:
    """Names that a package's ``__init__`` imports, and the module each is from."""
    return {
        alias.asname or alias.name: node.module
        for node in ast.parse(text).body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


LUGGAGE = Luggage()
LUGGAGE.add("interventions")
carry = LUGGAGE.add


class Step:
    """A call that is made where, and when, the pickle is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def named_in(body: bytes) -> set[str]:
    """Modules of ours that a pickle refers to: as a string of their own, or in an import."""
    tops = b"|".join(re.escape(folder).encode() for folder in LUGGAGE.folders)
    strings = re.finditer(rb"\x8c(.)((?:%s)(?:\.\w+)*)" % tops, body, re.DOTALL)
    modules = {match[2][: match[1][0]] for match in strings if len(match[2]) >= match[1][0]}
    modules |= {*re.findall(rb"\b(?:from|import)\s+((?:%s)(?:\.\w+)*)" % tops, body)}
    return {module.decode() for module in modules}


def with_luggage(body: bytes) -> bytes:
    """Put what a pickled request names of our packages in front of it."""
    modules = named_in(body)
    for package in modules & {*LUGGAGE.folders}:  # a package itself: any of its names
        path = LUGGAGE.path_of(package)
        assert path is not None
        modules = modules | {*public_names(path.read_text(encoding="utf-8")).values()}
    wanted = LUGGAGE.closure(modules)
    if not wanted:
        return body
    first = BytesIO()
    pickler = pickle.Pickler(first, protocol=4)
    pickler.fast = True  # leaves nothing in the memo, whose numbers the body counts on
    pickler.dump(Step(exec, INSTALL, {"SOURCES": LUGGAGE.packed(wanted)}))
    return first.getvalue().removesuffix(pickle.STOP) + pickle.POP + body


def by_reference(pickle_body: Any) -> bytes:
    """Call a function that pickles, during which our packages are referred to by name."""
    from cloudpickle.cloudpickle import _PICKLE_BY_VALUE_MODULES as BY_VALUE

    held = {folder for folder in LUGGAGE.folders if folder in BY_VALUE}
    BY_VALUE.difference_update(held)
    try:
        return pickle_body()
    finally:
        BY_VALUE.update(held)
