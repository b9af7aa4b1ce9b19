"""What pins single operations of a graph: which are there, how many, and what they wait for.

Results are tested elsewhere. These tests hold what makes a graph fast, so that a faster way to compute may change them.
"""
from collections import Counter

import numpy as np
import pytest

from gpt2.fast import cache, matmul, xla
import model
import sample
from gpt2.system.tf1 import batch_gather, tf
from gpt2.training.graph import build, loss_and_gradients
from helpers import tiny
from helpers.networks import decode
from helpers.training import options

on_tensorflow_2 = pytest.mark.skipif(not xla.is_supported(), reason='TensorFlow 1.12 has neither oneDNN nor XLA')


# Products

def test_split_weight_is_multiplied_in_parts_that_run_at_the_same_time(sess):
    """Each operation waits for no other, and has its part of the weight, which is split off outside the loop."""
    weight = matmul.split_weight(tf.zeros([1, 8, 8]), 2)
    tf.while_loop(lambda x_RN: tf.reduce_sum(x_RN) > 0, lambda x_RN: matmul.matmul(x_RN, weight), [tf.zeros([2, 8])])
    operations = tf.get_default_graph().get_operations()
    inputs = [operation.inputs for operation in operations if operation.type == 'MatMul']
    assert [x_RN.op.type for x_RN, _ in inputs] == ['Split'] * 2
    assert [part_NM.op.type for _, part_NM in inputs] == ['Enter'] * 2
    assert [part_NM.shape.as_list() for _, part_NM in inputs] == [[4, 8]] * 2


@on_tensorflow_2
def test_batch_gather_is_one_operation(sess):
    batch_gather(tf.placeholder(tf.float32, [None, 5]), tf.placeholder(tf.int32, [None, 3]))
    kinds = Counter(operation.type for operation in tf.get_default_graph().get_operations())
    assert kinds == Counter(Placeholder=2, Const=1, GatherV2=1)


def test_blocked_embedding_is_not_copied(sess):
    weight_VD = tf.zeros([100, 8])
    matmul.matmul(tf.zeros([2, 8]), matmul.BlockedEmbedding(weight_VD), transpose_b=True)
    assert {reader.type for reader in weight_VD.consumers()} <= {'Split', 'SplitV'}


def test_unembed_is_a_single_product_on_a_gpu(sess, monkeypatch):
    monkeypatch.setattr(matmul, 'on_gpu', lambda: True)
    weight_VD, hidden_BD = np.random.randn(100, 8), np.random.randn(3, 8)
    embedding = matmul.sampling_weights()(lambda name: tf.constant(weight_VD), 'model/wte')
    logits_BV = matmul.matmul(tf.constant(hidden_BD), embedding, transpose_b=True)
    assert [operation.type for operation in sess.graph.get_operations() if operation.type != 'Const'] == ['MatMul']
    np.testing.assert_allclose(sess.run(logits_BV), hidden_BD.dot(weight_VD.T), rtol=1e-5, atol=1e-5)


def test_softmax_of_one_query_is_not_onednns(sess):
    """Which would compile a kernel for each number of positions. Where that is known, it compiles one."""
    for n_queries, n_positions, operation in ((1, None, 'LogSoftmax'), (1, 5, 'Softmax'), (3, None, 'Softmax')):
        with tf.Graph().as_default() as graph:
            matmul.softmax(tf.placeholder(tf.float32, [2, n_queries, n_positions]))
        assert {operation.type for operation in graph.get_operations()} & {'Softmax', 'LogSoftmax'} == {operation}


@on_tensorflow_2
def test_row_product_is_not_onednns(sess, monkeypatch):
    """Whose set-up costs four times the product. It has no kernel for this version of the operation."""
    monkeypatch.setattr(matmul, 'on_onednn', lambda: True)
    assert matmul.row_product(tf.zeros([2, 1, 3]), tf.zeros([2, 3, 4])).op.type == 'BatchMatMulV3'


# The network

@pytest.mark.slow
@pytest.mark.parametrize('build, is_split', [
    (lambda hparams, tokens_BT: model.model(hparams, tokens_BT), False),
    (lambda hparams, tokens_BT: decode(hparams, tokens_BT, cache.empty(hparams, 2)), True)], ids=['whole', 'decode'])
def test_decoder_work_is_split_for_sampling_alone(monkeypatch, build, is_split):
    """In training and scoring each operation keeps all cores busy; split, they take longer."""
    n_operations = []
    for n_parts in (1, 4):
        monkeypatch.setattr(matmul, 'n_parts', lambda n=n_parts: n)
        with tf.Graph().as_default() as graph:
            build(tiny.hparams(), tf.placeholder(tf.int32, [2, None]))
            n_operations.append(len(graph.get_operations()))
    assert (n_operations[0] < n_operations[1]) == is_split


