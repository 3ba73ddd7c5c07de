"""The three red agents: what each wants to do next, as a kind and the set of targets it draws from.

`choose` names kind and targets, the caller draws or forces one of them, `commit` remembers it. The scripted
agent wants whatever its script says: it serves traces whose red actions follow none of the three.
"""

from typing import Any

from rollout_worker.environments.cage2 import tables
from rollout_worker.environments.cage2.compilation import compiled

_SERVER = 1 << tables.OP_SERVER0
_ALL_HOSTS, _ALL_SUBNETS = (1 << tables.N_HOSTS) - 1, (1 << tables.N_SUBNETS) - 1


@compiled
def _choose_b_line(row: Any) -> tuple[int, int]:
    counter = row.b_line_counter
    counter = min(counter + 1, 14) if row.red_success == tables.TRUE else tables.B_LINE_JUMP[counter]
    if counter == 12:
        if not row.b_line_attacked_server and not row.red_saw_data:
            counter = 1
        else:
            row.b_line_attacked_server = 1
    row.b_line_counter = counter
    if counter == 1 and row.b_line_foothold == 0:
        return tables.SCAN, tables.B_LINE_FOOTHOLDS
    return tables.B_LINE_KIND[counter], 1 << tables.B_LINE_TARGET[counter, row.b_line_foothold]


@compiled
def _digest_meander(row: Any) -> None:
    """Learn from the success of the last action."""
    if row.last_exploit >= 0:
        host = 1 << row.last_exploit
        if row.red_success == tables.TRUE:
            row.meander_mapped |= host
        else:
            row.meander_exploited &= ~host
            lost = row.meander_escalated & tables.OPERATIONAL_HOSTS
            if lost == 0:
                lost = row.meander_escalated & tables.ENTERPRISE_HOSTS
            row.meander_escalated &= ~lost
            row.meander_exploited &= ~lost
        row.last_exploit = -1
    if row.last_host >= 0:
        host = 1 << row.last_host
        if row.red_success == tables.FALSE:
            row.meander_escalated &= ~host
            if row.meander_mapped & host:
                row.meander_exploited &= ~host
        row.last_host = -1


@compiled
def _choose_meander(row: Any) -> tuple[int, int]:
    _digest_meander(row)
    if row.meander_escalated & _SERVER:
        return tables.IMPACT, _SERVER
    subnets = row.known_subnets & ~row.scanned_subnets
    if subnets:
        return tables.SWEEP, subnets
    hosts = row.known_addresses & ~row.meander_scanned
    if hosts:
        return tables.SCAN, hosts
    lost = row.meander_mapped & ~row.meander_exploited
    hosts = row.known_names & ~row.meander_escalated & ~lost
    if hosts:
        return tables.ESCALATE, hosts
    return tables.EXPLOIT, row.known_addresses & ~row.meander_exploited


@compiled
def _commit_meander(row: Any, kind: int, target: int) -> None:
    bit = 1 << target
    if kind == tables.SWEEP:
        row.scanned_subnets |= bit
    elif kind == tables.SCAN:
        row.meander_scanned |= bit
    elif kind == tables.EXPLOIT:
        row.meander_exploited |= bit
        row.last_exploit = target
    else:
        row.meander_escalated |= bit  # Impact's target is a member already
        row.last_host = target


@compiled
def _choose_scripted(kind: int) -> tuple[int, int]:
    if kind == tables.SWEEP:
        return kind, _ALL_SUBNETS
    if kind == tables.IMPACT:
        return kind, _SERVER
    return (kind, _ALL_HOSTS) if tables.SCAN <= kind <= tables.ESCALATE else (tables.SLEEP, 0)


@compiled
def choose(row: Any, script: Any) -> tuple[int, int]:
    """Return the next red action: its kind and the mask of targets that it draws one of (0: it has none)."""
    if row.red_agent == tables.AGENT_B_LINE:
        return _choose_b_line(row)
    if row.red_agent == tables.AGENT_MEANDER:
        return _choose_meander(row)
    if row.red_agent == tables.AGENT_SCRIPTED:
        return _choose_scripted(script.red_kind)
    return tables.SLEEP, 0


@compiled
def commit(row: Any, kind: int, target: int) -> None:
    """Remember the action that `choose` announced, with the target that was drawn for it."""
    if row.red_agent == tables.AGENT_MEANDER:
        _commit_meander(row, kind, target)
    elif row.red_agent == tables.AGENT_B_LINE and row.b_line_counter == 1:
        row.b_line_foothold = target
