"""
Results for people: a Markdown table, and bars in an SVG.
"""

from __future__ import annotations

from xml.sax.saxutils import escape

from .measures import WORKLOADS
from .results import REFERENCE, Results

BULK = ("up1", "down1", "up50", "down50")
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5")


def markdown(results: Results, last: dict[str, float]) -> str:
    """
    The tables.

    @param last: Ratios to compare with: what moved by over a tenth is listed.
    """
    lines: list[str] = []
    for title, what, names in (
        ("Bulk, MiB/s (ratio) [CPU s/GiB, both ends]", "rate", BULK),
        ("Operations a second (ratio) [CPU us each, both ends]", "rate", None),
    ):
        chosen = [
            each.name
            for each in WORKLOADS
            if each.name in results.rounds and (each.name in BULK) == (names is not None)
        ]
        if not chosen:
            continue
        lines += [
            f"**{title}**",
            "",
            "| | " + " | ".join(chosen) + " |",
            "|---" * (len(chosen) + 1) + "|",
        ]
        for tunnel in results.tunnels():
            cells = [_cell(results, name, tunnel, what) for name in chosen]
            lines.append(f"| {tunnel} | " + " | ".join(cells) + " |")
        lines.append("")
    timed = [
        name for name in ("dial1", "dial8", "dial32", "http32", "pp64") if name in results.rounds
    ]
    if timed:
        lines += [
            "**Latency, p50 / p99 in microseconds (ratio of p50)**",
            "",
            "| | " + " | ".join(timed) + " |",
            "|---" * (len(timed) + 1) + "|",
        ]
        for tunnel in results.tunnels():
            cells = []
            for name in timed:
                p50, p99 = (results.median(name, tunnel, what) for what in ("p50", "p99"))
                if p50 is None or p99 is None:
                    cells.append("-")
                else:
                    cells.append(f"{p50:.0f} / {p99:.0f}{_ratio(results, name, tunnel, 'p50')}")
            lines.append(f"| {tunnel} | " + " | ".join(cells) + " |")
        lines.append("")
    if results.memory:
        lines += ["**Memory, KiB each**", ""]
        for measure, byTunnel in results.memory.items():
            told = ", ".join(f"{name} {value:.1f}" for name, value in byTunnel.items())
            lines.append(f"- {measure}: {told}")
        lines.append("")
    broken = [
        f"{tunnel}, {workload}: {count:.0f} {what}"
        for workload in results.rounds
        for tunnel in results.tunnels()
        for what in ("failed", "stuck")
        if (count := _sum(results, workload, tunnel, what))
    ]
    if broken:
        lines += ["Went wrong: " + "; ".join(broken) + ".", ""]
    lines += [f"Not measured: {note}" for note in results.notes]
    moved = _moved(results.ratios(), last)
    if moved:
        lines += ["", "Moved since the last run: " + "; ".join(moved) + "."]
    return "\n".join(lines).rstrip() + "\n"


def _ratio(results: Results, workload: str, tunnel: str, what: str) -> str:
    value = results.ratio(workload, tunnel, what)
    return "" if value is None or tunnel == REFERENCE else f" ({value:.2f})"


def _cell(results: Results, workload: str, tunnel: str, what: str) -> str:
    value, cpu = results.median(workload, tunnel, what), results.median(workload, tunnel, "cpu")
    if value is None or cpu is None:
        return "-"
    shown = f"{cpu:.2f}" if workload in BULK else f"{cpu:.0f}"
    return f"{value:.0f}{_ratio(results, workload, tunnel, what)} [{shown}]"


def _sum(results: Results, workload: str, tunnel: str, what: str) -> float:
    rounds = results.rounds[workload].get(tunnel, [])
    return sum(each.get(what, 0.0) for each in rounds if each is not None)


def _moved(ratios: dict[str, float], last: dict[str, float]) -> list[str]:
    return [
        f"{name} {last[name]:.2f} to {value:.2f}"
        for name, value in ratios.items()
        if last.get(name) and abs(value / last[name] - 1) > 0.1
    ]


def svg(results: Results) -> str:
    """Bars: each tunnel's rate, as a ratio to the reference, for each workload."""
    tunnels = results.tunnels()
    groups = [each for each in WORKLOADS if each.name in results.rounds]
    bar, gap, height, left, top = 14, 18, 240, 44, 56
    groupWidth = bar * len(tunnels) + gap
    width = left + groupWidth * len(groups) + 10
    values = {
        (group.name, tunnel): 1.0
        if tunnel == REFERENCE
        else results.ratio(group.name, tunnel, "rate")
        for group in groups
        for tunnel in tunnels
    }
    most = max([value for value in values.values() if value is not None], default=1.0) * 1.1
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + top + 30}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{left}" y="16" font-size="13">Rate, as a ratio to {REFERENCE} in the same '
        "round (more is better)</text>",
    ]
    for place, tunnel in enumerate(tunnels):
        x = left + place * 130
        colour = COLOURS[place % len(COLOURS)]
        parts.append(f'<rect x="{x}" y="26" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 14}" y="35">{escape(tunnel)}</text>')
    step = 0.5 if most < 4 else 1.0
    line = 0.0
    while line <= most:
        y = top + height - height * line / most
        parts.append(
            f'<line x1="{left}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{line:g}</text>'
        )
        line += step
    for index, group in enumerate(groups):
        x0 = left + index * groupWidth + gap / 2
        for place, tunnel in enumerate(tunnels):
            value = values[group.name, tunnel]
            if value is None:
                continue
            tall = height * value / most
            parts.append(
                f'<rect x="{x0 + place * bar:.1f}" y="{top + height - tall:.1f}" '
                f'width="{bar - 2}" height="{tall:.1f}" fill="{COLOURS[place % len(COLOURS)]}">'
                f"<title>{escape(tunnel)}, {escape(group.title)}: {value:.2f}</title></rect>"
            )
        middle = x0 + bar * len(tunnels) / 2
        parts.append(
            f'<text x="{middle:.1f}" y="{top + height + 16}" text-anchor="middle">'
            f"{escape(group.name)}</text>"
        )
    return "\n".join([*parts, "</svg>"]) + "\n"
