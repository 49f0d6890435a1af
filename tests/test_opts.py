"""What flags refuse, in which words (opts.py)."""
import pytest
from conftest import flags_of

import models
import opts
from utils.system.errors import InputError

NUMBERS = ['nClasses', 'workers', 'inpsize', 'binStart', 'binEnd', 'epochs', 'batch-size',
           'testbatchsize', 'momentum', 'weightDecay',
           'maxlr', 'minlr', 'decayinterval', 'decaylevel', 'warmup', 'clipGrad', 'accumulate',
           'labelSmoothing', 'manualSeed', 'minCrop', 'printfreq']


def refused(*arguments):
    with pytest.raises(InputError) as error:
        flags_of(*arguments)
    sentence = str(error.value)
    assert '\n' not in sentence
    return sentence


@pytest.mark.parametrize('name', NUMBERS)
@pytest.mark.parametrize('value',
                         ['-1', '1e300', 'nan', 'inf', '-inf', '', '0x10', '9' * 20 + 'e30', 'x',
                          'True'])
def test_what_is_no_number_for_a_flag(name, value):
    assert refused(f'--{name}={value}').startswith(f'argument --{name}: ')


def test_no_number_flag_is_forgotten():
    numbers = {name for name, flag in opts.FLAGS.items() if type(flag.default) in (int, float)}
    assert numbers <= {name.replace('-', '_') for name in NUMBERS}


@pytest.mark.parametrize('flag, part', [
    ('--inpsize=4097', f'must be at most {models.MAX_INPSIZE}, not 4097'),
    ('--workers=1000000000', 'at most 256'),
    ('--maxlr=1e38', 'at most 1e+37'), ('--weightDecay=1e300', 'at most 1e+37'),
    ('--momentum=1.5', 'at most 1, not 1.5: past gradients would grow with every step'),
    ('--manualSeed=4294967296', '4294967295'),
    ('--epochs=1.5', "'1.5' is not a whole number"), ('--maxlr=x', "'x' is not a number")])
def test_bounds_of_numbers(flag, part):
    assert part in refused(flag)


def test_numbers_within_the_bounds():
    flags = flags_of('--maxlr=1e37', '--momentum=1', '--inpsize=4096', '--manualSeed=4294967295',
                     '--batch-size=1000000000')
    assert (flags.maxlr, flags.momentum, flags.inpsize, flags.manualSeed) == (1e37, 1, 4096,
                                                                              2 ** 32 - 1)
    # as the flags after those of runx.sh
    assert opts.parse(['--epochs=3', '--epochs=4']) == {'epochs': 4}


@pytest.mark.parametrize('name',
                         ['', '.', '..', '../x', 'a/../b', '/x', 'x/', 'a//b', 'a/./b', 'a\nb',
                          'a\x1b[2J', '\udcff', 'x' * 256, 'é' * 200])
def test_a_name_that_is_no_folder_of_the_log_folder(name):
    assert refused(f'--name={name}').startswith('argument --name: ')


@pytest.mark.parametrize('name',
                         ['run', 'group/run', 'a run', '.hidden', '...', 'été', 'x' * 255, '~'])
def test_a_good_name(name):
    assert flags_of(f'--name={name}').name == name


@pytest.mark.parametrize('flag, says', [
    ('--tenCrop=True', '--tenCrop or --no-tenCrop'), ('--no-tenCrop=', '--tenCrop or --no-tenCrop'),
    ('--evaluate=1', 'write --evaluate')])
def test_a_switch_with_a_value(flag, says):
    sentence = refused(flag)
    assert sentence.startswith(f'{flag.split("=")[0]} takes no value') and sentence.endswith(says)


def test_the_command_line_of_the_process_is_checked_too(monkeypatch):
    monkeypatch.setattr('sys.argv', ['main.py', '--tenCrop=True'])
    with pytest.raises(InputError, match='takes no value'):
        opts.parse(None)


@pytest.mark.parametrize('flag', ['dataset', 'model_def', 'optimType'])
def test_an_unknown_name(flag):
    assert 'the names are ' in refused(f'--{flag}=zzz')
    assert 'did you mean' not in refused(f'--{flag}=zzz')
    near = opts.default(flag) + 's'
    assert f'did you mean {near[:-1]}' in refused(f'--{flag}={near}')
    assert 'the names are' not in refused(f'--{flag}={near}')


@pytest.mark.parametrize('flag', ['logdir', 'resume', 'packed', 'pretrained_file', 'export'])
def test_an_empty_path(flag):
    assert refused(f'--{flag}=') == f'--{flag} must not be empty'


@pytest.mark.parametrize('name, value, spelled', [
    ('inpsize', 97, 'with --inpsize=97'), ('signLayers', None, 'without --signLayers'),
    ('signLayers', '', "with --signLayers=''"),
    ('binaryWeight', False, 'with --no-binaryWeight'),
    ('binaryWeight', True, 'with --binaryWeight'), ('evaluate', False, 'without --evaluate'),
    ('amp', None, 'with --amp=off'), ('batch_size', 8, 'with --batch-size=8'),
    ('data_dir', 'a b', "with --data_dir='a b'")])
def test_a_flag_is_spelled_as_in_a_command(name, value, spelled):
    assert opts.spelled(name, value) == spelled


def test_flags_with_other_values_than_by_default_are_named_as_a_command_spells_them():
    flags = flags_of('--no-centring', '--binStart=3')
    assert opts.not_default(flags, 'binStart', 'binSearch', 'centring') == ['--binStart',
                                                                            '--no-centring']


@pytest.mark.parametrize('words', [['--amp'], ['--amp', '--epochs=1'], ['--binSearch']])
def test_a_flag_without_its_value_says_the_choices(words):
    choices = ', '.join(map(repr, opts.FLAGS[words[0].strip('-')].action.choices))
    with pytest.raises(InputError,
                       match=f'argument {words[0]}: expected one argument .choose from {choices}'):
        opts.parse(words)
