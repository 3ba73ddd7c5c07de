"""One step of CAGE Challenge 2: Blue, Green, Red, reward, Monitor. Section numbers are those of the rules."""

from typing import Any

from rollout_worker.environments.cage2 import observation as seen
from rollout_worker.environments.cage2 import red_agents, state, tables
from rollout_worker.environments.cage2.compilation import compiled
from rollout_worker.environments.cage2.randomness import (
    DRAW_DETECTED,
    DRAW_FAVOURITE,
    DRAW_GREEN_KIND,
    DRAW_GREEN_TARGET,
    DRAW_OTHER,
    DRAW_PICK,
    DRAW_RED_TARGET,
    below,
    chance,
    count,
    member,
)

_WIDEST = 62  # values of a forced outcome that a mask of 64 bits can name


@compiled
def forced(row: Any, field: int, value: int, allowed: int) -> int:
    """Take a value of the script if the rules allow it, else note the fault and take one that they allow."""
    if (allowed == 0 and value == -1) or (0 <= value <= _WIDEST and (allowed >> value) & 1 != 0):
        return value
    if row.fault < 0:
        row.fault = field
        row.fault_allowed = allowed
    return member(allowed, 0) if allowed else -1


@compiled
def act_blue(row: Any, kind: int, host: int) -> tuple[bool, bool]:
    """Section 5. Returns whether a decoy was placed, and whether Analyse found a malicious file."""
    bit = 1 << host
    row.blue_success = tables.UNKNOWN if kind == tables.BLUE_SLEEP else tables.TRUE
    if kind == tables.RESTORE:
        _restore(row, host, bit)
    elif kind >= tables.FIRST_DECOY:
        decoy = kind - tables.FIRST_DECOY
        placed = (tables.FITTING_DECOYS[host] >> decoy) & 1 != 0 and row.decoys[
            host
        ] & tables.BLOCKING_DECOYS[decoy] == 0
        if placed:
            row.decoys[host] |= 1 << decoy
        else:
            row.blue_success = tables.FALSE
        return placed, False
    elif kind == tables.REMOVE:
        if row.removable_sessions[host]:
            row.removable_sessions[host] = 0
            row.removable_order[host] = 0
            if row.fixed_sessions[host] + row.privileged_sessions[host] == 0:
                row.access &= ~bit
    elif kind == tables.ANALYSE:
        return False, row.malware & bit != 0
    return False, False


@compiled
def _restore(row: Any, host: int, bit: int) -> None:
    own = 1 if host == tables.USER0 else 0  # session 0 is never lost
    row.privileged_sessions[host] = own
    row.removable_sessions[host] = 0
    row.fixed_sessions[host] = 0
    row.removable_order[host] = 0
    row.access &= ~(bit * (1 - own))
    row.privileged &= ~(bit * (1 - own))
    row.malware &= ~bit
    row.decoys[host] = 0
    row.mail_safe |= bit & tables.MAIL_HOSTS
    if host == tables.OP_SERVER0:
        row.ot_running = 1
        row.ot_pid_known = 0


@compiled
def act_green(row: Any, script: Any) -> int:
    """Section 7. Returns the host that Green scans, or -1."""
    if row.forced:
        kind = forced(row, state.GREEN_KIND, script.green_kind, 3)
        target = forced(row, state.GREEN_TARGET, script.green_target, tables.GREEN_HOSTS if kind else 0)
    else:
        kind = 1 if row.green and chance(row, DRAW_GREEN_KIND, 0.5) else 0
        target = (
            member(tables.GREEN_HOSTS, below(row, DRAW_GREEN_TARGET, count(tables.GREEN_HOSTS)))
            if kind
            else -1
        )
    row.outcome.green_kind = kind
    row.outcome.green_target = target
    return target


@compiled
def _open_ports(row: Any, host: int) -> int:
    ports: int = tables.ORIGINAL_PORTS[host] | tables.PORTS_OF_DECOYS[row.decoys[host]]
    return ports


@compiled
def _reachable(row: Any, hosts: int) -> bool:
    return hosts & tables.OPERATIONAL_HOSTS == 0 or row.access & tables.ENTERPRISE_HOSTS != 0


@compiled
def choose_red(row: Any, script: Any) -> tuple[int, int]:
    """Section 8. Returns kind and target of Red's action."""
    kind, targets = red_agents.choose(row, script)
    if row.forced:
        kind = forced(row, state.RED_KIND, script.red_kind, 1 << kind)
        target = forced(row, state.RED_TARGET, script.red_target, targets)
        if targets and 0 <= script.red_target < (
            tables.N_SUBNETS if kind == tables.SWEEP else tables.N_HOSTS
        ):
            target = script.red_target  # follow the script where only the draw is at fault
    elif targets:
        choices = count(targets)
        target = member(targets, below(row, DRAW_RED_TARGET, choices) if choices > 1 else 0)
    else:
        target = -1
    row.outcome.red_kind = kind
    row.outcome.red_target = target
    if target >= 0:
        red_agents.commit(row, kind, target)
    return kind, target


