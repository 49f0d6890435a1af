"""runx.sh chooses a Python, with false ones that install nothing."""
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

# Logs what it is asked to do; its packages are the folders of metadata in SITE.
FALSE_PYTHON = '''#!/bin/sh
[ "$1" = -c ] || echo "NAME $*" >> LOG
case "$1 $2" in
    '-c '*) code=$2; shift 2
        PYTHONPATH="SITE" exec REAL -S -c "import sys; sys.version_info = VERSION
$code" "$@" ;;
    '-m venv') mkdir -p .venv/bin; cp "VENV" .venv/bin/python ;;
    '-m ensurepip') mkdir "SITE/pip" ;;
    '-m pip') cp -r "INSTALLED/." "SITE" ;;
    '-m compileall') exit 1 ;;
esac
'''
REQUIREMENTS = re.findall(r'^(\S+)[=>]=(\S+)$', (ROOT / 'requirements.txt').read_text(), re.M)


def packages(site, **other):
    """Fill the folder with metadata of what requirements.txt asks for.

    other: other versions, None for a package that is missing.
    """
    site.mkdir(parents=True, exist_ok=True)
    for name, version in REQUIREMENTS:
        version = other.get(name, version)
        if version:
            folder = site / f'{name.replace("-", "_")}-{version}.dist-info'
            folder.mkdir()
            text = f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'
            (folder / 'METADATA').write_text(text)


@pytest.fixture
def runx(tmp_path):
    """Runs the script in a folder without a Python; runx.python and runx.venv make false ones."""
    folder, binaries, log = tmp_path / 'a folder', tmp_path / 'bin', tmp_path / 'log'
    folder.mkdir()
    binaries.mkdir()
    log.touch()
    for name in 'runx.sh', 'requirements.txt':
        shutil.copy(ROOT / name, folder)
    packages(tmp_path / 'installed')

    def false_python(path, name, version):
        site, text = tmp_path / f'site-{name}', FALSE_PYTHON
        values = {'NAME': name, 'LOG': log, 'VENV': tmp_path / 'python', 'REAL': sys.executable,
                  'INSTALLED': tmp_path / 'installed', 'SITE': site, 'VERSION': version}
        for word, value in values.items():
            text = text.replace(word, str(value))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return site

    def run(*arguments):
        before = len(log.read_text())
        done = subprocess.run(['bash', str(folder / 'runx.sh'), *arguments], cwd=tmp_path,
                              capture_output=True, text=True,
                              env={'PATH': f'{binaries}:/usr/bin:/bin'})
        return done, log.read_text()[before:].splitlines()
    false_python(tmp_path / 'python', 'venv', (3, 12)).mkdir()      # what -m venv makes
    run.python = lambda version=(3, 12): false_python(binaries / 'python3', 'python3', version)
    run.venv = lambda version=(3, 12): false_python(folder / '.venv/bin/python', 'venv', version)
    return run


MADE = ['python3 -m venv --clear .venv', 'venv -m ensurepip']
INSTALLED = ['venv -m pip install --quiet --no-compile -r requirements.txt',
             'venv -m compileall -qq -j 0 .venv/lib']


def program(log):
    """Which Python ran the program, and what was done before."""
    assert log[-1].split()[1:3] == ['-m', 'utils.compare']
    return log[-1].split()[0], log[:-1]


def test_a_python3_that_has_all_packages_is_used(runx):
    packages(runx.python(), torch='2.14.1+cpu', numpy='2.1.0')
    done, log = runx('compare')
    assert program(log) == ('python3', []) and done.returncode == 0 and done.stderr == ''


def test_a_venv_of_an_old_python_is_made_anew(runx):
    packages(runx.venv((3, 9)))
    runx.python()
    assert runx('compare')[1][0] == MADE[0]


def test_the_first_start_installs_and_the_second_does_not(runx):
    runx.python()
    done, log = runx('compare')
    assert program(log) == ('venv', MADE + INSTALLED) and done.stderr.count('\n') == 1
    done, log = runx('compare')
    assert program(log) == ('venv', []) and done.stderr == ''


def test_packages_of_other_versions_are_named(runx):
    packages(runx.python(), torch='2.9.0', pillow='9.5')
    packages(runx.venv())
    done, log = runx('compare')
    assert program(log) == ('venv', [])
    assert 'torch 2.9.0, not ==2.14.1; pillow 9.5, not >=11: using .venv' in done.stderr


@pytest.mark.parametrize('other, says', [({'torch': '2.9.0'}, 'torch 2.9.0, not ==2.14.1'),
                                         ({'tqdm': None}, 'once\n')])
def test_a_venv_that_is_old_or_incomplete_is_completed(runx, other, says):
    runx.python()
    site = runx.venv()
    packages(site, **other)
    (site / 'pip').mkdir()
    done, log = runx('compare')
    assert program(log) == ('venv', INSTALLED) and says in done.stderr


def test_an_old_python3_is_no_obstacle_to_a_good_venv(runx):
    packages(runx.python((3, 9)))
    done, log = runx('compare')
    assert done.returncode == 1 and 'Python 3.11 or newer' in done.stderr and log == []
    packages(runx.venv())
    done, log = runx('compare')
    assert program(log) == ('venv', []) and done.stderr == ''


@pytest.mark.parametrize('arguments', [[], ['help'], ['--help'], ['-h']])
def test_help(runx, arguments):
    done, log = runx(*arguments)
    assert done.returncode == 0 and log == [] and done.stderr == ''
    assert 'bash runx.sh demo' in done.stdout and 'sketchanetwbin-tuberlin' in done.stdout
    assert 'COMMON' not in done.stdout


def test_an_unknown_experiment_and_one_that_is_known(runx):
    packages(runx.python())
    done, log = runx('sketchanetwbin')
    assert done.returncode == 2 and "no experiment 'sketchanetwbin'" in done.stderr and log == []
    assert '--binEnd=7' in runx('sketchanetwbin-tuberlin', '--epochs=1')[1][0]
    assert runx('test', '-m', 'soak')[1][-1].endswith(' tests -m soak')
