"""Download a released GPT-2 into models/<name>:  python3 download_model.py 124M

Each file is written to <file>.part and renamed once it is verified: by its SHA-256 if that is known, otherwise by its
format and the checksums it contains. Correct files are not fetched again, and an interrupted download continues where
it stopped.
"""
import os
import sys

sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), 'src'))
from gpt2.system import process

if __name__ == '__main__':
    process.set_up()  # before the imports below: they are slow, and one may fail

import collections
import contextlib
import email.utils
import http.client
import math
import re
import time

import requests
import urllib3

import encoder
from gpt2 import releases
from gpt2.system import files, flags, tensor_bundle
from gpt2.system.progress import Progress, report

ADDRESSES = ('https://openaipublic.blob.core.windows.net/gpt-2/models',
             'https://f001.backblazeb2.com/file/LLMs-from-scratch/gpt2',
             'https://huggingface.co/rasbt/gpt2-tensorflow/resolve/main')  # tried in this order

INDEX, META, DATA = 'model.ckpt.index', 'model.ckpt.meta', 'model.ckpt.data-00000-of-00001'
# In the order of fetching: vocab.bpe is verified with encoder.json, and the data with the index.
FILES = ('checkpoint', 'hparams.json', 'encoder.json', 'vocab.bpe', INDEX, META, DATA)

# {file: (bytes, SHA-256)} of a release, as far as they are known.
EVERY_SIZE = {
    'checkpoint': (77, 'dd1b025d2e155283f5e300ce95bf6d5b6bc0f7fe010db73daa6975eb896ab9cb'),
    'encoder.json': (1042301, '196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783'),
    'vocab.bpe': (456318, '1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5')}
KNOWN = {
    '124M': dict(EVERY_SIZE, **{
        'hparams.json': (90, 'd9d56e4121c427164e0c55c6f03c08e1daf9002b9b672825112d19097b680318'),
        INDEX: (5215, '71916f763f9746f9b2a06b12d91996cf1084ae008d0424543d39391c5f2dc687'),
        META: (471155, '4668c448fa11531fd6700460487f73e82d3272960cea942252f8744bf225c77b'),
        DATA: (497759232, '2060c885360cc0cf41d7a6dbc4d24b5127aae20260c8b5ae521b5a6578407118')})}

NETWORK_ERRORS = requests.RequestException, urllib3.exceptions.HTTPError  # requests lets some of the latter through
TIMEOUT_SECONDS = 30  # without receiving a byte
TRIES = 5  # in a row without a new byte
FIRST_WAIT_SECONDS = 1  # between tries, doubled each time
MAX_WAIT_SECONDS = 600  # that a server may ask for
MIN_BYTES_PER_SECOND, SLOW_MINUTES = 1000, 3  # a server that is slower for so long is given up
PIECE_BYTES = 2 ** 16  # written at a time, at most
MAX_BYTES = 2 ** 24  # of a file of unknown size: never the weights, and of the others the largest has about 2 ** 21


def download(name: str, models_dir=os.path.join(releases.REPOSITORY, 'models'), base_url: str = None):
    """Download a released GPT-2 into models_dir/<name>: the files that are missing or wrong there.

    Raises ValueError for an invalid name or address, OSError if a file cannot be fetched or written.

    Args:
        name: 124M (or 117M), 355M (or 345M), 774M (or 762M), 1558M (or 1542M); with --base_url any model on that server
        models_dir: where to create the folder <name>
        base_url: fetch <base_url>/<124M, ...>/<file> and try no other address; None uses the environment variable
            GPT2_BASE_URL, or if it is not set the address of the release, then two mirrors
    """
    base_url = base_url or os.environ.get('GPT2_BASE_URL')
    release = releases.BY_NAME.get(name)
    if not release and not (base_url and re.match(r'\w[\w.-]*\Z', name)):
        raise ValueError('no released model is called %r; choose from %s' % (name, releases.CHOICES))
    if base_url and not re.match('(?i)https?://.', base_url):
        raise ValueError('the base_url is %r; it must begin with http:// or https://' % base_url.rpartition('@')[2])
    folder = os.path.join(os.path.expanduser(os.path.expandvars(models_dir)), name)
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise ValueError('%s exists and is not a folder; remove it first' % folder)
    os.makedirs(folder, exist_ok=True)
    addresses = collections.deque([base_url.rstrip('/')] if base_url else ADDRESSES)
    with process.interruptible(stopped=lambda: 'stopped; the same command continues from here'), \
            files.folder_lock(folder, lambda holder: report(
                'waiting for %s, which is downloading into %s' % (holder, folder))):
        for file in FILES:
            path = os.path.join(folder, file)
            if not is_verified(path, release):
                fetch_from_any(addresses, '%s/%s' % (release.names[0] if release else name, file), path, release)
    report('%s is complete' % folder)