@compiled
def act_red(row: Any, script: Any, kind: int, target: int) -> tuple[int, int, bool]:
    """Section 6. Returns the events on the target: mask of local ports, number, whether one has a shell."""
    ports, events, shell = 0, 0, False
    success = tables.TRUE
    bit = 1 << target if target >= 0 else 0
    if kind == tables.SCAN:
        row.red_saw_data = _reachable(row, bit)
        if row.red_saw_data:
            ports = _open_ports(row, target)
            events = count(ports)
            row.ports[target] = ports | (row.ports[target] if row.leaderboard else 0)
            row.ports_known |= bit
    elif kind == tables.EXPLOIT:
        success, ports, events, shell = _exploit(row, script, target, bit)
    elif kind == tables.ESCALATE:
        success = _escalate(row, script, target, bit)
    elif kind == tables.IMPACT:
        success = tables.TRUE if row.access & bit and row.ot_known else tables.FALSE
        if success and row.ot_pid_known:
            row.ot_running = 0
    elif kind == tables.SWEEP:
        success = tables.TRUE if _reachable(row, tables.HOSTS_OF[target]) else tables.FALSE
        if success:
            row.known_subnets |= bit
            row.known_addresses |= tables.HOSTS_OF[target]
    else:
        success = tables.UNKNOWN
    row.red_success = success
    return ports, events, shell


@compiled
def _select_exploit(row: Any, script: Any, candidates: int) -> int:
    """Three times of four the candidate of the largest weight, else one of the others."""
    if row.forced:
        return forced(row, state.EXPLOIT, script.exploit, candidates)
    favourite = tables.FAVOURITE[candidates]
    others = candidates & ~(1 << favourite)
    if others == 0 or chance(row, DRAW_FAVOURITE, 0.75):
        return int(favourite)
    return member(others, below(row, DRAW_OTHER, count(others)))


@compiled
def _exploit(row: Any, script: Any, host: int, bit: int) -> tuple[int, int, int, bool]:
    """Section 6.4. Returns success and the events."""
    candidates = tables.CANDIDATES[row.ports[host]]
    if candidates == 0:
        return tables.FALSE, 0, 0, False
    exploit = _select_exploit(row, script, candidates)
    row.outcome.exploit = exploit
    answer = tables.ANSWER[host, exploit]
    port = tables.EXPLOIT_PORT[exploit]
    if not _reachable(row, bit):
        return tables.FALSE, 0, 0, False
    if answer == tables.NO_SERVICE:
        if row.decoys[host] & tables.STOPPING_DECOYS[exploit] == 0:
            return tables.FALSE, 0, 0, False
        return tables.FALSE, port, 10 if exploit == tables.SSH_BRUTE_FORCE else 2, False
    if answer == tables.REFUSES:
        return tables.FALSE, port, 10, False
    if exploit == tables.HARAKA_RCE and row.leaderboard and row.mail_safe & bit:
        return tables.FALSE, port, 1, False
    row.known_names |= bit
    row.known_addresses |= bit
    if exploit == tables.SSH_BRUTE_FORCE:
        _open_session(row, host, bit, False, False)
        return tables.TRUE, port, 11, False
    row.malware |= bit
    detected = (
        forced(row, state.DETECTED, script.detected, 3)
        if row.forced
        else int(chance(row, DRAW_DETECTED, 0.95))
    )
    row.outcome.detected = detected
    _open_session(row, host, bit, answer == tables.GIVES_PRIVILEGED, detected != 0)
    if detected:
        return tables.TRUE, port | tables.EPHEMERAL, 2, True
    return tables.TRUE, port, 1, False


@compiled
def _open_session(row: Any, host: int, bit: int, privileged: bool, removable: bool) -> None:
    position = row.fixed_sessions[host] + row.removable_sessions[host]
    row.access |= bit
    if privileged:
        row.privileged |= bit
        row.privileged_sessions[host] += 1
    elif removable:
        row.removable_sessions[host] += 1
        if position <= _WIDEST:
            row.removable_order[host] |= 1 << position
    else:
        row.fixed_sessions[host] += 1


