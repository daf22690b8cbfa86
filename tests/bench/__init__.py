"""The figures of ipcbus: real processes, the public API in plain loops, each beside a control of the same run.

``python -m tests.bench --help``. Timings are printed and written as JSON; no test asserts them.
"""
