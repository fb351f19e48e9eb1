#!/bin/bash
# Use a replicated volume as any NBD client does, and lose the standby meanwhile.
#
# Shows: `pairsync lab` from a script (the ready line, status, kill, start, wait, check), nbdinfo and qemu-img
# on the volume, and that a client notices nothing when the standby dies.
#
# Leaves to you: a hypervisor instead of qemu-img, for example
#     qemu-system-x86_64 ... -drive "file=$uri,format=raw,if=virtio,cache=none"
# and two machines instead of one (see two_hosts/).
#
#     PATH=.venv/bin:$PATH examples/volume_over_nbd.sh
set -euo pipefail

directory=$(mktemp -d)
lab=
clean_up() {
    if [[ -n $lab ]]; then kill -INT "$lab" 2>/dev/null || true; wait "$lab" || true; fi
    rm -rf "$directory"
}
trap clean_up EXIT

# stays in the foreground, prints one JSON line when it is ready and then an event a line
mkfifo "$directory/events"
pairsync lab up "$directory/lab" --volume vda=64M --json >"$directory/events" &
lab=$!
exec {events}<"$directory/events"
read -r ready <&"$events"
uri=$(python3 -c 'import json, sys; print(json.loads(sys.argv[1])["hosts"]["a"]["volumes"]["vda"]["uri"])' "$ready")
cat <&"$events" >"$directory/log" &
pairsync lab wait "$directory/lab" --in-sync
echo "volume: $uri"
nbdinfo --size "$uri"

echo "writing with both hosts, then with one"
head -c 8M /dev/urandom >"$directory/input" && truncate -s 64M "$directory/input"
qemu-img convert -n -f raw -O raw "$directory/input" "$uri"
pairsync lab kill "$directory/lab" b
head -c 8M /dev/urandom >"$directory/input" && truncate -s 64M "$directory/input"
qemu-img convert -n -f raw -O raw "$directory/input" "$uri"
pairsync lab status "$directory/lab"

echo "the standby comes back"
pairsync lab start "$directory/lab" b
pairsync lab wait "$directory/lab" --in-sync
pairsync lab status "$directory/lab"
qemu-img compare -f raw -F raw "$directory/input" "$uri"

kill -INT "$lab"; wait "$lab"; lab=
pairsync lab check "$directory/lab"