@compiled
def _escalate(row: Any, script: Any, host: int, bit: int) -> int:
    """Section 6.5. Returns success."""
    if row.access & bit == 0:
        return tables.FALSE
    if row.privileged & bit == 0:
        if _pick_session(row, script, host):
            row.removable_sessions[host] -= 1
        else:
            row.fixed_sessions[host] -= 1
        row.privileged_sessions[host] = 1
        row.privileged |= bit
        row.malware |= bit
    row.known_subnets |= 1 << tables.SUBNET_OF[host]
    row.known_addresses |= bit | tables.LINKED[host]
    if host == tables.OP_SERVER0:
        row.ot_known = 1
    return tables.TRUE


@compiled
def _pick_session(row: Any, script: Any, host: int) -> bool:
    """Pick one of the sessions of a host without a privileged one; returns whether it was removable."""
    sessions = row.fixed_sessions[host] + row.removable_sessions[host]
    pick = below(row, DRAW_PICK, sessions)
    if row.forced:
        pick = forced(row, state.PICK, script.escalate_pick, (1 << min(sessions, _WIDEST + 1)) - 1)
    # Beyond the bits of the order the class is drawn by the counts, which gives the same probabilities.
    ordered = sessions <= _WIDEST + 1
    removable = row.removable_order[host] >> pick & 1 if ordered else int(pick < row.removable_sessions[host])
    if row.forced:
        allowed = 1 << removable
        if not ordered:
            allowed = (row.fixed_sessions[host] > 0) | (row.removable_sessions[host] > 0) << 1
        removable = forced(row, state.PICK_REMOVABLE, script.escalate_pick_removable, allowed)
    row.outcome.escalate_pick = pick
    row.outcome.escalate_pick_removable = removable
    return removable != 0


@compiled
def cost_tenths(row: Any, blue_kind: int) -> int:
    """Section 9: minus ten times the reward."""
    cost = count(row.privileged & tables.ONE_TENTH_HOSTS) + 10 * count(
        row.privileged & tables.ONE_POINT_HOSTS
    )
    cost += 0 if row.ot_running else tables.OT_DOWN_TENTHS
    return cost + (tables.RESTORE_TENTHS if blue_kind == tables.RESTORE else 0)


@compiled
def observe(row: Any, words: Any, blue: tuple[int, int, bool, bool], green: int, red: Any) -> None:
    """Section 10. `blue`: kind, host, decoy placed, malware found; `red`: host, ports, events, shell."""
    kind, host, placed, found = blue
    red_host, ports, events, shell = red
    seen.revise_belief(row, kind, host)
    red_seen, green_seen = seen.ACTIVITY_NONE, seen.ACTIVITY_NONE
    if green >= 0:
        green_ports = _open_ports(row, green)
        if events > 0 and green == red_host:
            ports |= green_ports
            events += count(green_ports)
        else:
            green_seen = seen.activity(green_ports, count(green_ports), False, placed and host == green)
    if events > 0:
        red_seen = seen.activity(ports, events, shell, placed and host == red_host)
    if red_seen == seen.ACTIVITY_EXPLOIT:
        seen.believe(row, red_host, seen.BELIEF_USER)
    if green_seen == seen.ACTIVITY_EXPLOIT:
        seen.believe(row, green, seen.BELIEF_USER)
    if found:
        seen.believe(row, host, seen.BELIEF_PRIVILEGED)
    seen.write_observation(row, words)
    if red_seen:
        seen.show(words, red_host, red_seen)
    if green_seen:
        seen.show(words, green, green_seen)


@compiled
def _check_unused(row: Any, script: Any) -> None:
    """Note a forced value where nothing was drawn: a fault too."""
    outcome = row.outcome
    if outcome.exploit == -1:
        forced(row, state.EXPLOIT, script.exploit, 0)
    if outcome.detected == -1:
        forced(row, state.DETECTED, script.detected, 0)
    if outcome.escalate_pick == -1:
        forced(row, state.PICK, script.escalate_pick, 0)
        forced(row, state.PICK_REMOVABLE, script.escalate_pick_removable, 0)


@compiled
def step_row(row: Any, script: Any, action: int, words: Any) -> None:
    """Advance one row by one step and write its 13 words of observation."""
    kind, host = tables.BLUE_KIND[action], tables.BLUE_HOST[action]
    outcome = row.outcome
    outcome.exploit = outcome.detected = outcome.escalate_pick = outcome.escalate_pick_removable = -1
    row.fault = -1
    placed, found = act_blue(row, kind, host)
    green = act_green(row, script)
    red_kind, red_target = choose_red(row, script)
    ports, events, shell = act_red(row, script, red_kind, red_target)
    cost = cost_tenths(row, kind)
    observe(row, words, (kind, host, placed, found), green, (red_target, ports, events, shell))
    if row.forced:
        _check_unused(row, script)
    row.step += 1
    row.blue_action = action
    row.cost_tenths = cost
