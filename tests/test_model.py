"""model.py against what nobody here wrote (OpenAI's exported graph, transformers) and against the papers (reference.py)."""
import math
import os
import re

import numpy as np
import pytest

import cache
import kernels
import model
import reference
import tiny
from tf1 import tf

# float32 keeps 24 bits, 6e-8 of a number, and a logit here is the end of a few hundred roundings, most of which cancel:
# up to 7e-7 of the logits' span was measured. An epsilon of 1e-6 instead of 1e-5 in the layer norms is 10 times that.
ROUNDING = 5e-6  # of the span of the values compared

SIZES = [dict(),
         dict(n_layer=1, n_head=1, n_embd=1, n_vocab=2, n_ctx=3),
         dict(n_layer=3, n_head=1, n_embd=12),
         dict(n_layer=2, n_head=6, n_embd=6, n_ctx=9),
         dict(n_layer=4, n_head=5, n_embd=40, n_vocab=101, n_ctx=48)]


def random_tokens(hparams, shape, *, seed=0):
    return np.random.RandomState(seed).randint(hparams.n_vocab, size=shape)


def assert_close(ours, theirs, *, tolerance=ROUNDING):
    """Equal in shape, and within `tolerance` times the span of theirs everywhere."""
    assert ours.shape == theirs.shape
    difference = np.abs(ours - theirs).max() / (theirs.max() - theirs.min())
    assert difference <= tolerance, 'differs by %.1e of the span; %.1e is allowed' % (difference, tolerance)


def run_model(sess, hparams, tokens, weights):
    """Build model() and its losses, give it the weights. Returns logits, present, losses as arrays."""
    tokens_BT = tf.placeholder(tf.int32, [None, None])
    output = model.model(hparams, tokens_BT)
    losses_BT = model.token_losses(output['logits'], tokens_BT)
    tiny.assign(sess, weights)
    return sess.run([output['logits'], output['present'], losses_BT], {tokens_BT: tokens})


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_logits_present_and_losses_equal_the_papers(sess, size):
    hparams = tiny.hparams(**size)
    weights = tiny.random_weights(hparams)
    tokens = random_tokens(hparams, [3, hparams.n_ctx])
    logits, present, losses = run_model(sess, hparams, tokens, weights)
    expected_logits, expected_present = reference.forward(weights, tokens, hparams.n_head)
    assert_close(logits, expected_logits)
    assert_close(present, expected_present)
    assert losses.shape == (3, hparams.n_ctx - 1)
    np.testing.assert_allclose(losses, reference.token_losses(expected_logits, tokens), atol=1e-5)


def test_sharp_attention_equals_the_papers(sess):
    """Weights so large that most tokens attend to one other alone: a mask that leaks or a wrong scale shows."""
    hparams = tiny.hparams(n_layer=3)
    weights = tiny.random_weights(hparams, 1.5)
    tokens = random_tokens(hparams, [2, hparams.n_ctx])
    logits, present, _ = run_model(sess, hparams, tokens, weights)
    expected_logits, expected_present = reference.forward(weights, tokens, hparams.n_head)
    assert_close(logits, expected_logits, tolerance=1e-4)  # softmax turns differences of large scores into ratios
    assert_close(present, expected_present, tolerance=1e-4)


@pytest.mark.parametrize('n_parts', [2, 3, 20])
def test_a_text_in_parts_equals_the_whole(sess, n_parts):
    """Each part sees the earlier ones through `past` alone, the concatenation of what they presented."""
    hparams = tiny.hparams()
    weights = tiny.random_weights(hparams)
    tokens = random_tokens(hparams, [2, 20])
    whole_logits, whole_present, _ = run_model(sess, hparams, tokens, weights)

    tokens_BT = tf.placeholder(tf.int32, [None, None])
    past = tf.placeholder(tf.float32, model.past_shape(hparams=hparams))
    output = model.model(hparams, tokens_BT, past=past, reuse=True)
    seen = np.zeros(model.past_shape(hparams=hparams, batch_size=2, sequence=0))  # nothing seen is a past as well
    logits = []
    for part in np.array_split(tokens, n_parts, axis=1):
        part_logits, present = sess.run([output['logits'], output['present']], {tokens_BT: part, past: seen})
        assert present.shape[-2] == part.shape[1]  # of the new tokens only
        logits.append(part_logits)
        seen = np.concatenate([seen, present], axis=-2)
    assert_close(np.concatenate(logits, axis=1), whole_logits)
    assert_close(seen, whole_present)