def is_verified(path, release):
    """Returns whether the file exists and is correct; of a model that is not a release, only the weights can be."""
    if not os.path.exists(path) or release is None and os.path.basename(path) != DATA:
        return False
    try:
        verify(path, path, release)
    except ValueError as error:
        report('%s: %s; fetching it again' % (path, error))
        return False
    return True


def fetch_from_any(addresses, remote_path, path, release):
    """Fetch a file from the first of addresses (a deque) that has it, and move that one to the front.

    Raises OSError with the reason of each address, or if the file cannot be written.
    """
    reasons = []
    for _ in range(len(addresses)):
        url = '%s/%s' % (addresses[0], remote_path)
        if reasons:
            report(reasons[-1])
        report('fetching %s' % url)
        try:
            return fetch(url, path, release)
        except NETWORK_ERRORS + (ValueError,) as error:
            reasons.append(process.without_password('%s: %s' % (url, short_message(error))))
            addresses.rotate(-1)
    raise OSError('cannot download ' + '; '.join(reasons))


def fetch(url, path, release):
    """Fetch the file at url, verify it and rename it to path.

    Raises ValueError if the server does not have it, one of NETWORK_ERRORS if the connection fails,
    OSError if it cannot be written.
    """
    n_bytes, _ = expected(path, release)
    if n_bytes is None:  # small; and whether two parts of it belong together could not be verified
        with files.replacing(path) as part:
            fetch_rest(url, part, None)
            return verify(part, path, release)
    part = path + '.part'
    files.remove_link(part)
    resumed = size_of(part) > 0
    fetch_rest(url, part, n_bytes)
    try:
        verify(part, path, release)
    except ValueError:
        os.remove(part)
        if resumed:  # perhaps from another server: start over once
            return fetch(url, path, release)
        raise
    files.sync(part)
    os.replace(part, path)


def fetch_rest(url, part, n_bytes):
    """Append the missing bytes to the file part; retry while it may help. Parameters and errors as of request_rest."""
    max_bytes = size_of(part)
    failures = 0
    while True:
        try:
            return request_rest(url, part, n_bytes)
        except NETWORK_ERRORS as error:
            failures = 1 if size_of(part) > max_bytes else failures + 1
            max_bytes = max(max_bytes, size_of(part))
            if failures >= TRIES:
                raise
            wait_seconds = max(FIRST_WAIT_SECONDS * 2 ** (failures - 1), retry_after(error))
            if wait_seconds > MAX_WAIT_SECONDS:
                raise ValueError('%s; it asks to be tried again in %d minutes' % (error, math.ceil(wait_seconds / 60)))
            report('%s; trying again in %g s' % (short_message(error), wait_seconds))
            time.sleep(wait_seconds)
        except OSError as error:  # of this computer, not of the network
            if error.filename or not error.errno:  # the file could not be opened, or the problem is not the disk
                raise
            raise OSError('%s: %s; the bytes downloaded so far are kept, and the same command continues from there'
                          % (part, error.strerror or error))


def request_rest(url, part, n_bytes):
    """Request the missing bytes of the file part once, and append them.

    n_bytes: size of the complete file; None if unknown, which fetches the file from its beginning.
    Raises ValueError if the server does not have the file, one of NETWORK_ERRORS if the connection fails,
    OSError if it cannot be written.
    """
    start = size_of(part)
    if n_bytes is None or start > n_bytes:
        start = 0
    if start == n_bytes:
        return
    response = get(url, start)
    if start and (response.status_code == 416 or response.status_code == 206 and declared_range(response)[0] != start):
        response.close()  # the server cannot send only the rest
        start = 0
        response = get(url, start)
    with response:
        position, total = body_range(response, start, n_bytes)
        max_bytes = MAX_BYTES if total is None else total
        name = os.path.basename(url)
        with open(part, 'ab') as file, \
                Progress(total, unit='B', unit_scale=True, label=name, initial=position) as progress:
            file.truncate(position)
            for piece in fast_enough(body_of(response)):
                piece = piece[:max_bytes - position]  # a body may be endless
                file.write(piece)
                position += len(piece)
                progress.advance(len(piece))
                if position == max_bytes:
                    break
    if total is None and position == max_bytes:
        raise ValueError('the server sends over %d bytes, the limit for this file' % max_bytes)
    if total not in (None, position):
        raise requests.ConnectionError('the connection broke after %d of %d bytes' % (position, total))


