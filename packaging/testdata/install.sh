# Installs, upgrades, removes and purges both packages with the real dpkg, and runs what they install.
# In a throw-away root: see in-throwaway-root. Arguments: the folder's names of server and agent, and of later
# versions of both.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
cd /mnt
server=$1 agent=$2 server2=$3 agent2=$4
fail() { echo "FAIL: $*" >&2; exit 1; }
owner() { stat -c '%U:%G %a' "$1"; }
expect() { [ "$2" = "$3" ] || fail "$1: want $3, got $2"; }
absent() { [ ! -e "$1" ] || fail "$1 is there"; }

echo "== install"
dpkg -i "$server" "$agent"
expect 'data directory' "$(owner /var/lib/steward)" 'steward:steward 700'
expect 'server.env' "$(owner /etc/steward/server.env)" 'root:root 600'
expect 'agent.env' "$(owner /etc/steward/agent.env)" 'root:root 600'
expect 'program' "$(owner /usr/bin/steward)" 'root:root 755'
expect 'shell of the user' "$(getent passwd steward | cut -d: -f7)" /usr/sbin/nologin
[ -L /etc/systemd/system/multi-user.target.wants/steward-server.service ] || fail 'the server is not enabled'
[ -L /etc/systemd/system/multi-user.target.wants/steward-agent.service ] || fail 'the agent is not enabled'
dpkg --verify steward-server steward-agent
systemd-analyze verify /usr/lib/systemd/system/steward-server.service /usr/lib/systemd/system/steward-agent.service
man --warnings --encoding=utf-8 --local-file /usr/share/man/man1/steward.1.gz 2>&1 >/dev/null | grep . && fail 'the manual page has mistakes'
man --warnings --encoding=utf-8 --local-file /usr/share/man/man8/steward-agent.8.gz 2>&1 >/dev/null | grep . && fail 'the manual page has mistakes'
bash -c 'source /usr/share/bash-completion/bash_completion 2>/dev/null; source /usr/share/bash-completion/completions/steward; complete -p steward' > /dev/null

echo "== run"
run_as() { setpriv --reuid "$1" --regid "$1" --init-groups "${@:2}"; }
# Without run_as, whose process would be the shell's and not the program's.
setpriv --reuid steward --regid steward --init-groups env STEWARD_DATA=/var/lib/steward STEWARD_LINK_URL=https://127.0.0.1:8443 /usr/bin/steward server > /tmp/server.log 2>&1 &
pid=$!
for _ in $(seq 200); do [ -e /var/lib/steward/bootstrap.json ] && break; sleep 0.1; done
steward health || { cat /tmp/server.log; fail 'the server is not ready'; }
export STEWARD_DATA=/var/lib/steward
device=$(steward device create GW-DEB-1 --reason test -o json | sed -n 's/.*"id": "\(dev-[^"]*\)".*/\1/p')
steward enroll policy accept > /dev/null
token=$(steward enroll token "$device" | grep -o 'stw1[^ ]*' | head -n 1)
run_as steward-agent env STEWARD_STATE=/tmp/agent-none /usr/bin/steward-agent inventory > /dev/null
install -d -m 0700 -o steward-agent -g steward-agent /var/lib/steward-agent
setpriv --reuid steward-agent --regid steward-agent --init-groups env STEWARD_STATE=/var/lib/steward-agent STEWARD_SERVER=https://127.0.0.1:8443 STEWARD_SERIAL=GW-DEB-1 STEWARD_TOKEN="$token" /usr/bin/steward-agent > /tmp/agent.log 2>&1 &
agent_pid=$!
for _ in $(seq 200); do steward get devices | grep -q 'GW-DEB-1.*active' && break; sleep 0.1; done
steward get devices | grep -q 'GW-DEB-1.*active' || { cat /tmp/agent.log; steward get devices; fail 'the device is not active'; }
echo passphrase > /tmp/pass
run_as steward steward backup --data /var/lib/steward --out /var/lib/steward/nightly.backup --passphrase-file /tmp/pass

echo "== upgrade"
echo '# mine' >> /etc/steward/server.env
kill "$agent_pid" "$pid"; wait "$pid" || fail "the server ended with $?"
wait "$agent_pid" || fail "the agent ended with $?"
before=$(steward version 2>/dev/null || steward --version)
dpkg -i "$server2" "$agent2"
[ "$before" != "$(steward --version)" ] || fail 'the version is the same'
grep -q '^# mine' /etc/steward/server.env || fail 'the configuration was replaced'
[ -e /var/lib/steward/steward.db ] && [ -e /var/lib/steward-agent/identity.pem ] || fail 'the upgrade has lost data'
rm /var/lib/steward/bootstrap.json
setpriv --reuid steward --regid steward --init-groups steward server > /tmp/server.log 2>&1 &
pid=$!
for _ in $(seq 200); do [ -e /var/lib/steward/bootstrap.json ] && break; sleep 0.1; done
steward get devices | grep -q 'GW-DEB-1.*active' || fail 'the upgraded server has lost the device'
kill "$pid"; wait "$pid"

echo "== remove"
dpkg -r steward-server steward-agent
absent /usr/bin/steward; absent /usr/bin/steward-agent; absent /usr/lib/systemd/system/steward-server.service
[ -e /var/lib/steward/steward.db ] && [ -e /var/lib/steward/keys ] && [ -e /var/lib/steward-agent/identity.pem ] || fail 'removing has lost data'
[ -e /etc/steward/server.env ] || fail 'removing has lost the configuration'

echo "== purge, data kept"
dpkg -P steward-server steward-agent
[ -e /var/lib/steward/steward.db ] || fail 'purging has removed the data without being told to'
absent /var/lib/steward-agent; absent /etc/steward
find /etc/systemd/system /var/lib/systemd -name 'steward-*' | grep . && fail 'units are left'

echo "== again, and purge with the data"
dpkg -i "$server2"
expect 'data directory' "$(owner /var/lib/steward)" 'steward:steward 700'
run_as steward steward ledger verify --data /var/lib/steward
echo 'steward-server steward-server/remove-data boolean true' > /tmp/answers
debconf-set-selections /tmp/answers
dpkg -P steward-server
absent /var/lib/steward
echo "all is well"