@pytest.mark.parametrize('batch', [2, None])
@pytest.mark.parametrize('parts', [[20], [7, 1, 5, 1, 6], [1] * 20], ids=str)
def test_decoding_in_parts_equals_the_whole(sess, batch, parts):
    """The logits after each part, from a cache whose pieces grow into each other meanwhile; batch known or not."""
    hparams = tiny.hparams()
    weights = tiny.random_weights(hparams)
    tokens = random_tokens(hparams, [2, 20])
    whole_logits, _, _ = run_model(sess, hparams, tokens, weights)
    tokens_BT = tf.placeholder(tf.int32, [batch, None])
    read = cache.empty(hparams, batch or tf.shape(tokens_BT)[0])
    logits, end = [], 0
    for n_tokens in parts:
        logits_BV, read = model.decode(hparams, tokens_BT[:, end:end + n_tokens], read, kernels.vocabulary_product())
        if len(logits) % 3 == 1:
            read = read.settle(hparams.n_head)
        logits.append(logits_BV)
        end += n_tokens
    for end, found in zip(np.cumsum(parts), sess.run(logits, {tokens_BT: tokens})):
        assert_close(found, whole_logits[:, end - 1])


@pytest.mark.parametrize('build, cut', [
    (lambda hparams, tokens_BT: model.model(hparams, tokens_BT), False),
    (lambda hparams, tokens_BT: model.decode(hparams, tokens_BT, cache.empty(hparams, 2), kernels.vocabulary_product()), True)], ids=['whole', 'decode'])
def test_the_work_is_cut_into_parts_for_decoding_alone(monkeypatch, build, cut):
    """Training and scoring have work enough for all cores in each operation: cut, it takes longer."""
    n_operations = []
    for n_parts in (1, 4):
        monkeypatch.setattr(kernels, 'n_parts', lambda: n_parts)
        with tf.Graph().as_default() as graph:
            build(tiny.hparams(), tf.placeholder(tf.int32, [2, None]))
            n_operations.append(len(graph.get_operations()))
    assert (n_operations[0] < n_operations[1]) == cut


def test_rows_that_leave_the_cache_leave_the_others_as_they_were(sess):
    """What the third of four texts is continued with does not depend on which of the others are still there."""
    hparams = tiny.hparams()
    weights = tiny.random_weights(hparams)
    tokens = random_tokens(hparams, [4, 12])
    whole_logits, _, _ = run_model(sess, hparams, tokens, weights)
    tokens_BT, rows = tf.placeholder(tf.int32, [None, None]), tf.placeholder(tf.int32, [None])
    multiply = kernels.vocabulary_product()
    _, read = model.decode(hparams, tokens_BT[:, :5], cache.empty(hparams, 4), multiply)
    _, read = model.decode(hparams, tokens_BT[:, 5:6], read.settle(hparams.n_head), multiply)
    logits_BV, _ = model.decode(hparams, tf.gather(tokens_BT, rows)[:, 6:], read.settle(hparams.n_head, rows), multiply)
    for kept in ([2], [0, 2], [3, 2, 1], [0, 1, 2, 3]):
        found = sess.run(logits_BV, {tokens_BT: tokens, rows: kept})
        assert_close(found, whole_logits[kept, -1])