def get(url, start):
    """Request a file from byte start on. Returns the response, whose body is not read yet.

    Raises ValueError for an invalid address, one of NETWORK_ERRORS if there is no response.
    """
    headers = {'Accept-Encoding': 'identity'}
    if start:
        headers['Range'] = 'bytes=%d-' % start
    try:
        return requests.get(
            url, headers=headers, hooks={'response': skip_redirect}, stream=True, timeout=TIMEOUT_SECONDS)
    except (requests.TooManyRedirects, requests.exceptions.InvalidSchema, requests.exceptions.InvalidHeader) as error:
        needs = '; a SOCKS proxy needs `pip install pysocks`' if 'SOCKS' in str(error) else ''
        raise ValueError('%s%s' % (error, needs))
    except ValueError:  # whose text may contain a password
        raise ValueError('the address, or that of a proxy or a redirect, is invalid')
    except requests.ConnectionError as error:
        found = re.search("certificate verify failed(: [\\w -]+)?|doesn't match", str(error))
        if found:
            raise ValueError('the certificate of the server is not trusted: %s; if a proxy of your network replaces '
                             'certificates, set REQUESTS_CA_BUNDLE to the file with its own' % found.group().strip())
        raise


def skip_redirect(response, **_):
    """Do not read the body of a redirect, which may be endless."""
    if response.is_redirect:
        response.close()


def body_of(response):
    """Yield the bytes of a response as they arrive. (iter_content waits for a whole piece, for days if they are slow.)

    Raises one of NETWORK_ERRORS if the connection breaks.
    """
    body = response.raw._original_response
    try:
        yield from iter(lambda: body.read1(PIECE_BYTES), b'')
    except (OSError, http.client.HTTPException) as error:
        raise requests.exceptions.ChunkedEncodingError(error)


def fast_enough(pieces):
    """Iterate over bytes as they arrive, and report each minute in which they are fewer than MIN_BYTES_PER_SECOND.

    Raises ValueError after SLOW_MINUTES of them.
    """
    began, n_bytes, n_slow = time.time(), 0, 0
    for piece in pieces:
        yield piece
        n_bytes += len(piece)
        seconds = time.time() - began
        if seconds >= 60:
            n_slow = n_slow + 1 if n_bytes < MIN_BYTES_PER_SECOND * seconds else 0
            slow = 'the server sends %.3g bytes per second' % (n_bytes / seconds)
            if n_slow >= SLOW_MINUTES:
                raise ValueError('%s, for %d minutes' % (slow, n_slow))
            if n_slow:
                report(slow)
            began, n_bytes = time.time(), 0


def retry_after(error):
    """The seconds that a server asks to wait in its answer, which the error has, if any; 0 if it does not ask."""
    response = getattr(error, 'response', None)
    asked = '' if response is None else response.headers.get('Retry-After', '')
    with contextlib.suppress(ValueError, OverflowError, IndexError):
        date = email.utils.parsedate_tz(asked)
        return max(0, email.utils.mktime_tz(date) - time.time() if date else int(asked[:9]))
    return 0


def body_range(response, start, n_bytes):
    """Check the headers of a response. Returns the position of its first byte in the file, and the file's size or None.

    start: the first byte requested.
    Raises requests.HTTPError for a temporary failure of the server, ValueError if it does not have the file.
    """
    code = response.status_code
    status = ('%d %s' % (code, http.client.responses.get(code, ''))).strip()
    if code >= 500 or code in (408, 429):
        raise requests.HTTPError('the server answers %s' % status, response=response)
    if code not in (200, 206):
        raise ValueError('the server answers %s' % status)
    if response.headers.get('Content-Type', '').startswith('text/html'):
        raise ValueError('the server, or a proxy, sends a web page instead of the file')
    if response.headers.get('Content-Encoding', 'identity') != 'identity':
        raise ValueError('the server, or a proxy, sends the file compressed, which was not requested')
    first, total = declared_range(response)
    if first not in (0, start):
        raise ValueError('the server sends another part of the file than the one requested')
    if total is None:
        total = n_bytes
    if n_bytes not in (None, total):
        raise ValueError('the server has %d bytes, the file has %d: a proxy, or not the released model?'
                         % (total, n_bytes))
    if n_bytes is None and total is not None and total > MAX_BYTES:
        raise ValueError('the server has %d bytes, the limit for this file is %d' % (total, MAX_BYTES))
    return first, total


