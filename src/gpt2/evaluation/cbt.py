"""The Children's Book Test (Hill et al. 2015, arXiv:1511.02301): choose which of ten candidates fills a gap."""
from collections import namedtuple
import os

import numpy as np

from gpt2.evaluation import language_modeling
from gpt2.evaluation.batches import Sum, add_up
from gpt2.evaluation.detokenize import CBT, detokenize

GAP = 'XXXXX'

# story: str, what the question is about.  before, after: str, the question around its gap.  candidates: list of str.
# answer: index of the right candidate.
Question = namedtuple('Question', 'story before after candidates answer')


def read(benchmark, path):
    """The Questions of a file: a list.

    A question is 21 numbered lines: a story, here joined by spaces, and a line with a gap, which ends in the answer and
    the candidates, separated by bars.
    Raises ValueError with the line that breaks this format.
    """
    questions, story = [], []
    for number, line in enumerate(language_modeling.read(benchmark, path).replace('\r\n', '\n').split('\n'), 1):
        text = line.partition(' ')[2]
        if GAP not in text or '\t' not in text:
            story += [text] if text else []
            continue
        fields = text.split('\t')
        candidates = fields[-1].split('|')
        if len(fields) < 3 or fields[1] not in candidates:
            raise ValueError('%s, line %d: the answer is not among the candidates' % (path, number))
        if len(set(candidates)) == 1:
            raise ValueError('%s, line %d: all candidates are the same, so there is nothing to choose from'
                             % (path, number))
        before, after = fields[0].split(GAP, 1)
        questions.append(Question(' '.join(story), before, after, candidates, candidates.index(fields[1])))
        story = []
    if not questions or story:
        raise ValueError('%s does not end with a question: a line with %s, the answer, and candidates between bars'
                         % (path, GAP))
    return questions


def readings(model, benchmark, questions):
    """A list of (name, Rules to detokenize by or None)."""
    return [('as it is', None), ('detokenized', CBT)]


def measure(model, benchmark, questions, options, reading):
    """Measure a reading: the model chooses the candidate with the most likely text, or the most likely candidate.

    Returns ([(protocol, Sum)], share, interrupted) as lambada.measure does.
    """
    name, rules = reading

    def answer(question):
        ids, first, ends = candidate_rows(model, question, rules)
        n_rows = max(1, options.batch_size * (model.hparams.n_ctx + 1) // ids.shape[1])
        nats_BN = np.concatenate([model.score(ids[row:row + n_rows], first) for row in range(0, len(ids), n_rows)])
        sums = {}
        for compared, end_B in ends.items():
            chosen = np.argmin([nats_N[:end].sum(dtype=np.float64) for nats_N, end in zip(nats_BN, end_B)])
            sums[compared + '; accuracy'] = Sum('accuracy', int(chosen == question.answer), 1)
        return sums

    sums, interrupted = add_up(answer, questions[:options.limit], label='%s, %s' % (benchmark, name),
                               shown='whole text; accuracy')
    share = sums['whole text; accuracy'].count / len(questions) if sums else 0
    return sorted(sums.items(), reverse=True), share, interrupted


def candidate_rows(model, question, rules):
    """The tokens of a question with each of its candidates in the gap: (ids, first, ends).

    ids: int32 [candidates, T], padded on the right.  first: index of the first token that differs; scores begin there.
    ends: {'whole text': ..., 'candidate alone': ...}: for each row, the number of scored tokens that belong to that.
    """
    def encode(text):
        return [model.encoder.end_of_text] + model.encoder.encode(detokenize(text, rules) if rules else text)

    start = question.story + ' ' + question.before if question.story else question.before
    texts = [encode(start + candidate + question.after) for candidate in question.candidates]
    n_common = len(os.path.commonprefix(texts))
    longest, room = max(map(len, texts)), model.hparams.n_ctx + 1
    begin = max(0, min(longest - room, n_common - 1))  # cut a long text, but keep the candidate and a token before it
    ids = np.full([len(texts), min(longest - begin, room)], model.encoder.end_of_text, np.int32)
    for row, text in zip(ids, texts):
        row[:len(text) - begin] = text[begin:begin + room]
    return ids, n_common - begin, {
        'whole text': [len(text) - n_common for text in texts],
        'candidate alone': [len(encode(start + candidate)) - n_common for candidate in question.candidates]}