@pytest.mark.parametrize('n_old', [1, 10, 128, 1000])
def test_a_cache_is_due_when_settling_it_costs_least(sess, n_old):
    """Of all periods r, copying r recent tokens at each of r steps and all at the last, none copies fewer for each token."""
    n_recent = tf.placeholder(tf.int32, [])
    shape = [4, 2]
    due = cache.Cache(tf.zeros(shape + [n_old, 4]), tf.zeros(tf.stack(shape + [n_recent, 4]))).is_due()
    first = [sess.run(due, {n_recent: r}) for r in range(1, n_old + 2)].index(True) + 1
    cost = {r: (r * (r + 1) / 2 + n_old + r) / r for r in range(1, n_old + 2)}
    assert cost[first] <= 1.02 * min(cost.values())


def test_rows_of_a_batch_do_not_see_each_other(sess):
    hparams = tiny.hparams()
    weights = tiny.random_weights(hparams)
    tokens = random_tokens(hparams, [3, 10])
    together, _, _ = run_model(sess, hparams, tokens, weights)
    tokens_BT = tf.placeholder(tf.int32, [1, None])
    alone_BTV = model.model(hparams, tokens_BT, reuse=True)['logits']
    for row in range(3):
        assert_close(together[row:row + 1], sess.run(alone_BTV, {tokens_BT: tokens[row:row + 1]}))


def test_a_token_changes_no_logits_before_its_own(sess):
    """To the last bit: what lies ahead gets a weight of zero, not a small one."""
    hparams = tiny.hparams()
    weights = tiny.random_weights(hparams, 1.0)
    tokens = random_tokens(hparams, [1, hparams.n_ctx])
    tokens_BT = tf.placeholder(tf.int32, [1, None])
    logits_BTV = model.model(hparams, tokens_BT)['logits']
    tiny.assign(sess, weights)
    before = sess.run(logits_BTV, {tokens_BT: tokens})
    for t in range(hparams.n_ctx):
        changed = tokens.copy()
        changed[0, t] = (changed[0, t] + 1) % hparams.n_vocab
        after = sess.run(logits_BTV, {tokens_BT: changed})
        assert np.array_equal(before[:, :t], after[:, :t])
        assert (before[:, t:] != after[:, t:]).any(axis=-1).all()  # and every later position does see it


def test_variables_have_the_names_and_shapes_of_the_checkpoint():
    with tf.Graph().as_default():
        model.model(tiny.hparams(n_layer=1), tf.placeholder(tf.int32, [None, None]))
        assert {variable.op.name: variable.shape.as_list() for variable in tf.global_variables()} == {
            'model/wte': [11, 8], 'model/wpe': [32, 8],
            'model/h0/ln_1/g': [8], 'model/h0/ln_1/b': [8],
            'model/h0/attn/c_attn/w': [1, 8, 24], 'model/h0/attn/c_attn/b': [24],
            'model/h0/attn/c_proj/w': [1, 8, 8], 'model/h0/attn/c_proj/b': [8],
            'model/h0/ln_2/g': [8], 'model/h0/ln_2/b': [8],
            'model/h0/mlp/c_fc/w': [1, 8, 32], 'model/h0/mlp/c_fc/b': [32],
            'model/h0/mlp/c_proj/w': [1, 32, 8], 'model/h0/mlp/c_proj/b': [8],
            'model/ln_f/g': [8], 'model/ln_f/b': [8]}


def test_variables_are_those_of_the_released_117M(shared):
    hparams = tiny.hparams(**tiny.RELEASED_117M)
    with tf.Graph().as_default():
        model.model(hparams, tf.placeholder(tf.int32, [None, None]))
        ours = sorted((variable.op.name, variable.shape.as_list()) for variable in tf.global_variables())
    assert ours == sorted(tf.train.list_variables(os.path.join(shared, '117M', 'model.ckpt')))
    assert ours == sorted(tiny.variable_shapes(hparams))  # what the other tests take for the release's


