"""Offline batch inference: files of requests in, a journal of answers out, and no line lost.

`task` has the words. `source` reads lines (`inputs`, `reading`, `requests`, `tables`, `template`),
`index` knows which of them are done, `journal` and `parts` hold what was answered, `ledger` ties
them, `manifest` holds what it was answered with, `lock` keeps others out; `run` and `order` keep an
`Answerer` busy, `batch` is all of it. `progress`, `meter`, `power` and `table_output` tell of it.

Ignorant of: models, engines, HTTP and jax. What answers is an `Answerer`; the server has one.
"""
