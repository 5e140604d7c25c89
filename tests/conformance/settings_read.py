"""Which settings a step's code reads, found in its source: from `run` down, function by function.

Followed are the functions, methods and properties of steps/ and run/ that are named on the way. A setting is
read as `config.name`, through a property of Config, or by name, the names standing in a list.
"""

import ast
import importlib
from dataclasses import dataclass, field
from pathlib import Path

import fluxscope
from fluxscope.settings.config import settings_table

PACKAGE = Path(fluxscope.__file__).parent
FOLLOWED = ("fluxscope.steps.", "fluxscope.run.")
CONFIG = ("config", "context.config")
BY_NAME = ("getattr", "values_of")
"""Functions that are given a Config and names of settings."""

Function = tuple[str, str]
"""A module, and the name of a function in it, or of a class and its method with a dot between."""


@dataclass
class Sources:
    """The source of the package, with some modules' text replaced."""

    texts: dict[str, str] = field(default_factory=dict)
    _trees: dict[str, ast.Module] = field(default_factory=dict)
    _functions: dict[str, dict[str, ast.FunctionDef]] = field(default_factory=dict)
    _imports: dict[str, dict[str, Function]] = field(default_factory=dict)

    def tree(self, module: str) -> ast.Module:
        if module not in self._trees:
            path = PACKAGE / f"{module.removeprefix('fluxscope.').replace('.', '/')}.py"
            self._trees[module] = ast.parse(self.texts.get(module) or path.read_text())
        return self._trees[module]

    def functions(self, module: str) -> dict[str, ast.FunctionDef]:
        """Those of a module, and its classes' methods, by name."""
        if module not in self._functions:
            found = self._functions[module] = {}
            for node in self.tree(module).body:
                inside = node.body if isinstance(node, ast.ClassDef) else [node]
                prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
                found |= {prefix + each.name: each for each in inside if isinstance(each, ast.FunctionDef)}
        return self._functions[module]

    def place_of(self, module: str, name: str) -> Function:
        """Where a name that a module uses is defined."""
        if module not in self._imports:
            found = self._imports[module] = {}
            for node in ast.walk(self.tree(module)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fluxscope"):
                    found |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
        return self._imports[module].get(name, (module, name))


RUN_DIR: Function = "fluxscope.run.rundir", "RunDir.of"


def settings_read(sources: Sources, start: Function) -> set[str]:
    """The settings that are read on the way from a function down."""
    found, seen, ahead = set(), set(), [start]
    while ahead:
        here = ahead.pop()
        function = sources.functions(here[0]).get(here[1])
        if here in seen or function is None:
            continue
        seen.add(here)
        found |= {name for read in reads_of(sources, here[0], function) for name in behind(sources, read)}
        ahead += calls_of(sources, here, function)
    return found


def reads_of(sources: Sources, module: str, function: ast.FunctionDef) -> set[str]:
    """The names that a function reads of a Config."""
    found, by_name = set(), False
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and is_config(node.value):
            found.add(node.attr)
        by_name |= (
            isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and is_config(node.args[0])
        )
    return found | (names_in(sources, module, function) if by_name else set())


def is_config(node: ast.expr) -> bool:
    text = ast.unparse(node)
    return text in CONFIG or text.endswith(".context.config")


def names_in(sources: Sources, module: str, function: ast.FunctionDef) -> set[str]:
    """The settings that a function names in strings, its own or those of a constant."""
    found = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Constant) and node.value in settings_table():
            found.add(node.value)
        if isinstance(node, ast.Name) and node.id.isupper():
            place, name = sources.place_of(module, node.id)
            found |= {*getattr(importlib.import_module(place), name)} & {*settings_table()}
    return found


def behind(sources: Sources, name: str) -> set[str]:
    """The settings that a property or method of Config reads; a setting itself."""
    if name in settings_table():
        return {name}
    found, seen, ahead = set(), set(), [name]
    modules = [f"fluxscope.settings.{path.stem}" for path in (PACKAGE / "settings").glob("[a-z]*.py")]
    methods = {key.partition(".")[2]: f for m in modules for key, f in sources.functions(m).items()}
    while ahead:
        here = ahead.pop()
        if here in settings_table():
            found.add(here)
        elif here in methods and here not in seen:
            seen.add(here)
            own = (node for node in ast.walk(methods[here]) if isinstance(node, ast.Attribute))
            ahead += [node.attr for node in own if ast.unparse(node.value) == "self"]
    return found


def calls_of(sources: Sources, here: Function, function: ast.FunctionDef) -> list[Function]:
    """The functions, methods and properties in steps/ and run/ that a function names."""
    module, name = here
    kinds = {arg.arg: ast.unparse(arg.annotation) for arg in function.args.args if arg.annotation}
    if "." in name:
        kinds |= dict.fromkeys(("self", "cls"), name.partition(".")[0])
    for node in ast.walk(function):  # setup = SteeringSetup.of(...)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            kinds[ast.unparse(node.targets[0])] = ast.unparse(node.value.func).removesuffix(".of")
    found = []
    for node in ast.walk(function):
        if isinstance(node, ast.Name):
            found.append(sources.place_of(module, node.id))
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            kind = "Context" if owner.endswith("context") else kinds.get(owner, owner)
            place, real = sources.place_of(module, kind)
            found.append((place, f"{real}.{node.attr}"))
    return [each for each in found if each[0].startswith(FOLLOWED) and each[1] not in BY_NAME]
