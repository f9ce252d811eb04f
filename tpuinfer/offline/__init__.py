"""Offline batch inference: files of requests in, a journal of answers out, and no line lost.

`task` has the words; `source` reads lines, `index` knows which of them are done, `journal` holds
what was answered, `manifest` what it was answered with; `run` keeps an `Answerer` busy.

Ignorant of: models, engines, HTTP and jax. What answers is an `Answerer`; the server has one.
"""
