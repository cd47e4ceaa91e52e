"""
Proof that what is shipped works: build the wheel, install it in a clean
environment, and ask there for what it offers: C{twistd}'s three plugins, the programs,
and C{revdial:} endpoint strings.

Run as C{python -m tests.wheel} from the root of the checkout.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent

EXPECTED = {"helix-revdial-server", "helix-revdial-agent", "helix-revdial-executor"}

PARSE = r"""
from twisted.internet.endpoints import clientFromString
from twisted.internet.testing import MemoryReactorClock
text = r"revdial:https\://cp.example:wolf-1:target=api:tokenFile=/t"
print(clientFromString(MemoryReactorClock(), text))
"""

PARSED = "<GatewayEndpoint https://cp.example wolf-1 target='api'>"


def run(*argv: str | Path, cwd: Path = ROOT) -> str:
    """Run a program; end with what it printed if it fails."""
    done = subprocess.run([str(arg) for arg in argv], cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(str(arg) for arg in argv)}\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    """Build, install, ask."""
    with tempfile.TemporaryDirectory(prefix="helix-wheel-") as name:
        scratch = Path(name)
        pip = ("-m", "pip", "--quiet", "--disable-pip-version-check")
        run(sys.executable, "-m", "build", "--wheel", "--outdir", scratch / "dist", ROOT)
        (wheel,) = (scratch / "dist").glob("*.whl")
        run(sys.executable, "-m", "venv", scratch / "venv")
        python = scratch / "venv" / "bin" / "python"
        run(python, *pip, "install", "--constraint", ROOT / "constraints.txt", wheel, cwd=scratch)
        listing = run(scratch / "venv" / "bin" / "twistd", "--help", cwd=scratch)
        offered = {word for word in listing.split() if word.startswith("helix-revdial-")}
        if offered != EXPECTED:
            sys.exit(f"the installed wheel offers {sorted(offered)}, not {sorted(EXPECTED)}")
        for plugin in sorted(EXPECTED):
            run(scratch / "venv" / "bin" / "twistd", plugin, "--help", cwd=scratch)
        for program in ("helix", "revdial-client", "wolf-revdial-client"):
            run(scratch / "venv" / "bin" / program, "--help", cwd=scratch)
        parsed = run(python, "-c", PARSE, cwd=scratch).strip()
        if parsed != PARSED:
            sys.exit(
                f"the installed wheel parses a revdial: endpoint as {parsed!r}, not {PARSED!r}"
            )
        print(f"{wheel.name}: offers {', '.join(sorted(offered))}")


if __name__ == "__main__":
    main()
