"""Looking inside: what an adapter holds, what a memory holds, and what a text does to it.

``measures`` are functions of states alone. ``adapter_contents`` and ``memory_contents`` read files,
``probe`` asks a memory, ``trace`` runs a ``script`` of a text through a model. ``report`` says what
was found, ``as_json`` gives it to programs, ``plots`` and ``plot_trace`` draw it.
"""