def declared_range(response):
    """Returns the position of a response's first byte in the file, and the file's size, each None if not declared."""
    if response.status_code == 200:  # the whole file, even if only the rest was requested
        found = re.match(r'[0-9]{1,15}\Z', response.headers.get('Content-Length', ''))
        return 0, int(found.group()) if found else None
    found = re.match(r'bytes ([0-9]{1,15})-[0-9]{1,15}/([0-9]{1,15}|\*)\Z', response.headers.get('Content-Range', ''))
    if not found:
        return None, None
    return int(found.group(1)), None if found.group(2) == '*' else int(found.group(2))


def expected(path, release):
    """Returns the size in bytes and the SHA-256 that the file at path must have, None where unknown.

    release: a Release, or None for a model that is not a release.
    """
    folder, file = os.path.split(path)
    known = KNOWN.get(release.names[0], EVERY_SIZE) if release else {}
    if file == DATA and file not in known:
        return tensor_bundle.data_bytes(os.path.join(folder, INDEX)), None
    return known.get(file, (None, None))


def verify(path, final_path, release):
    """Raises ValueError if the file at path cannot become the one at final_path."""
    folder, file = os.path.split(final_path)
    with open(path, 'rb') as opened:
        head = opened.read(100)
    if file != DATA and head.lstrip(b'\xef\xbb\xbf \t\r\n').startswith(b'<'):
        raise ValueError('it is a web page, perhaps of a proxy, instead of the file')
    n_bytes, sha256 = expected(final_path, release)
    if n_bytes not in (None, size_of(path)):
        raise ValueError('it has %d bytes instead of %d' % (size_of(path), n_bytes))
    if sha256:
        if files.sha256(path).hexdigest() != sha256:
            raise ValueError('its SHA-256 is not that of the release')
    elif file == DATA:
        report('checking the tensors')
        tensor_bundle.check_data(path, os.path.join(folder, INDEX))
    elif file == INDEX:
        data_bytes = tensor_bundle.data_bytes(path)
        if release and data_bytes != 4 * release.n_parameters():
            raise ValueError('it describes %d bytes of weights, %s has %d'
                             % (data_bytes, release.names[0], 4 * release.n_parameters()))
    elif file == META:
        tensor_bundle.check_meta(path)
    elif file == 'checkpoint' and releases.weights_name(path) != 'model.ckpt':
        raise ValueError('it has no line model_checkpoint_path: "model.ckpt", the only name that can be fetched')
    elif file == 'hparams.json':
        check_hparams(path, release)
    elif file == 'encoder.json' and set(map(type, json_object(path).values())) != {int}:
        raise ValueError('some symbol in it has no number')
    elif file == 'vocab.bpe':
        if not head.startswith(b'#version'):
            raise ValueError('it does not begin with a line #version')
        encoder.Encoder(json_object(os.path.join(folder, 'encoder.json')), encoder.read_merges(path)[0])


def check_hparams(path, release):
    """Raises ValueError unless hparams.json has the numbers of the release, or any if the model is not a release."""
    found = json_object(path)
    if release and found != release.hparams():
        raise ValueError('it has %.200s instead of %s' % (found, release.hparams()))
    missing = [name for name in sorted(releases.RELEASES[0].hparams()) if type(found.get(name)) is not int]
    if missing:
        raise ValueError('it has no whole number for %s' % ', '.join(missing))


def json_object(path):
    """files.read_json, but its ValueError does not name the .part file, which will be removed."""
    try:
        return files.read_json(path)
    except ValueError:
        raise ValueError('it is not JSON of the form {"name": value, ...}')


def size_of(path):
    """Returns the size of a file in bytes, 0 if it does not exist."""
    return os.path.getsize(path) if os.path.exists(path) else 0


def short_message(error):
    """Returns the part of a network error that matters to users; its own text is long and nested."""
    if isinstance(error, requests.Timeout) or 'timed out' in str(error):
        return 'no answer for %g seconds' % TIMEOUT_SECONDS
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return 'the connection broke'
    who = 'the proxy' if isinstance(error, requests.exceptions.ProxyError) else 'the server'
    found = re.search(r'(\[(Errno|SSL)|Tunnel connection failed)[^\'"()]+', str(error))
    if found:
        return '%s: %s' % (who, found.group().strip())
    if error.args and isinstance(error.args[0], Exception):  # whose text is a Python expression
        return '%s closed the connection, or does not speak HTTP' % who
    return str(error)


if __name__ == '__main__':
    flags.run(download, outputs=['name'])
