"""serving/page.html in a browser, with a stand-in for the server whose predictions are known."""
import codecs
import json
import math
import os
import threading

import pytest

from gpt2.evaluation import page as evaluation_page
from helpers import completions
from helpers.browser import CONTROL, SHIFT, Browser
from helpers.completions import CONTEXT, EMOJI, TOKENS, continuation, encode, name, predict
from helpers.processes import SECONDS
from test_page import luminance, shown_percent

pytestmark = pytest.mark.slow  # the first one starts the browser

ASKED = dict(max_tokens=100, temperature=0.7, top_k=40, top_p=1, logprobs=10, return_token_ids=True, stream=True)
HOSTILE = ('</textarea></script><script>document.title = "hacked"</script><img src=x onerror="document.title = 1"> '
           '<b>&amp;\n')
SIGNS = str.maketrans(' \t\n', '␣⇥↵')


@pytest.fixture(scope='module')
def server():
    with completions.Completions() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    with Browser(str(tmp_path_factory.mktemp('browser'))) as running:
        yield running


@pytest.fixture
def page(browser, server):
    """The Browser, in which the page has just been opened for the first time."""
    server.reset()
    browser.forget()
    open_page(browser, server)
    return browser


def open_page(browser, server):
    browser.open(server.url)
    browser.wait('document.querySelector("#model").textContent || document.querySelector("#door").open')


def get(page, element, attribute='textContent'):
    return page.run('return document.querySelector(a[0])[a[1]]', element, attribute)


def put(page, element, value):
    """Type a value in the place of what is in a field."""
    page.run('document.querySelector(a[0]).focus(); document.querySelector(a[0]).select()', element)
    page.type(value) if value else page.press('Backspace')


def click(page, element, number=0):
    page.click('document.querySelectorAll(%s)[%d]' % (json.dumps(element), number))


def is_idle(page):
    """Wait for the end of what the page is doing."""
    page.wait('document.querySelector("#verb").textContent === "Generate"')


def generate(page, prompt='The King', length=20):
    """Type a prompt and click on Generate. Returns the ids of the prompt, and of what the model writes."""
    put(page, '#prompt', prompt)
    page.run('document.querySelector("details").open = true')
    put(page, '[name=max_tokens]', str(length))
    click(page, '#generate')
    is_idle(page)
    return encode(prompt), continuation(encode(prompt), length)


def text_of(ids):
    """The text of ids of TOKENS, as far as its characters are complete."""
    return codecs.getincrementaldecoder('utf-8')('replace').decode(b''.join(TOKENS[token] for token in ids))


def visible(token):
    word = name(token)
    return word[6:] if word.startswith('bytes:') else word.translate(SIGNS)


def card(page):
    """The texts in the card: token, probability, then each of the most likely tokens and its percentage; or None.

    What it says of a character of several tokens is left out.
    """
    return page.run("""const texts = [...document.querySelectorAll('#card :is(b, #chance, li span)')];
        if (document.querySelector('#card').hidden) return null;
        return texts.map(element => element.textContent.split(';')[0]);""")


def expected_card(ids, token):
    found = predict(ids)
    rank = [i for i, _ in found].index(token) + 1
    lines = [visible(token), 'probability %s, %s' % (
        percent(dict(found)[token]), 'rank %d' % rank if rank <= 10 else 'not among the ten most likely')]
    for i, p in found[:10] + found[rank - 1:rank] * (rank > 10):
        lines += [visible(i), percent(p)]
    return lines


def percent(p):
    return shown_percent(-math.log(p))


# Writing

def test_generate_asks_for_what_was_typed_and_shows_the_answer(page, server):
    """The request has the prompt, the settings and nothing else; the text is the prompt and all tokens."""
    ids, new = generate(page, 'The King said: "שלום" 👑\n', length=60)
    assert server.requests == [dict(ASKED, prompt='The King said: "שלום" 👑\n', max_tokens=60)]
    assert get(page, '#text') == 'The King said: "שלום" 👑\n' + text_of(new)
    assert get(page, '#status').startswith('60 new tokens') and not page.complaints()


