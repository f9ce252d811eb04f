"""What is wrong with a machine, before a model is loaded on it: one line a check, with its remedy.

facts      Facts and what it is made of: all that checks may look at, as data
collect    collect: the facts of this machine, read from its files and packages
probe      ask: jax's devices, asked in a process of its own that may hang or die
holders    holders: which processes hold an accelerator's device files
findings   Finding, Level: what a check says
specifiers satisfies: a version against what a package asks for
packages, devices, environment, host, held   the checks: Facts -> [Finding], pure
report     diagnose: every check in order; render, as_json, exit_code: what a front door prints

Checks touch no file, package or device: tests feed them machines that nobody has. Ignorant of
flags, of the environment (it is handed over), of models and of engines; jax is imported by nothing
here but the probe's own process, so that a broken jax is found and not met.
All public names are imported from their modules.
"""
