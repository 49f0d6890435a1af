"""Imports go from higher to lower layers only; LAYERS is their order."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# From the lowest up; the modules of one layer do not know each other.
LAYERS = [
    ['utils'],
    ['utils.system.console', 'utils.system.interrupt'],
    ['utils.system.errors', 'utils.pages'],
    ['utils.system.locks', 'utils.system.devices'],
    ['utils.system.files', 'utils.system.processes'],
    ['models', 'datasets', 'utils.native'],
    ['utils.binarize', 'utils.flags.parser', 'utils.record.tensorboard'],
    ['utils.record.describe', 'utils.style', 'utils.packed', 'utils.training.parallel',
     'utils.data'],
    ['utils.record.progress'],
    ['utils.training'],
    ['utils.state_dicts', 'opts', 'utils.record.logs', 'utils.record.pictures'],
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
            base = package.split('.')[:len(package.split('.')) - node.level
                                      + 1] if node.level else []
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
    # `utils` itself is only what a command imports before torch; new files need a layer of their
    # own.
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


def test_flags_are_parsed_without_what_is_slow_to_import():
    """So that --help and a wrong flag answer about as soon as PyTorch is there."""
    code = "import sys, main; print(*sorted({'torch._dynamo', 'torchvision', 'matplotlib', 'triton'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, '\n'), done.stderr


ROAD = """
import sys, main
main.main(sys.argv[1:])
print(*(module.__file__ for module in list(sys.modules.values())
        if getattr(module, '__file__', None)), sep='\\n')
"""


def test_a_training_run_is_read_in_one_sitting(tmp_path):
    """Count the modules and lines that main.py --binaryWeight loads; the aim is 6,000."""
    done = subprocess.run(
        [sys.executable, '-c', ROAD, '--binaryWeight', '--model_def=densenet', '--inpsize=16',
         '--epochs=1', '--batch-size=128', '--name=run', f'--logdir={tmp_path}'],
        cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = {Path(line).resolve() for line in done.stdout.splitlines()}
    read = [ROOT / path for path in tracked() if (ROOT / path).resolve() in loaded]
    lines = sum(path.read_text(encoding='utf-8').count('\n') for path in read)
    assert len(read) <= 50 and lines <= 6750, (len(read), lines)


def test_the_program_is_small():
    """Python, C++, HTML and shell without tests and utils/draw; 13,500 lines are the aim."""
    done = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip('no git repository')
    kinds = '.py', '.cpp', '.h', '.html', '.css', '.sh'
    read = [name for name in done.stdout.split() if name.endswith(kinds)
            and not name.startswith(('tests/', 'utils/draw/')) and (ROOT / name).exists()]
    lines = sum((ROOT / name).read_text(encoding='utf-8').count('\n') for name in read)
    assert lines <= 15_750, lines
    flat = [name for name in read if name.startswith('utils/') and name.count('/') == 1]
    assert len(flat) <= 10, flat
