"""Continues the texts of many clients by LiteRT: a step computes the next token of each text, or a part of its prompt.

A new text joins the others at the next step. A long prompt holds them up for a part of it at a time, or, if the client
wants its log-probabilities, for all of it.
"""
import numpy as np

from gpt2 import checkpoint
from gpt2.evaluation.scorer import Predictions, logits_in_pieces
from gpt2.fast import lite, numpy_loop
from gpt2.serving.completions import MAX_LOGPROBS
from gpt2.serving.engine import Engine

PROMPT_TOKENS = lite.QUERIES_AT_A_TIME  # in a step, of all prompts together, and in a part of a prompt


class Text(object):
    """A row of an Engine that is being computed.

    past: the lite.Past of the tokens that the network has seen.  unfed: the others.  n_drawn: how many are new.
    """

    def __init__(self, row, past):
        self.row, self.past, self.unfed, self.n_drawn = row, past, row.prompt, 0

    def feed(self):
        """The next part of what is unfed: int32 [1, T]."""
        part, self.unfed = self.unfed[:PROMPT_TOKENS], self.unfed[PROMPT_TOKENS:]
        return np.array([part], np.int32)

    def drawn(self, logits_V):
        """The next token."""
        row = self.row
        return numpy_loop.next_token(logits_V, row.draws[self.n_drawn], row.temperature, row.top_k, row.top_p)

    def take(self, token, logprob, top_ids, top_logprobs):
        """Let the row have a new token, which is also fed next."""
        self.unfed, self.n_drawn = [token], self.n_drawn + 1
        if not self.row.ended:
            self.row.take(token, logprob, top_ids, top_logprobs)


class StepEngine(Engine):
    """An Engine of a lite.Network."""

    def build(self, model_name, models_dir, precision):
        self.network = checkpoint.load_network(self.hparams, model_name, models_dir, precision)

    def predictions(self, row):
        """Predictions of the row's prompt from its second token on; None if it wants none or has none."""
        if not row.is_scored or len(row.prompt) < 2:
            return None
        found = [numpy_loop.log_probabilities(logits_1NV[0], token_1N[0, 1:], MAX_LOGPROBS)
                 for logits_1NV, token_1N in logits_in_pieces(self.network, np.array([row.prompt]))]
        logprob_N, top_ids_NM, top_logprob_NM = [np.concatenate(arrays) for arrays in zip(*found)]
        return Predictions(-logprob_N, top_ids=top_ids_NM, top_nats=-top_logprob_NM)

    def work(self):
        texts = []
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.running or self.waiting)
                new = self.next_rows(self.max_rows - len(texts))
                self.waiting = self.waiting[len(new):]
                self.running = {0: [text.row for text in texts] + new}
            with self.report_failure(new):
                for row in new:
                    row.begin(self.predictions(row))
                texts += [Text(row, self.network.past(1, len(row.prompt) + row.max_tokens - 1))
                          for row in new if not row.ended]
            with self.report_failure([text.row for text in texts]):
                self.step(texts)
            texts = [text for text in texts if not text.row.ended]
            with self.changed:
                self.running = {0: [text.row for text in texts]} if texts else {}
                self.changed.notify_all()

    def next_rows(self, n_free):
        """The first rows that wait, of which at most one is to be scored, since that takes a while."""
        scored = [place + 1 for place, row in enumerate(self.waiting) if row.is_scored]
        return self.waiting[:min(scored + [n_free])]

    def step(self, texts):
        """Feed each text's new token, and parts of prompts; choose the next token where the prompt is complete."""
        fed, n_left = [], PROMPT_TOKENS
        for text in texts:
            n_next = min(len(text.unfed), PROMPT_TOKENS)
            if n_next == 1 or n_next <= n_left:
                n_left -= n_next if n_next > 1 else 0
                fed.append((text, text.feed()))
        if not fed:
            return
        states_2RD = self.network.next_states([tokens_1T for _, tokens_1T in fed], [text.past for text, _ in fed])
        ends = np.cumsum([tokens_1T.size for _, tokens_1T in fed])
        whole = [(text, end - 1) for (text, _), end in zip(fed, ends) if not text.unfed]
        if not whole:
            return
        texts, last_rows = zip(*whole)
        logits_AV = self.network.logits(states_2RD[:, list(last_rows)])
        token_A = np.array([text.drawn(logits_V) for text, logits_V in zip(texts, logits_AV)])
        n_top = MAX_LOGPROBS if any(text.row.wants_top for text in texts) else 0
        found = numpy_loop.log_probabilities(logits_AV, token_A, n_top)
        for text, *figures in zip(texts, token_A.tolist(), *[array.tolist() for array in found]):
            text.take(*figures)
