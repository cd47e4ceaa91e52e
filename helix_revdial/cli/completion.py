# -*- test-case-name: tests.cli.test_main -*-
"""C{helix completion}: the lines that teach a shell to complete C{helix}."""

from __future__ import annotations

import click

from helix_revdial.cli.edge import PASSED
from helix_revdial.cli.invocation import Invocation, passInvocation

VARIABLE = "_HELIX_COMPLETE"
"""The environment variable by which a shell asks for completions."""


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@passInvocation
def completion(invocation: Invocation, shell: str) -> int:
    """Print completion for SHELL.

    \b
    bash:  eval "$(helix completion bash)"
    zsh:   eval "$(helix completion zsh)"
    fish:  helix completion fish | source
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None, shell
    root = click.get_current_context().find_root()
    script = kind(root.command, {}, "helix", VARIABLE)
    # The template itself: source() would first run the shell to ask its version.
    invocation.output.line(script.source_template % script.source_vars())
    return PASSED


__all__ = ["VARIABLE", "completion"]
