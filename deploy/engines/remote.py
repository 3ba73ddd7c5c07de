"""Processes on another host that outlive the connection they were started over, by a POSIX shell script.

Each has a name, and lies in a folder of that host as NAME.pid and NAME.log. Who it is stands there as process
id, start time and boot, so another process that got the same id later is not taken for it. Starting under a
name that runs already does nothing. Linux hosts only: it reads /proc.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote

from deploy.engines.ssh_scripts import Ssh


@dataclass(frozen=True, slots=True)
class InFolder:
    """A file of the processes' folder, as a word of a command."""

    name: str


@dataclass(frozen=True, slots=True)
class InHome:
    """A path below the home folder of that host, as a word of a command."""

    path: str


Word = str | InFolder | InHome
Command = Sequence[Word]


@dataclass(frozen=True, slots=True)
class Process:
    """A process that was started on a host, whether it lives or not."""

    name: str
    alive: bool
    stopping: bool = False
    """It was asked to end, and has not yet."""
    last_words: str = ""
    """Last line of its log, once it is dead."""


_FUNCTIONS = r"""
boot=$(cat /proc/sys/kernel/random/boot_id) || exit 1
begun() (
    set -f
    IFS= read -r stat < "/proc/$1/stat" || exit 1
    set -- ${stat##*) }
    [ "$1" != Z ] && printf %s "${20}"
) 2> /dev/null
lives() {
    [ -r "$folder/$1.pid" ] && read -r pid began when < "$folder/$1.pid" && [ "$when" = "$boot" ] &&
        [ -n "$began" ] && [ "$(begun "$pid")" = "$began" ]
}
locked() {
    mask=$(umask)
    umask 077
    mkdir -p "$folder" && exec 9> "$folder/lock" || exit 1
    flock -w 30 9 || { echo "no lock on $folder within 30 s; it takes flock of util-linux" >&2; exit 1; }
}
fail() {  # not every shell says that the disk is full
    free=$(df -Pk "$folder" | awk 'NR == 2 { print $4 }')
    [ "${free:-9999}" -ge 100 ] || echo "No space left on device, at $folder" >&2
    exit 1
}
start() {
    name=$1
    shift
    if lives "$name"; then
        printf 'running %s\n' "$name"
        return
    fi
    rm -f "$folder/$name.stopped"
    : >> "$folder/$name.log" && : > "$folder/$name.pid" || fail
    setsid "$@" < /dev/null >> "$folder/$name.log" 2>&1 9>&- &
    pid=$!
    if ! printf '%s %s %s\n' "$pid" "$(begun "$pid")" "$boot" > "$folder/$name.pid"; then
        kill -s KILL "$pid"
        fail
    fi
    printf 'started %s\n' "$name"
}
list() {
    for file in "$folder"/*.pid; do
        [ -e "$file" ] || continue
        name=${file##*/}
        name=${name%.pid}
        if lives "$name"; then
            [ -e "$folder/$name.stopped" ] && printf 'stopping %s\n' "$name" || printf 'running %s\n' "$name"
        elif [ -e "$folder/$name.stopped" ]; then
            rm -f "$file" "$folder/$name.stopped"
        else
            printf 'dead %s %s\n' "$name" "$(tail -n 1 "$folder/$name.log" | tail -c 500)"
        fi
    done
}
stop() {
    lives "$2" || return 0
    : > "$folder/$2.stopped"
    case $1 in
    KILL) kill -s KILL -- "-$pid" 2> /dev/null || kill -s KILL "$pid" ;;
    *) kill -s TERM "$pid" ;;
    esac || ! lives "$2" || exit 1
}
"""


class RemoteProcesses:
    """The processes of one purpose, such as (run, pool), on any hosts.

    The folder carries the host's name too: a home folder may be shared by many hosts.
    """

    def __init__(self, ssh: Ssh, *purpose: str) -> None:
        self._ssh, self._purpose = ssh, purpose

    def start(
        self, host: str, commands: Mapping[str, Command], files: Mapping[str, str] | None = None
    ) -> Sequence[str]:
        """Start a process under each name that has none alive; return the names that were started now.

        `files` are put into the folder first, for nobody else to read; a word `InFolder(NAME)` names one.
        """
        printed = self._ssh.run(host, start_script(self.folder(host), commands, files or {}))
        return [name for kind, name, _ in _lines(printed) if kind == "started"]

    def list(self, host: str) -> Sequence[Process]:
        """Return those that live, and those that ended without being asked to."""
        printed = self._ssh.run(host, script(self.folder(host), "list"))
        return [
            Process(name, kind != "dead", kind == "stopping", rest) for kind, name, rest in _lines(printed)
        ]

    def stop(self, host: str, names: Sequence[str], *, kill: bool = False) -> None:
        """Ask processes to end, or end them and what they started at once."""
        signal = "KILL" if kill else "TERM"
        self._ssh.run(
            host, script(self.folder(host), *(f"stop {signal} {file_name(name)}" for name in names))
        )

    def log(self, host: str, name: str, lines: int) -> str | None:
        """Return the last lines of a log; None where no process of that name ever was on the host."""
        file = f'"$folder"/{file_name(name)}.log'
        said = self._ssh.run(
            host,
            script(self.folder(host), f"[ -e {file} ] || exit 0; echo; tail -n {lines} {file}"),
        )
        return said[1:] if said else None

    def folder(self, host: str) -> str:
        """Return where pids and logs lie, and where the processes work, as a word of a shell script."""
        return folder_of(*self._purpose, host)


def folder_of(*parts: str) -> str:
    """Return a folder for such a purpose, as a word of a shell script."""
    inner = "/".join(map(file_name, parts))
    return f'"${{XDG_STATE_HOME:-$HOME/.local/state}}"/rollout-fleet/{inner}'


def file_name(text: str) -> str:
    """Return a name that is one for a file and a word for a shell: letters, digits, _ - . and %."""
    return re.sub(r"^[.-]|~", lambda found: f"%{ord(found[0]):02X}", quote(text, safe=""))


def word(value: Word) -> str:
    """Return an argument as a POSIX shell has to read it."""
    match value:
        case InFolder(name):
            return f'"$folder"/{file_name(name)}'
        case InHome(path):
            return f'"$HOME"/{shlex.quote(path)}'
        case _:
            return shlex.quote(value)


def start_script(folder: str, commands: Mapping[str, Command], files: Mapping[str, str]) -> str:
    """Return the script that starts a process under each name, with these files in the folder."""
    puts = [
        f'printf %s {shlex.quote(text)} > "$folder"/{file_name(name)}.new && '
        f'mv "$folder"/{file_name(name)}.new "$folder"/{file_name(name)} || fail'
        for name, text in files.items()
    ]
    starts = [f"start {file_name(name)} {' '.join(map(word, words))}" for name, words in commands.items()]
    return script(folder, "locked", *puts, 'umask "$mask"', 'cd "$folder" || exit 1', *starts)


def script(folder: str, *lines: str) -> str:
    """Return a script that does these things with the processes of a folder; see the functions above."""
    return "\n".join([f"folder={folder}", _FUNCTIONS, *lines])


def _lines(printed: str) -> list[tuple[str, str, str]]:
    """Return kind, name and the rest of each line."""
    split = ((*line.split(" ", 2), "", "")[:3] for line in printed.splitlines() if line)
    return [(kind, unquote(name), rest) for kind, name, rest in split]