def test_scope_and_reuse(sess):
    """As tf.variable_scope has them: another scope is another network, reuse=True the same one again."""
    hparams = tiny.hparams()
    tokens_BT = tf.constant(random_tokens(hparams, [1, 4]), tf.int32)
    first = model.model(hparams, tokens_BT)['logits']
    again = model.model(hparams, tokens_BT, reuse=True)['logits']
    n_variables = len(tf.global_variables())
    with pytest.raises(ValueError):
        model.model(hparams, tokens_BT)
    other = model.model(hparams, tokens_BT, scope='other')['logits']
    names = [variable.op.name for variable in tf.global_variables()]
    assert names[n_variables:] == [name.replace('model/', 'other/', 1) for name in names[:n_variables]]
    sess.run(tf.global_variables_initializer())
    first, again, other = sess.run([first, again, other])
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_the_graph_knows_its_shapes():
    hparams = tiny.hparams()
    assert model.past_shape(hparams=hparams, batch_size=5, sequence=7) == [5, 2, 2, 2, 7, 4]
    assert model.past_shape(hparams=hparams) == [None, 2, 2, 2, None, 4]
    with tf.Graph().as_default():
        output = model.model(hparams, tf.placeholder(tf.int32, [5, 7]))
    assert output['present'].shape.as_list() == [5, 2, 2, 2, 7, 4]
    assert output['logits'].shape.as_list() == [5, 7, 11]


def test_new_weights_start_as_the_paper_says(sess):
    """Section 2.3: projections into the residual stream are scaled by 1 / sqrt(number of residual layers)."""
    model.model(tiny.hparams(n_embd=96, n_layer=2, n_vocab=100, n_ctx=100), tf.placeholder(tf.int32, [None, None]))
    sess.run(tf.global_variables_initializer())
    for name, array in sess.run({variable.op.name: variable for variable in tf.global_variables()}).items():
        if name.endswith(('/b', '/g')):
            assert (array == (1 if name.endswith('/g') else 0)).all()
        else:  # 0.02: Radford et al. 2018, section 4.1; positions: OpenAI's initializer
            expected = 0.01 if name == 'model/wpe' else 0.02 / math.sqrt(4) if '/c_proj/' in name else 0.02
            assert abs(array.std() / expected - 1) < 0.05, name  # 9,216 numbers or more: five standard errors are 0.04


def test_what_is_dropped_depends_on_seed_sequence_layer_and_site(sess):
    """And on nothing else: a block that is computed again drops the same."""
    number = tf.placeholder(tf.int64, [])

    def kept(seed, scope, site):
        with tf.variable_scope(scope):
            return model.dropout(0.25, seed=seed, sequences=number[None])(tf.ones([50, 40]), site) > 0

    choices = [(1, 'h0', 'attn'), (1, 'h0', 'attn'), (1, 'h1', 'attn'), (1, 'h0', 'mlp'), (2, 'h0', 'attn')]
    tensors = [kept(*choice) for choice in choices]
    first, again, *others = sess.run(tensors, {number: 3}) + [sess.run(tensors[0], {number: 4})]
    assert np.array_equal(first, again)
    for other in others:
        assert 0.3 < np.mean(other != first) < 0.45  # 2 * 0.25 * 0.75 where nothing is common


