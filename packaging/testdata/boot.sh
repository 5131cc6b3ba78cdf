# Boots systemd in a throw-away root and looks at the installed units as they really run.
# Arguments: the folder's names of server and agent.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
if [ "${1:-}" = inside ]; then
  trap 'code=$?; [ $code = 0 ] || { systemctl --no-pager --full status steward-server steward-agent || true; journalctl --no-pager -n 60 -u steward-server -u steward-agent || true; }; echo "$code" > /mnt/code; systemctl --no-block exit "$code"' EXIT
  fail() { echo "FAIL: $*" >&2; exit 1; }
  property() { systemctl show --property "$2" --value "$1"; }
  is() { [ "$(property "$1" "$2")" = "$3" ] || fail "$1: $2 is $(property "$1" "$2"), want $3"; }

  echo "== the server has told that it is ready"
  is steward-server ActiveState active
  is steward-server Type notify
  is steward-server User steward
  is steward-server WatchdogUSec 1min
  steward health
  [ "$(property steward-server WatchdogTimestampMonotonic)" -gt 0 ] || fail 'no sign of life'
  [ "$(stat -c '%U:%G %a' /var/lib/steward)" = 'steward:steward 700' ] || fail 'the data directory'
  echo "== hardening holds"
  pid=$(property steward-server MainPID)
  grep -q '^NoNewPrivs:.1' "/proc/$pid/status" || fail 'new privileges'
  grep -q '^CapEff:.0000000000000400' "/proc/$pid/status" || fail "capabilities: $(grep Cap "/proc/$pid/status")"
  grep -q '^Seccomp:.2' "/proc/$pid/status" || fail 'no filter of system calls'
  most=$(awk '/^Max open files/ { print ($5 < 262144) ? $5 : 262144 }' /proc/1/limits) # here systemd itself may not have more
  grep -q "^Max open files *$most" "/proc/$pid/limits" || fail "$(grep '^Max open' "/proc/$pid/limits")"
  for path in /etc/x /usr/x /root/x /var/lib/x; do
    nsenter --target "$pid" --mount touch "$path" 2> /dev/null && fail "the server's part of the system can be written to at $path"
  done
  echo "== it comes back when it dies, and when it hangs"
  kill -9 "$pid"
  for _ in $(seq 200); do [ "$(property steward-server MainPID)" -gt 0 ] && [ "$(property steward-server MainPID)" != "$pid" ] && [ "$(property steward-server ActiveState)" = active ] && break; sleep 0.1; done
  is steward-server ActiveState active
  [ "$(property steward-server NRestarts)" = 1 ] || fail 'it was not started again'
  mkdir -p /run/systemd/system/steward-server.service.d
  printf '[Service]\nWatchdogSec=3\n' > /run/systemd/system/steward-server.service.d/quick.conf
  systemctl daemon-reload; systemctl restart steward-server
  pid=$(property steward-server MainPID)
  kill -STOP "$pid"
  for _ in $(seq 300); do [ "$(property steward-server MainPID)" != "$pid" ] && [ "$(property steward-server ActiveState)" = active ] && break; sleep 0.1; done
  [ "$(property steward-server MainPID)" != "$pid" ] || fail 'a server that hangs is not started again'

  echo "== the agent"
  is steward-agent ActiveState inactive # it has no server yet
  export STEWARD_DATA=/var/lib/steward
  device=$(steward device create GW-BOOT-1 --reason test -o json | sed -n 's/.*"id": "\(dev-[^"]*\)".*/\1/p')
  steward enroll policy accept > /dev/null
  token=$(steward enroll token "$device" | grep -o 'stw1[^ ]*' | head -n 1)
  printf 'STEWARD_SERVER=https://127.0.0.1:8443\nSTEWARD_TOKEN=%s\nSTEWARD_SERIAL=GW-BOOT-1\nSTEWARD_AGENT_FLAGS=--interval 1s --log debug\n' "$token" >> /etc/steward/agent.env
  systemctl start steward-agent
  for _ in $(seq 300); do steward get devices | grep -q 'GW-BOOT-1.*active' && break; sleep 0.1; done
  steward get devices | grep 'GW-BOOT-1.*active' || fail 'the device is not active'
  pid=$(property steward-agent MainPID)
  [ "$(stat -c %U "/proc/$pid")" = steward-agent ] || fail 'the agent runs as somebody else'
  grep -q '^CapEff:.0000000000000000' "/proc/$pid/status" || fail 'capabilities'
  steward device inventory "$device" -o json > /tmp/inventory
  grep -q '"read_only": true' /tmp/inventory && { cat /tmp/inventory; fail 'its own cage is reported as the machine being read-only'; }
  echo "== a release is installed inside the cage"
  mkdir -p /tmp/app/files
  echo 1.0.0 > /tmp/app/files/version
  cat > /tmp/app/release.yaml << 'END'
name: app
version: 1.0.0
components:
  - {name: app, dir: files, commands: {health: [{argv: [test, -f, version]}], health_seconds: 1}}
END
  (cd /tmp/app && steward release push -f release.yaml) > /dev/null
  steward update assign app 1.0.0 --yes > /dev/null
  for _ in $(seq 300); do [ -e /var/lib/steward-agent/components/app/current/version ] && break; sleep 0.1; done
  grep -q 1.0.0 /var/lib/steward-agent/components/app/current/version || { steward get device-updates; fail 'the release is not installed'; }
  echo "== stop"
  systemctl stop steward-agent steward-server
  is steward-server Result success
  is steward-agent Result success
  systemd-analyze security --no-pager steward-server steward-agent || true
  for unit in steward-server steward-agent; do systemd-analyze security --no-pager --threshold=25 "$unit" > /dev/null || fail "$unit is exposed more than 2.5"; done
  echo "all is well"
  exit 0
fi
cd /mnt
dpkg -i "$@" > /tmp/dpkg.log || { cat /tmp/dpkg.log; exit 1; }
# A small boot: what the machine has otherwise stays out of it.
find /etc/systemd/system -name '*.wants' -prune -exec rm -rf {} +
mkdir -p /etc/systemd/system/multi-user.target.wants
echo STEWARD_MANAGED_RELEASE_KEYS=true >> /etc/steward/server.env
ln -sf /usr/lib/systemd/system/steward-server.service /etc/systemd/system/multi-user.target.wants/
for unit in systemd-udevd systemd-networkd systemd-resolved systemd-timesyncd networking getty@tty1 console-getty systemd-logind e2scrub_reap apt-daily.timer apt-daily-upgrade.timer docker containerd postgresql haproxy; do
  case "$unit" in *.timer) ln -sf /dev/null "/etc/systemd/system/$unit" ;; *) ln -sf /dev/null "/etc/systemd/system/$unit.service" ;; esac
done
cat > /etc/systemd/system/steward-boot-test.service << 'END'
[Unit]
After=steward-server.service
[Service]
Type=oneshot
ExecStart=/bin/bash /mnt/boot.sh inside
StandardOutput=append:/mnt/log
StandardError=append:/mnt/log
END
ln -sf ../steward-boot-test.service /etc/systemd/system/multi-user.target.wants/
echo '127.0.0.1 localhost' > /etc/hosts
rm -f /etc/machine-id; systemd-machine-id-setup > /dev/null
umount /sys; mount -t sysfs sysfs /sys; mount -t cgroup2 cgroup2 /sys/fs/cgroup
export container=throwaway
exec /lib/systemd/systemd --system --unit=multi-user.target --log-target=null --show-status=false
