"""releases.py: the sizes of the released files, and where models are looked up."""
import os
import shutil

import pytest

import encoder
from gpt2 import releases


@pytest.mark.parametrize('release, n_bytes', [('124M', 497759232), ('355M', 1419292672), ('774M', 3096120320),
                                              ('1558M', 6230444800)])
def test_n_parameters_gives_the_size_of_the_released_weights(release, n_bytes):
    """The expected sizes are those that the servers report."""
    assert 4 * releases.BY_NAME[release].n_parameters() == n_bytes


def copy_vocabulary(vocabulary, folder):
    os.makedirs(folder)
    for name in ('encoder.json', 'vocab.bpe'):
        shutil.copyfile(os.path.join(vocabulary, name), os.path.join(folder, name))


def test_model_folder_looks_in_the_working_directory_then_in_the_repository(vocabulary, tmp_path, monkeypatch):
    here, repository = tmp_path / 'here', tmp_path / 'repository'
    for folder in (here / 'models' / 'both', repository / 'models' / 'both', repository / 'models' / '117M'):
        copy_vocabulary(vocabulary, str(folder))
    monkeypatch.setattr(releases, 'REPOSITORY', str(repository))
    monkeypatch.chdir(here)
    assert releases.model_folder('both') == str(here / 'models' / 'both')
    assert releases.model_folder('117M') == str(repository / 'models' / '117M')
    assert releases.model_folder('117M', str(repository / 'models')) == str(repository / 'models' / '117M')
    assert encoder.get_encoder('117M').encode('Hello world') == [15496, 995]
    with pytest.raises(FileNotFoundError):
        releases.model_folder('117M', str(here / 'models'))  # an absolute folder is the only one


def test_model_folder_reports_what_is_missing_and_how_to_get_it(vocabulary, tmp_path, monkeypatch):
    copy_vocabulary(vocabulary, str(tmp_path / 'models' / 'demo'))
    (tmp_path / 'models' / 'demo' / 'checkpoint').write_text('')
    copy_vocabulary(vocabulary, str(tmp_path / 'models' / 'training run without a save'))
    monkeypatch.setattr(releases, 'REPOSITORY', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r'no model 345M in .*\(models there: demo\).*download_model.py 345M`'):
        encoder.get_encoder('345M')
    with pytest.raises(FileNotFoundError, match=r'no model 7 in .*download_model.py 117M --models_dir other` .*1558M'):
        encoder.get_encoder(7, 'other')
    (tmp_path / 'models' / '117M').mkdir()
    with pytest.raises(FileNotFoundError, match=r'117M has no encoder.json, vocab.bpe; .*download_model.py 117M`'):
        encoder.get_encoder('117M')
    with pytest.raises(FileNotFoundError, match='demo has no hparams.json;'):
        releases.model_folder('demo', files=('vocab.bpe', 'hparams.json'))


@pytest.mark.parametrize('found, missing, words', [
    ('vocab.json merges.txt', 'encoder.json vocab.bpe', 'copy vocab.json to encoder.json and merges.txt to vocab.bpe'),
    ('model.ckpt-5.index model.ckpt-5.meta', 'checkpoint', 'called model.ckpt-5; .*path: "model.ckpt-5"'),
    ('checkpoint model-1.index model-2.index', 'model-9.data-00000-of-00001 model-9.index',
     'model-1, model-2; .*"model-2"'),
    ('pytorch_model.bin vocab.json merges.txt', 'checkpoint encoder.json', 'copy vocab.json .*from-transformers')])
def test_model_folder_says_what_to_do_with_files_of_other_programs(tmp_path, found, missing, words):
    """A download would not help, or would replace what is there."""
    (tmp_path / 'mine').mkdir()
    for name in found.split():
        (tmp_path / 'mine' / name).write_text('')
    with pytest.raises(FileNotFoundError, match='has no %s; .*%s' % (missing.replace(' ', ', '), words)) as caught:
        releases.model_folder('mine', str(tmp_path), files=missing.split())
    assert 'download' not in str(caught.value)


def test_model_folder_takes_a_file_for_no_model(tmp_path):
    """Neither a file at models_dir nor one below it is a folder; both are reported as a missing model."""
    (tmp_path / 'file').write_text('')
    for name, models_dir in (('117M', tmp_path / 'file'), ('file', tmp_path)):
        with pytest.raises(FileNotFoundError, match='no model %s in .*download_model.py' % name):
            releases.model_folder(name, str(models_dir))


@pytest.mark.parametrize('written', [
    'model.ckpt-5', './model.ckpt-5', '/content/checkpoint/run1/model.ckpt-5', 'run1\\\\model.ckpt-5',
    'C:\\\\gpt-2\\\\checkpoint/run1\\\\model.ckpt-5'])
def test_weights_name_is_the_last_part_of_a_path(tmp_path, written):
    """The folder has moved since, and the path may be that of Windows, whose backslashes TensorFlow doubles."""
    (tmp_path / 'checkpoint').write_text('model_checkpoint_path: "%s"\nall_model_checkpoint_paths: "a"\n' % written)
    assert releases.weights_name(str(tmp_path / 'checkpoint')) == 'model.ckpt-5'


def test_name_and_dir_are_absolute(tmp_path, monkeypatch):
    """So that they hold in another process with another working directory."""
    monkeypatch.chdir(tmp_path)
    assert releases.name_and_dir('best') == ('best', str(tmp_path))
    assert releases.name_and_dir(os.path.join('runs', 'best')) == ('best', str(tmp_path / 'runs'))


def test_weights_name_reads_no_giant(tmp_path):
    path = tmp_path / 'checkpoint'
    with open(str(path), 'wb') as file:
        file.write(b'model_checkpoint_path: "model.ckpt"\n')
        file.truncate(2 ** 40)
    assert releases.weights_name(str(path)) == 'model.ckpt'