def test_first_sight_is_an_example_and_one_button(page, server):
    """Ctrl+Enter alone continues the example; the model's name is in sight; nothing else can be pressed."""
    buttons = page.run("return [...document.querySelectorAll('button')].filter(one => one.checkVisibility()).length")
    assert (buttons, get(page, '#model'), page.run('return document.title')) == (1, 'made-up', 'GPT-2: made-up')
    page.press('Enter', modifiers=CONTROL)
    is_idle(page)
    assert server.requests == [dict(ASKED, prompt='Once upon a time there was a frog who')]


def test_settings_reach_the_server(page, server):
    """Each flag of the sampler has a field; an empty seed is not sent."""
    page.run('document.querySelector("details").open = true')
    for field, value in ('max_tokens', '7'), ('temperature', '0.15'), ('top_k', '3'), ('top_p', '0.9'), ('seed', '5'):
        put(page, '[name=%s]' % field, value)
    assert get(page, '#summary') == '7 tokens, temperature 0.15, top k 3, top p 0.9, seed 5'
    page.press('Enter')  # in a field it generates, too
    is_idle(page)
    (asked,) = server.requests
    assert dict(asked, prompt='') == dict(ASKED, prompt='', max_tokens=7, temperature=0.15, top_k=3, top_p=0.9, seed=5)


def test_settings_that_are_wrong_are_shown_and_not_sent(page, server):
    """The settings open, and the field that is wrong gets the focus."""
    for field, value, right in (
            ('temperature', '-1', '1'), ('top_p', '0', '1'), ('max_tokens', '', '9'), ('seed', '1.5', '')):
        page.run('document.querySelector("details").open = true')
        put(page, '[name=%s]' % field, value)
        page.run('document.querySelector("details").open = false')
        click(page, '#generate')
        assert page.run('return [document.activeElement.name, document.querySelector("details").open]') == [field, True]
        assert not server.requests and get(page, '#verb') == 'Generate'
        put(page, '[name=%s]' % field, right)


