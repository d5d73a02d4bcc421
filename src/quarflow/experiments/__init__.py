"""Experiments: the paper's figures and tables (``paper``), and how fast it all is (``speed``).

They stand behind one door, and nothing that a user imports needs them. The commands are
``quarflow paper ...``, ``quarflow bench``, and the scripts in ``benchmarks/`` of the source tree.
What both share lies here beside them.
"""