def heads_of(hparams):
    """The heads for two texts of five tokens without a past."""
    return kernels.Heads(2, 5, hparams.n_head, hparams.n_embd // hparams.n_head, [], model.causal_mask(tf.range(5)))


def test_what_is_dropped_is_what_a_block_adds(sess):
    """Never the residual stream itself (GPT paper, section 4.1): with everything dropped, a block changes nothing."""
    hparams = tiny.hparams()
    hidden_RD = tf.constant(np.random.RandomState(0).standard_normal([10, 8]), tf.float32)
    for site, changes in (('attn mlp', False), ('attn', True), ('mlp', True)):
        output_RD, _ = model.block(hparams, hidden_RD, site.replace(' ', '_'), heads_of(hparams),
                                   drop=lambda x, name: x * 0 if name in site.split() else x)
        sess.run(tf.global_variables_initializer())
        assert np.array_equal(*sess.run([output_RD, hidden_RD])) != changes


def test_weights_of_attention_are_dropped_after_the_softmax(sess):
    """With all of them dropped, a query finds nothing, and what is left is the bias of the projection."""
    hparams = tiny.hparams()
    x_RD = tf.constant(np.random.RandomState(0).standard_normal([10, 8]), tf.float32)
    attended_RD, _ = model.attention(hparams, x_RD, 'attn', heads_of(hparams),
                                     drop=lambda x, site: {'weights': x * 0}[site])
    weights = {name[len('model/h0/'):]: array for name, array in tiny.random_weights(hparams).items()}
    tiny.assign(sess, weights)
    assert_close(sess.run(attended_RD), np.tile(weights['attn/c_proj/b'], [10, 1]))


@pytest.mark.parametrize('values, said', [
    (dict(n_head=3), r'n_head \(3\) does not divide n_embd \(8\)'),
    (dict(n_vocab=0), 'n_vocab is 0'),
    (dict(n_layer=-1), 'n_layer is -1'),
    (dict(n_ctx='32'), "n_ctx is '32'"),
    (dict(n_embd=None), 'n_embd is None'),
    (dict(n_layer=True), 'n_layer is True'),
    (dict(n_ctx=2 ** 31), 'n_ctx is 2147483648; .* 1 to 2147483647'),
    (dict(n_ctx=10 ** 300), 'n_ctx is 10{59};')])
def test_hparams_that_fit_no_network_are_refused_before_anything_is_built(values, said):
    with tf.Graph().as_default() as graph:
        tokens_BT = tf.placeholder(tf.int32, [None, None])
        with pytest.raises(ValueError, match=said):
            model.model(tiny.hparams(**values), tokens_BT)
        assert graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES) == []


def test_an_unknown_hyperparameter_is_named():
    hparams = model.default_hparams()
    with pytest.raises(ValueError, match='n_heads.*n_head'):
        hparams.override_from_dict({'n_heads': 2, 'n_layer': 3})
    with pytest.raises(ValueError, match='1001 unknown') as error:
        hparams.override_from_dict({'token %d' % i: i for i in range(1001)})
    assert len(str(error.value)) < 200
    assert hparams.n_layer == 12  # refused whole, not half applied


def test_default_hparams_are_the_smallest_release_and_not_shared():
    """As upstream: n_vocab is 0 until hparams.json is read."""
    hparams = model.default_hparams()
    sizes = dict(n_vocab=0, n_ctx=1024, n_embd=768, n_head=12, n_layer=12)
    assert {name: getattr(hparams, name) for name in sizes} == sizes
    hparams.override_from_dict({'n_layer': 1})
    assert hparams.n_layer == 1 and model.default_hparams().n_layer == 12