def test_text_grows_token_by_token_until_stop(page, server):
    """Each token is shown when it comes, before the next one is computed; after Escape the server can stop at once."""
    server.may_go_on = threading.Semaphore(0)
    click(page, '#generate')
    prompt = encode(get(page, '#prompt', 'value'))
    new = continuation(prompt, 5)
    for n in range(1, 6):
        server.may_go_on.release()
        text = get(page, '#prompt', 'value') + text_of(new[:n])
        page.wait('document.querySelector("#text").textContent.length >= a[0]', len(text.encode('utf-16-le')) // 2)
        assert get(page, '#text') == text
        assert (get(page, '#verb'), get(page, '#status')) == ('Stop', 'Generating…')  # tokens are not read aloud
    page.press('Escape')
    assert server.gone.wait(SECONDS)
    is_idle(page)
    assert get(page, '#status').startswith('Stopped. 5 new tokens')
    server.may_go_on = None
    click(page, '#continue')
    is_idle(page)
    assert server.requests[1:] == [dict(ASKED, prompt=prompt + new)]
    assert get(page, '#text') == get(page, '#prompt', 'value') + text_of(new + continuation(prompt + new, 100))


def test_stop_by_the_button(page, server):
    """The button that generates stops; the second click of a double click does not."""
    server.may_go_on = threading.Semaphore(3)
    click(page, '#generate')
    page.run("document.querySelector('#generate').dispatchEvent(new MouseEvent('click', {bubbles: true, detail: 2}))")
    page.wait('document.querySelector("#text i")')
    click(page, '#generate')
    assert server.gone.wait(SECONDS)
    assert len(server.requests) == 1 and get(page, '#verb') == 'Generate'


def test_continue_stops_where_the_context_is_full(page, server):
    """The last request asks for what fits; then Continue does nothing, and the page says why."""
    ids, new = generate(page, 'x' * (CONTEXT - 25), length=20)
    click(page, '#continue')
    is_idle(page)
    assert (server.requests[1]['prompt'], server.requests[1]['max_tokens']) == (ids + new, 5)
    assert '%d tokens' % CONTEXT in get(page, '#status') and get(page, '#continue', 'ariaDisabled') == 'true'
    click(page, '#continue')
    assert get(page, '#status').startswith('5 new tokens')  # otherwise of a new request


def test_text_that_the_model_ends(page, server):
    """The end-of-text token is a sign that can be pointed at, and no part of the text that is copied or continued."""
    server.ends_at = 4
    ids, new = generate(page)
    assert 'ended' in get(page, '#status') and get(page, '#text') == 'The King' + text_of(new[:3])
    click(page, '#text i', 3)
    assert card(page)[0] == '<|endoftext|>'
    server.ends_at = None
    click(page, '#others button', 1)
    is_idle(page)
    chosen = predict(ids + new[:3])[1][0]
    assert server.requests[1]['prompt'] == ids + new[:3] + [chosen]


# Tokens

def test_card_shows_probability_and_the_most_likely_tokens(page):
    """Of every token, whatever it is; a tenth of them is likely, and one of a character's tokens is as any other."""
    ids, new = generate(page, length=60)
    click(page, '#text i')
    for n, token in enumerate(new):
        assert card(page) == expected_card(ids + new[:n], token), n
        click(page, '#next')
    assert get(page, '#next', 'ariaDisabled') == 'true'


def test_card_follows_the_mouse_and_stays_after_a_click(page):
    """It goes with the mouse until a token is clicked on, and then until a click elsewhere or Escape."""
    ids, new = generate(page, 'xy', length=12)
    first, second = [expected_card(ids + new[:n], new[n])[0] for n in (0, 4)]
    element = 'document.querySelectorAll("#text i")[%d]'
    numbers = page.run('return [...document.querySelectorAll("#text i")].map(one => one.first)')
    page.point(element % numbers.index(0))
    assert card(page)[0] == first
    page.point(element % numbers.index(4))
    assert card(page)[0] == second
    page.point('document.querySelector("h1")')
    assert card(page) is None
    page.click(element % numbers.index(0))
    page.point(element % numbers.index(4))
    assert card(page)[0] == first
    page.click('document.querySelector("h1")')
    assert card(page) is None
    page.click(element % numbers.index(4))
    assert card(page)[0] == second
    page.press('Escape')
    assert card(page) is None


def test_choose_goes_on_from_any_of_the_tokens(page, server):
    """The ids of the request are those up to the token, and the chosen one; also of numbers, which JavaScript sorts."""
    ids, new = generate(page, length=30)
    n = next(n for n in range(5, 30) if {'7', '2019'} <= {name(token) for token, _ in predict(ids + new[:n])[1:9]})
    click(page, '#coloured')  # with colours, one can click on a line's end, too
    for place in range(10):
        page.click('[...document.querySelectorAll("#text i")].find(one => one.first === %d)' % n)
        click(page, '#others button', place)
        is_idle(page)
        start = ids + new[:n] + [predict(ids + new[:n])[place][0]]
        assert server.requests[-1] == dict(ASKED, prompt=start, max_tokens=30)
        assert get(page, '#text') == 'The King' + text_of(start[len(ids):] + continuation(start, 30))
        page.click('[...document.querySelectorAll("#text i")].find(one => one.first === %d)' % n)
        assert card(page) == expected_card(ids + new[:n], start[-1])
        page.press('Escape')  # the card may cover the buttons
        click(page, '#undo')
        assert get(page, '#text') == 'The King' + text_of(new)


def test_choose_while_the_text_grows(page, server):
    """The request that runs is given up; none of its tokens gets into the new text, not even one on its way."""
    page.run("""const read = ReadableStreamDefaultReader.prototype.read;
        let last;
        ReadableStreamDefaultReader.prototype.read = function() {
            return read.call(this).then(part => last = part, () => last);
        };""")
    server.may_go_on = threading.Semaphore(6)
    click(page, '#generate')
    page.wait('document.querySelectorAll("#text i").length > 2')
    ids = encode(get(page, '#prompt', 'value'))
    click(page, '#text i')
    click(page, '#others button', 2)
    assert server.gone.wait(SECONDS)
    for _ in range(200):
        server.may_go_on.release()
    is_idle(page)
    start = ids + [predict(ids)[2][0]]
    assert server.requests[1]['prompt'] == start
    assert get(page, '#text') == get(page, '#prompt', 'value') + text_of(start[len(ids):] + continuation(start, 100))


def test_tokens_of_one_character_share_an_element(page):
    """Three tokens are an emoji: it is shown as soon as it is complete, and each of them has its card."""
    prompt = next('x' * n for n in range(1, 200) if continuation(encode('x' * n), 3) == [6, 7, 8])
    ids, new = generate(page, prompt, length=4)
    assert page.run('return document.querySelector("#text i").textContent') == '🐸'
    click(page, '#text i')
    for n in range(3):
        assert card(page) == expected_card(ids + new[:n], new[n])
        assert get(page, '#chance').endswith('; one of 3 tokens that form 🐸')
        click(page, '#next')
    assert card(page)[0] == visible(new[3])


def test_choose_the_beginning_of_a_character_as_the_first_token(page, server):
    """There is no element for it until the rest of the character has come; the cards open as before then."""
    def is_other(ids):
        return EMOJI[0] in [token for token, _ in predict(ids)[1:10]] and continuation(ids, 1)[0] not in EMOJI

    prompt = next('x' * n for n in range(1, 200) if is_other(encode('x' * n)))
    ids, _ = generate(page, prompt, length=4)
    click(page, '#text i')
    click(page, '#others button', [token for token, _ in predict(ids)].index(EMOJI[0]))
    is_idle(page)
    start = ids + [EMOJI[0]]
    assert not page.complaints()
    assert server.requests[1]['prompt'] == start and focused(page) == 'generate'
    assert get(page, '#text').startswith(prompt + '🐸')
    page.run('document.querySelector("#text i").focus()')
    assert card(page) == expected_card(ids, EMOJI[0])


def focused(page):
    """The id of the element that has the focus, the number of its token, or its kind."""
    return page.run("""const {id, localName, first} = document.activeElement;
        return id || (localName === 'i' ? first : localName)""")


def test_undo_goes_back_step_by_step(page, server):
    """Through choices, continuations and new prompts, to the first text."""
    texts = []
    for prompt in 'One', 'Two':
        generate(page, prompt, length=6)
        texts.append((prompt, get(page, '#text')))
        click(page, '#continue')
        is_idle(page)
        texts.append((prompt, get(page, '#text')))
        click(page, '#text i', 1)
        click(page, '#others button', 3)
        is_idle(page)
        texts.append((prompt, get(page, '#text')))
    assert len({text for _, text in texts}) == 6
    for prompt, text in texts[-2::-1]:
        click(page, '#undo')
        assert (get(page, '#prompt', 'value'), get(page, '#text')) == (prompt, text)
    click(page, '#undo')
    assert get(page, '#text') == '' and get(page, '#prompt', 'value') == 'One' and get(page, '#undo', 'hidden')
    assert len(server.requests) == 6


def test_undo_leaves_a_prompt_that_is_being_written(page):
    generate(page, 'One', length=6)
    generate(page, 'Two', length=6)
    put(page, '#prompt', 'Three')
    click(page, '#undo')
    assert get(page, '#prompt', 'value') == 'Three' and get(page, '#text').startswith('One')


def test_copy_takes_the_whole_text(page, server):
    """As it is, without the signs of invisible tokens; where a page has no clipboard, the text is selected."""
    page.call('Browser.grantPermissions', permissions=['clipboardReadWrite', 'clipboardSanitizedWrite'],
              browserContextId=page.context)
    generate(page, HOSTILE, length=60)
    click(page, '#coloured')
    click(page, '#copy')
    page.wait('document.querySelector("#status").textContent === "Copied."')
    assert page.run('return navigator.clipboard.readText()') == get(page, '#text') != ''
    page.run("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    click(page, '#copy')
    assert 'Ctrl+C' in get(page, '#status')
    assert page.run('return getSelection().toString()').split() == get(page, '#text').split()


# What survives

def test_reload_keeps_everything_typed_and_the_text(page, server):
    """Prompt, settings, colours, text with its cards; Continue goes on from the ids. Also what was typed since."""
    ids, new = generate(page, HOSTILE)
    click(page, '#coloured')
    put(page, '[name=seed]', '9')
    put(page, '#prompt', 'Something else')
    text = get(page, '#text')
    open_page(page, server)
    assert (get(page, '#prompt', 'value'), get(page, '#text')) == ('Something else', text)
    assert get(page, '#summary').endswith('seed 9') and get(page, '#coloured', 'checked')
    click(page, '#text i')
    assert card(page) == expected_card(ids, new[0])
    click(page, '#continue')
    is_idle(page)
    assert server.requests[1] == dict(ASKED, prompt=ids + new, max_tokens=20, seed=9)
    assert not page.complaints()


def test_reload_while_the_text_grows_keeps_what_has_come(page, server):
    server.may_go_on = threading.Semaphore(3)
    click(page, '#generate')
    prompt = get(page, '#prompt', 'value')
    text = prompt + text_of(continuation(encode(prompt), 3))
    page.wait('document.querySelector("#text").textContent === a[0]', text)
    open_page(page, server)
    assert get(page, '#text') == text and get(page, '#verb') == 'Generate'


def test_text_of_another_model_is_continued_as_text(page, server):
    """Whose ids mean something else."""
    generate(page, 'One')
    text = get(page, '#text')
    server.model = 'another'
    open_page(page, server)
    page.wait('!document.querySelector("#text i")')
    click(page, '#continue')
    is_idle(page)
    assert server.requests[1]['prompt'] == text and get(page, '#text').startswith(text)


def test_storage_that_is_damaged_is_ignored(page, server):
    for content in '{', '"x"', '{"text": {"tokens": 7}, "values": {"prompt": "kept"}}', '{"values": {"nothing": 1}}':
        page.call('Page.navigate', url='about:blank')
        script = 'localStorage.setItem("gpt-2", %s)' % json.dumps(content)
        page.call('Page.addScriptToEvaluateOnNewDocument', source=script)
        open_page(page, server)
        generate(page, 'One')
        assert get(page, '#text').startswith('One') and not page.complaints()


# What can go wrong

def test_error_is_told_and_nothing_is_lost(page, server):
    """A full server: its words, when to try again, and the text and the prompt that were there."""
    generate(page, 'One')
    text = get(page, '#text')
    server.refusals = [(503, 'too many <i>requests</i> are waiting', [('Retry-After', '7')])]
    put(page, '#prompt', 'Two')
    click(page, '#generate')
    is_idle(page)
    assert get(page, '#error') == 'too many <i>requests</i> are waiting\nTry again in 7 s.'
    assert (get(page, '#text'), get(page, '#prompt', 'value')) == (text, 'Two')
    click(page, '#generate')
    is_idle(page)
    assert get(page, '#error') == '' and get(page, '#text').startswith('Two')


def test_error_within_a_stream_is_told(page, server):
    """What has come stays, and can be continued."""
    server.breaks_at = 4
    ids, new = generate(page)
    assert get(page, '#error') == 'out of memory <i>' and get(page, '#text') == 'The King' + text_of(new[:3])
    server.breaks_at = None
    click(page, '#continue')
    is_idle(page)
    assert server.requests[1]['prompt'] == ids + new[:3] and get(page, '#error') == ''


def test_server_that_is_gone_is_told(page):
    page.call('Network.enable')
    page.call('Network.emulateNetworkConditions', offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    click(page, '#generate')
    is_idle(page)
    assert 'does not answer' in get(page, '#error')


def test_key_is_asked_for_once(browser, server):
    """At the first request, until it is right; not after a reload. It is not in the storage that stays."""
    server.reset()
    server.key = 'open sesame'
    browser.forget()
    open_page(browser, server)
    browser.type('wrong')
    browser.press('Enter')
    browser.wait('document.querySelector("#ask").textContent.includes("not the API key")')
    browser.wait('document.querySelector("#door").open')
    browser.type(server.key)
    browser.press('Enter')
    browser.wait('document.querySelector("#model").textContent')
    generate(browser, 'One')
    open_page(browser, server)
    assert not get(browser, '#door', 'open') and get(browser, '#text').startswith('One')
    assert server.key not in browser.run('return JSON.stringify(localStorage)')


def test_key_that_is_not_given_is_an_error(browser, server):
    server.reset()
    server.key = 'open sesame'
    browser.forget()
    open_page(browser, server)
    browser.press('Escape')
    browser.wait('document.querySelector("#error").textContent')
    assert get(browser, '#error') == 'give the API key of this server' and not get(browser, '#door', 'open')


def test_nothing_hostile_becomes_html(page, server):
    """Neither of a prompt, nor of tokens, their alternatives, the model's name or an error."""
    count = 'return [document.querySelectorAll("script, img, b, a, iframe").length, document.title]'
    server.model = HOSTILE
    open_page(page, server)
    before = page.run(count)[0]
    generate(page, HOSTILE, length=60)
    for n in range(5):
        click(page, '#text i', n)
    server.refusals = [(400, HOSTILE)]
    click(page, '#continue')
    is_idle(page)
    assert get(page, '#error') == HOSTILE and get(page, '#model') == HOSTILE
    open_page(page, server)
    assert page.run(count) == [before, ('GPT-2: ' + HOSTILE).strip()] and not page.complaints()


# Everybody

def test_everything_works_by_keyboard(page, server):
    """From the prompt to another token; the focus is always in sight."""
    def tab_to(element, *keys, **options):
        for _ in range(20):
            page.press(*keys or ['Tab'], **options)
            assert page.run("""const {outlineStyle, outlineWidth} = getComputedStyle(document.activeElement);
                return outlineStyle !== 'none' && parseFloat(outlineWidth) >= 1""")
            if page.run('return document.activeElement.matches(a[0])', element):
                return
        raise AssertionError('Tab does not reach ' + element)

    tab_to('#prompt')
    page.type('!')
    prompt = get(page, '#prompt', 'value')
    page.press('Enter', modifiers=CONTROL)
    is_idle(page)
    ids = encode(prompt)
    new = continuation(ids, 100)
    assert '!' in prompt and server.requests[0]['prompt'] == prompt
    for element in '#generate', '#continue', '#undo', '#copy', 'summary', '#coloured', '#text i':
        tab_to(element)
    assert card(page) == expected_card(ids, new[0])
    first = page.run('return document.activeElement.first')
    tab_to('#text i', 'ArrowRight')
    second = page.run('return document.activeElement.first')
    assert (first, card(page)) == (0, expected_card(ids + new[:1], new[1])) and second == 1
    page.press('ArrowLeft', 'ArrowLeft', 'End', 'ArrowRight', 'Home')
    assert card(page) == expected_card(ids, new[0])
    page.press('Enter')
    tab_to('#others li:nth-child(2) button')
    page.press('Enter')
    is_idle(page)
    assert server.requests[1]['prompt'] == ids + [predict(ids)[1][0]]
    assert page.run('return document.activeElement.matches("#text i")') and card(page) is None
    page.press('ArrowRight')
    assert card(page)
    page.press('Escape')
    assert card(page) is None
    page.press('Tab', modifiers=SHIFT)
    assert page.run('return document.activeElement.id') == 'coloured'


def test_screen_readers_get_names_and_no_single_tokens(page):
    """Every control has a name and a role. Of the text, one token is a button; the text is no live region."""
    generate(page)
    click(page, '#text i', 2)
    page.call('Accessibility.enable')
    nodes = [node for node in page.call('Accessibility.getFullAXTree')['nodes'] if not node['ignored']]
    found = [(node['role']['value'], node.get('name', {}).get('value', '')) for node in nodes]
    controls = [pair for pair in found if pair[0] in ('button', 'textbox', 'spinbutton', 'checkbox', 'region', 'list')]
    assert all(given.strip() for _, given in controls)
    for wanted in (('textbox', 'Write a beginning. The model continues it, one token at a time.'), ('region', 'Text'),
                   ('button', 'Generate'), ('button', 'Undo'), ('button', 'next token'), ('region', 'Token')):
        assert wanted in controls, controls
    assert {'status', 'alert', 'main'} <= {role for role, _ in found}
    assert page.run("""return [document.querySelectorAll('#text [role]').length, document.documentElement.lang,
        document.querySelector('#text').closest('[aria-live], [role=status], [role=alert], [role=log]')]
        """) == [1, 'en', None]


def test_screen_readers_hear_the_new_text_once(page, server):
    """When it is complete, with the message; and no message is written again while somebody types."""
    ids, new = generate(page, length=7)
    both = text_of(new + continuation(ids + new, 7))
    for text in text_of(new), both[len(text_of(new)):]:
        assert get(page, '#status').endswith('per second.' + text)
        assert page.run("return document.querySelector('#status span').getBoundingClientRect().width") <= 1
        click(page, '#continue')
        is_idle(page)
    page.run("""window.changes = [];
        new MutationObserver(found => changes.push(...found)).observe(document.querySelector('#status'),
            {childList: true, subtree: true, characterData: true});""")
    put(page, '#prompt', 'The Queen')
    click(page, '#coloured')
    assert page.run('return changes.length') == 0


def test_every_token_has_a_name(page, server):
    """Also those that are white space, or the end of the text."""
    server.ends_at = 50
    generate(page, length=60)
    page.call('Accessibility.enable')
    page.run('document.querySelector("#text i").focus()')
    n_elements, names = page.run('return document.querySelectorAll("#text i").length'), []
    for _ in range(n_elements):
        nodes = page.call('Accessibility.getFullAXTree')['nodes']
        names += [node['name']['value'].strip() for node in nodes
                  if {'name': 'focused', 'value': {'type': 'booleanOrUndefined', 'value': True}}
                  in node.get('properties', ()) and node['role']['value'] == 'button']
        page.press('ArrowRight')
    assert len(names) >= n_elements and all(names), names


def test_focus_is_never_lost(page, server):
    """By Ctrl+Enter in the text, a choice that the server refuses, and the last Undo, whose button disappears."""
    generate(page, length=9)
    page.run('document.querySelector("#text i").focus()')
    page.press('ArrowRight')
    page.press('Enter', modifiers=CONTROL)
    is_idle(page)
    assert focused(page) == 1 and card(page) is None
    server.refusals = [(503, 'too many requests are waiting')]
    page.press('Enter')
    page.press('Enter')
    is_idle(page)
    assert 'too many' in get(page, '#error') and focused(page) == 1
    page.run('document.querySelector("#undo").focus()')
    page.press('Enter')
    assert focused(page) == 'undo'
    page.press('Enter')
    assert get(page, '#undo', 'hidden') and focused(page) == 'prompt'


@pytest.mark.parametrize('width, height', [(360, 640), (1400, 900)])
def test_nothing_is_wider_than_the_screen(page, server, width, height):
    """Long words break, also in the card and in a model's name; the card is in view wherever the token is."""
    page.look(width, height)
    server.model = 'm' * 300
    open_page(page, server)
    generate(page, 'x' * 300 + '\t' * 40, length=100)
    # The end of the text has stayed in sight while it grew.
    assert page.run("return [...document.querySelectorAll('#text i')].pop().getBoundingClientRect().bottom") <= height
    click(page, '#coloured')
    n_elements = page.run('return document.querySelectorAll("#text i").length')
    for n in 0, n_elements // 2, n_elements - 1:
        page.press('Escape')
        click(page, '#text i', n)
        scroll, client, left, right, top, bottom = page.run("""
            const {left, right, top, bottom} = document.querySelector('#card').getBoundingClientRect();
            return [document.documentElement.scrollWidth, innerWidth, left, right, top, bottom]""")
        assert scroll <= client == width and 0 <= left < right <= client and 0 <= top < bottom <= height + 1


# Each visible element that holds text of its own: [what, its colour, the colours of what is behind it, from the front].
TEXTS = """return [...document.querySelectorAll('body *')].filter(element => element.checkVisibility()
    && !element.closest('[aria-disabled=true]')
    && (element.value || [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()))
).map(element => {
    const behind = [];
    for (let one = element; one; one = one.parentElement) behind.push(getComputedStyle(one).backgroundColor);
    const bar = getComputedStyle(element.closest('#card li button') || element).backgroundImage;
    return [element.id || element.className || element.localName, getComputedStyle(element).color, behind, bar];
})"""


def hexadecimal(colour):
    return '#' + ''.join('%02x' % int(part) for part in colour[colour.index('(') + 1:].split(')')[0].split(',')[:3])


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_has_contrast(page, server, scheme):
    """WCAG AA, 4.5, for every text in sight, with and without colours, with a card, an error and the dialog."""
    page.look(1400, 900, scheme)
    generate(page, length=60)
    seen = page.run(TEXTS)
    click(page, '#coloured')
    server.refusals = [(400, 'no')]
    click(page, '#continue')
    is_idle(page)
    click(page, '#text i', 2)
    page.run('document.querySelector("#door").showModal()')
    seen += page.run(TEXTS)
    assert {'verb', 'prompt', 'status', 'error', 'ask', 'model', 'hint', 'b', 'c', 'd'} <= {what for what, *_ in seen}
    for what, colour, behind, bar in seen:
        grounds = [next(one for one in behind if one != 'rgba(0, 0, 0, 0)')] + ([bar] if 'rgb' in bar else [])
        for ground in grounds:
            low, high = sorted([luminance(hexadecimal(colour)), luminance(hexadecimal(ground))])
            assert (high + 0.05) / (low + 0.05) >= 4.5, (what, colour, ground)


STYLES = """return a[0].map(one => {
    const {backgroundColor, color, textDecorationLine, textDecorationStyle, textDecorationThickness} =
        getComputedStyle(document.querySelector(one));
    return [backgroundColor, color, textDecorationLine, textDecorationStyle, textDecorationThickness];
})"""


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_colours_are_those_of_the_page_of_a_text(page, server, scheme):
    """Its four classes, for a tenth, a hundredth, a thousandth and less."""
    page.look(1400, 900, scheme)
    ids, new = generate(page, length=30)
    click(page, '#coloured')
    ours = page.run(STYLES, ['#text i:not(.b, .c, .d)', '#text i.b', '#text i.c', '#text i.d'])
    legend = page.run(STYLES, ['#legend i:not(.b, .c, .d)', '#legend i.b', '#legend i.c', '#legend i.d'])
    elements = page.run('return [...document.querySelectorAll("#text i")].map(one => [one.first, one.className])')
    for n, classes in elements:
        if new[n] not in EMOJI:
            p = dict(predict(ids + new[:n]))[new[n]]
            wanted = 'b' * (0.01 <= p < 0.1) + 'c' * (0.001 <= p < 0.01) + 'd' * (p < 0.001)
            assert set(classes.split()) & set('bcd') == set(wanted)
    page.open('file://' + os.path.abspath(evaluation_page.TEMPLATE))
    theirs = page.run(STYLES, ['.legend i:not([class])', '.legend i.b', '.legend i.c', '.legend i.d'])
    assert ours == legend == theirs and len({ground for ground, *_ in ours}) == 4