@pytest.mark.slow
@pytest.mark.parametrize('n_texts, n_parts', [(1, 1), (3, 4)])
def test_decoder_multiplies_each_matrix_in_parts(sess, monkeypatch, n_texts, n_parts):
    """Four matrices in each of two layers; the token embedding, in blocks."""
    monkeypatch.setattr(matmul, 'n_parts', lambda: n_parts)
    decode(tiny.hparams(n_vocab=100), tf.placeholder(tf.int32, [n_texts, 1]), cache.empty(tiny.hparams(), n_texts))
    names = [operation.name for operation in sess.graph.get_operations() if operation.type == 'MatMul']
    layers = [name for name in names if '/h0/' in name or '/h1/' in name]
    assert len(layers) == 8 * n_parts and len(names) - len(layers) == matmul.VOCABULARY_BLOCKS


# The decoding loop

@pytest.mark.slow
@pytest.mark.parametrize('gpu', [True, False])
def test_sample_sequence_on_a_gpu_does_not_wait_for_the_cpu(sess, monkeypatch, gpu):
    """The CPU decides for tf.cond, as whether a shortlist will do, and TensorFlow sums int32 there."""
    monkeypatch.setattr(matmul, 'on_gpu', lambda: gpu)
    sample.sample_sequence(hparams=tiny.hparams(), length=3, context=[[1]], top_k=5, top_p=0.9)
    operations = sess.graph.get_operations()
    decided_by = {operation.inputs[1].op.inputs[0].op.type for operation in operations if operation.type == 'Switch'
                  and operation.inputs[1].op.type == 'Identity'}
    assert ('Any' in decided_by) == (not gpu)
    assert tf.int32 not in {operation.inputs[0].dtype for operation in operations if operation.type == 'Sum'}


@pytest.mark.slow
@on_tensorflow_2
def test_compiled_loop_is_one_operation_after_the_prompt(sess):
    """So that nothing of it is left for TensorFlow to run for each token."""
    sample.sample_sequence(hparams=tiny.hparams(), length=9, context=tf.placeholder(tf.int32, [2, None]), compiled=True)
    operations = sess.graph.get_operations()
    run, = [operation for operation in operations if '_XlaMustCompile' in operation.node_def.attr]
    assert run.node_def.attr['_XlaMustCompile'].b
    assert not {'While', 'StatelessWhile', 'Enter'} & {operation.type for operation in operations}
    prompt = [operation for operation in operations if operation.type in ('MatMul', 'BatchMatMulV2', 'BatchMatMulV3')]
    assert prompt and not any(run in operation.control_inputs for operation in prompt)


# Training

@pytest.mark.slow
def test_recompute_computes_each_block_once_more(sess):
    """This saves the memory: a softmax per block for validating, one for training, and one more for recomputing.

    With dropout, attention is always computed once more, but not twice. A block draws again only if all of it is.
    """
    hparams = tiny.hparams()
    for changes, n_softmax, n_draws in (dict(dropout=0), 2, 0), (dict(), 3, 3), (dict(recompute=True), 3, 6):
        with tf.Graph().as_default() as graph:
            build(hparams, options(batch_size=1, **changes))
        types = [op.type for op in graph.get_operations()]
        assert types.count('Softmax') == n_softmax * hparams.n_layer
        n_found = sum(name.startswith('StatelessRandomUniform') for name in types)
        assert n_found == n_draws * hparams.n_layer + (n_draws > 0)  # one is for the embeddings


@pytest.mark.slow
@pytest.mark.parametrize('drop, recompute, n_inputs', [
    (model.no_dropout, True, 1), (lambda x, site: x, False, 3)], ids=['block', 'attention'])
def test_recompute_waits_for_the_gradient_of_what_follows(sess, drop, recompute, n_inputs):
    """Otherwise TensorFlow would recompute all blocks, or attention, early, and store their activations after all."""
    hparams = tiny.hparams(n_layer=3)
    tokens_BT = tf.zeros([2, hparams.n_ctx], tf.int32)
    model.model(hparams, tokens_BT)
    loss_and_gradients(hparams, tokens_BT, tf.trainable_variables(), drop, recompute)
    waiting = [op for op in tf.get_default_graph().get_operations() if op.type == 'Identity' and op.control_inputs]
    assert len(waiting) == n_inputs * hparams.n_layer
    assert all('gradients' in op.name for identity in waiting for op in identity.control_inputs)