@pytest.fixture(scope='module')
def exported(shared):
    """OpenAI's exported graph of 117M and our model of the same size, on the same variables, in one session.

    The weights are drawn in the graph: 500 MB are neither drawn nor copied in Python. Returns compare(stddev).
    """
    hparams = tiny.hparams(**tiny.RELEASED_117M)
    with tf.Graph().as_default():
        tf.train.import_meta_graph(os.path.join(shared, '117M', 'model.ckpt.meta'), clear_devices=True)
        graph = tf.get_default_graph()
        tokens_BT = graph.get_tensor_by_name('Placeholder:0')
        theirs = [graph.get_tensor_by_name(name) for name in (
            'model/MatMul_2:0', 'model/stack:0',
            'model/SparseSoftmaxCrossEntropyWithLogits/SparseSoftmaxCrossEntropyWithLogits:0')]
        variables = {variable.op.name: variable for variable in tf.global_variables()}
        # A variable of ours is theirs of that name, or there is a KeyError.
        with tf.variable_scope('', custom_getter=lambda getter, name, *args, **kwargs: variables[name]):
            output = model.model(hparams, tokens_BT)
        ours = [output['logits'], output['present'], model.token_losses(output['logits'], tokens_BT)]
        stddev = tf.placeholder(tf.float32, [])
        draws = [variable.assign((name[-2:] == '/g') + stddev * tf.random_normal(variable.shape, seed=i))
                 for i, (name, variable) in enumerate(sorted(variables.items()))]
        with tf.Session() as sess:
            def compare(value):
                sess.run([draw.op for draw in draws], {stddev: value})
                # The seed of 70 that leaves the choice of the most probable token least to rounding: with 0.14 the two
                # best logits are nowhere closer than 0.0036, twice as far as rounding moves one of them.
                tokens = random_tokens(hparams, [1, 1024], seed=3)
                return sess.run(theirs, {tokens_BT: tokens}), sess.run(ours, {tokens_BT: tokens})
            yield compare


@pytest.mark.parametrize('stddev', [0.02, 0.14])
def test_117M_equals_the_graph_that_openai_exported(exported, stddev):
    """Logits, keys and values, and losses of 1,024 tokens, and the most probable token after each of them.

    0.02: weights as at the start of training. 0.14: as uneven as trained ones; attention is peaked, and rounding alone,
    the same graph on another machine, moves logits by 1.2e-4 of their span.
    """
    (logits_TV, cache, losses_T), (our_logits_BTV, our_cache, our_losses_BT) = exported(stddev)
    our_logits_TV = our_logits_BTV[0]
    span = logits_TV.max() - logits_TV.min()
    allowed = 1e-4 if stddev == 0.02 else 3e-4 * span
    difference = np.abs(our_logits_TV - logits_TV).max()
    print('stddev %.2f: logits differ by %.1e at most, %.1e of their span' % (stddev, difference, difference / span))
    assert difference <= allowed
    assert np.abs(our_cache - cache).max() <= allowed
    assert np.abs(our_losses_BT[0] - losses_T[:-1]).max() <= allowed  # the last target there is no token
    assert np.array_equal(our_logits_TV.argmax(axis=1), logits_TV.argmax(axis=1))


def transformers_name(name):
    """'model/h0/mlp/c_fc/w' -> 'transformer.h.0.mlp.c_fc.weight'."""
    parts = re.sub('^model/h', 'model/h/', name).split('/')[1:]
    ending = {'g': ['weight'], 'w': ['weight'], 'b': ['bias']}
    parts[-1:] = ending.get(parts[-1], [parts[-1], 'weight'])
    return '.'.join(['transformer'] + parts)


def test_logits_equal_those_of_transformers(sess):
    """GPT2LMHeadModel in PyTorch; its matrices have no leading axis of one."""
    torch = pytest.importorskip('torch', reason='needs transformers and torch')
    transformers = pytest.importorskip('transformers', reason='needs transformers and torch')
    hparams = tiny.hparams(n_layer=3, n_embd=20, n_head=5)
    weights = tiny.random_weights(hparams)
    peer = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=hparams.n_vocab, n_positions=hparams.n_ctx, n_embd=hparams.n_embd, n_layer=hparams.n_layer,
        n_head=hparams.n_head, bos_token_id=0, eos_token_id=0)).eval()
    parameters = peer.state_dict()  # views of the network's own memory
    for name, array in weights.items():
        parameters[transformers_name(name)].copy_(torch.tensor(array.reshape(array.shape[-2:])))
    tokens = random_tokens(hparams, [2, hparams.n_ctx])
    with torch.no_grad():
        expected = peer(torch.tensor(tokens)).logits.numpy()
    logits, _, _ = run_model(sess, hparams, tokens, weights)
    assert_close(logits, expected)
