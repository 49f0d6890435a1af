"""Imports go from higher to lower layers only; LAYERS is their order."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# From the lowest up; the modules of one layer do not know each other.
LAYERS = [
    ['utils', 'utils.flags'],    # docstrings
    ['utils.system.console', 'utils.system.interrupt', 'utils.memory_format'],
    ['utils.system.errors', 'utils.pages'],
    ['utils.system.locks', 'utils.system.devices', 'utils.record.provenance'],
    ['utils.system.files', 'utils.system.processes'],
    ['models', 'datasets', 'utils.native'],
    ['utils.binarize', 'utils.flags.parser', 'utils.record.tensorboard'],
    ['utils.describe', 'utils.style', 'utils.packed', 'utils.training.parallel', 'utils.confusion'],
    ['utils.record.progress'],
    ['utils.training'],
    ['utils.activations', 'utils.state_dicts', 'opts', 'utils.record.logs', 'utils.record.pictures'],
    ['utils.source', 'utils.flags.config', 'utils.flags.checks', 'utils.pretrained'],
    ['utils.flags.resolve', 'utils.record.run'],
    ['utils.experiment'],
    ['utils.evaluate', 'utils.export'],
    ['main', 'utils.compare', 'utils.report', 'utils.draw', 'utils.bench', 'datasets.prepare'],
]
LAYER_OF = {room: layer for layer, rooms in enumerate(LAYERS) for room in rooms}


def tracked(tests=False):
    """The Python files of the project, not those that a user keeps beside it."""
    done = subprocess.run(['git', 'ls-files', '*.py'], cwd=ROOT, capture_output=True, text=True)
    names = done.stdout.split() or [str(path.relative_to(ROOT)) for path in ROOT.rglob('*.py')
                                    if '.venv' not in path.parts]
    return [name for name in names
            if (tests or not name.startswith('tests/')) and (ROOT / name).exists()]


def module_of(path):
    return '.'.join(Path(path).with_suffix('').parts).removesuffix('.__init__')


MODULES = {module_of(path): path for path in tracked()}


def room_of(module):
    """The longest entry of LAYER_OF that the module is or lies in."""
    while module not in LAYER_OF:
        module = module.rpartition('.')[0]
    return module


def imports(module, path):
    """The modules of this program that a module imports, anywhere in it."""
    package = module if Path(path).name == '__init__.py' else module.rpartition('.')[0]
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding='utf-8'))):
        names = []
        if isinstance(node, ast.Import):
            names = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split('.')[:len(package.split('.')) - node.level + 1] if node.level else []
            source = '.'.join([*base, *([node.module] if node.module else [])])
            names = [(source, alias.name) for alias in node.names]
        for source, name in names:
            found = f'{source}.{name}' if f'{source}.{name}' in MODULES else source
            if found in MODULES:
                yield found


GRAPH = {module: set(imports(module, path)) for module, path in MODULES.items()}


def test_every_module_has_a_layer_and_the_graph_is_not_empty():
    assert len(GRAPH) > 50 and sum(map(len, GRAPH.values())) > 100
    assert all(room_of(module) in LAYER_OF for module in GRAPH)
    # `utils` itself is only what a command imports before torch; new files need a layer of their own.
    assert not [module for module in GRAPH if room_of(module) == 'utils' and module != 'utils']


@pytest.mark.parametrize('module', sorted(GRAPH))
def test_imports_run_downwards(module):
    room = room_of(module)
    for imported in GRAPH[module]:
        other = room_of(imported)
        assert other == room or LAYER_OF[other] < LAYER_OF[room] or other == 'utils', (
            f'{module} imports {imported}')


def test_there_is_no_circle():
    done, path = set(), []

    def visit(module):
        assert module not in path, ' -> '.join([*path, module])
        if module not in done:
            path.append(module)
            for imported in GRAPH[module] - {module}:
                # The registry imports the families, and they register themselves with it.
                if (module, imported) not in {(family, 'models') for family in GRAPH}:
                    visit(imported)
            done.add(path.pop())
    for module in GRAPH:
        visit(module)


def test_the_linter_finds_nothing():
    done = subprocess.run([sys.executable, '-m', 'ruff', 'check', *tracked(tests=True)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_flags_are_parsed_without_what_is_slow_to_import():
    """So that --help and a wrong flag answer about as soon as PyTorch is there."""
    code = "import sys, main; print(*sorted({'torch._dynamo', 'torchvision', 'matplotlib', 'triton'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, '\n'), done.stderr
