package host

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"steward/internal/wire"
)

// tree makes a machine of files. Directories end with a slash.
func tree(t *testing.T, files map[string]string) *Linux {
	t.Helper()
	root := t.TempDir()
	for path, content := range files {
		full := filepath.Join(root, path)
		dir := filepath.Dir(full)
		if strings.HasSuffix(path, "/") {
			dir = full
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if dir != full {
			if err := os.WriteFile(full, []byte(content), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	return NewLinux(LinuxConfig{Root: root})
}

func pc() map[string]string {
	return map[string]string{
		"sys/class/dmi/id/sys_vendor":     "Kestrel Industrial\n",
		"sys/class/dmi/id/product_name":   "E240\n",
		"sys/class/dmi/id/product_serial": "KE-00017\n",
		"etc/os-release":                  "NAME=\"Debian GNU/Linux\"\nID=debian\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n# comment\n",
		"proc/sys/kernel/osrelease":       "6.1.0-18-amd64\n",
		"proc/sys/kernel/hostname":        "press-7\n",
		"proc/cpuinfo":                    "processor\t: 0\nmodel name\t: Intel Atom\nflags\t: fpu vme\n\nprocessor\t: 1\nmodel name\t: Intel Atom\n",
		"proc/meminfo":                    "MemTotal:        8000000 kB\nMemFree: 100 kB\nMemAvailable:    6000000 kB\n",
		"proc/self/mounts": "proc /proc proc rw 0 0\n/dev/mmcblk0p2 / ext4 rw,relatime 0 0\n/dev/mmcblk0p2 /srv/with\\040blank ext4 rw 0 0\n" +
			"/dev/mmcblk0p1 /boot vfat ro 0 0\nserver:/x /mnt/nfs nfs rw 0 0\ntmpfs /run tmpfs rw 0 0\n/dev/loop0 /snap/core/1 squashfs ro 0 0\n",
		"boot/":                   "",
		"sys/class/net/eth0/type": "1\n", "sys/class/net/eth0/address": "02:00:00:00:00:01\n", "sys/class/net/eth0/mtu": "1500\n", "sys/class/net/eth0/operstate": "up\n", "sys/class/net/eth0/device/": "",
		"sys/class/net/lo/type": "772\n", "sys/class/net/veth12/type": "1\n",
		"sys/class/net/wlan0/type": "1\n", "sys/class/net/wlan0/phy80211/": "", "sys/class/net/wlan0/operstate": "down\n",
		"sys/class/net/wwan0/type": "519\n", "sys/class/net/br0/type": "1\n", "sys/class/net/br0/bridge/": "", "sys/class/net/tun0/type": "65534\n",
		"sys/class/tpm/tpm0/tpm_version_major":                                     "2\n",
		"sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c": "\x06\x00\x00\x00\x01",
	}
}

func TestInventoryOfAPC(t *testing.T) {
	l := tree(t, pc())
	got, err := l.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range got.Disks {
		if got.Disks[i].SizeBytes <= 0 {
			t.Errorf("size of %+v", got.Disks[i])
		}
		got.Disks[i].SizeBytes = 0
	}
	want := wire.Inventory{
		Hostname: "press-7", Architecture: architecture(), Machine: wire.Machine{Vendor: "Kestrel Industrial", Product: "E240", Serial: "KE-00017"},
		OS:  wire.OS{ID: "debian", Version: "12", Name: "Debian GNU/Linux 12 (bookworm)", Codename: "bookworm", Kernel: "6.1.0-18-amd64"},
		CPU: wire.CPU{Model: "Intel Atom", Cores: 2}, MemoryBytes: 8_192_000_000,
		Disks: []wire.Disk{{Device: "/dev/mmcblk0p2", Mount: "/", FileSystem: "ext4"}, {Device: "/dev/mmcblk0p1", Mount: "/boot", FileSystem: "vfat", ReadOnly: true}},
		Interfaces: []wire.Interface{
			{Name: "br0", Kind: "bridge"}, {Name: "eth0", MAC: "02:00:00:00:00:01", MTU: 1500, Up: true, Kind: "ethernet"},
			{Name: "tun0", Kind: "virtual"}, {Name: "wlan0", Kind: "wifi"}, {Name: "wwan0", Kind: "cellular"},
		},
		TPM: "2.0", SecureBoot: "on",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestSerialNumberComesFromTheMakerBeforeTheInstallation(t *testing.T) {
	cases := []struct {
		name  string
		files map[string]string
		want  Identity
	}{
		{"DMI", map[string]string{"sys/class/dmi/id/product_serial": "AB 12"}, Identity{Serial: "AB-12", Source: "dmi"}},
		{"placeholder, then the board", map[string]string{"sys/class/dmi/id/product_serial": "To Be Filled By O.E.M.", "sys/class/dmi/id/board_serial": "B77"}, Identity{Serial: "B77", Source: "dmi"}},
		{"zeros, then the device tree", map[string]string{"sys/class/dmi/id/product_serial": "0000000", "proc/device-tree/serial-number": "100000001234\x00"}, Identity{Serial: "100000001234", Source: "device tree"}},
		{"cpuinfo", map[string]string{"proc/cpuinfo": "processor: 0\nSerial\t\t: 00000000abcdef12\n"}, Identity{Serial: "00000000abcdef12", Source: "cpuinfo"}},
	}
	for _, c := range cases {
		if got := tree(t, c.files).Identity(t.Context()); got != c.want {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
	id := "0123456789abcdef0123456789abcdef"
	got := tree(t, map[string]string{"etc/machine-id": id + "\n"}).Identity(t.Context())
	if !got.Fallback || got.Source != "machine-id" || strings.Contains(got.Serial, id[:8]) || !serialPattern.MatchString(got.Serial) {
		t.Errorf("%+v", got)
	}
	if again := tree(t, map[string]string{"etc/machine-id": id}).Identity(t.Context()); again != got {
		t.Errorf("%+v, then %+v", got, again)
	}
	if got := tree(t, nil).Identity(t.Context()); !got.Fallback || got.Serial == "" {
		t.Errorf("%+v", got)
	}
}

func TestBoardWithADeviceTree(t *testing.T) {
	l := tree(t, map[string]string{
		"proc/device-tree/model": "Osprey G3\x00", "proc/device-tree/compatible": "osprey,g3\x00brcm,bcm2711\x00", "proc/device-tree/serial-number": "G3-9\x00",
		"proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 108\n\nHardware\t: BCM2711\n",
	})
	got, err := l.Inventory(t.Context())
	if err != nil || got.Machine != (wire.Machine{Vendor: "osprey", Product: "Osprey G3", Serial: "G3-9"}) || got.CPU.Model != "BCM2711" || got.OS.ID != "linux" {
		t.Errorf("%+v %v", got, err)
	}
}

func TestWhatNeedsRootIsNamed(t *testing.T) {
	if os.Geteuid() == 0 {
		// Root reads everything; the program's own test runs it as another user.
		l := tree(t, nil)
		l.note("serial number (DMI)", os.ErrPermission, dmiDir, "product_serial")
		got := l.Unavailable()
		if len(got) != 1 || got[0].Reason != "/sys/class/dmi/id/product_serial: permission denied" {
			t.Errorf("%+v", got)
		}
		return
	}
	l := tree(t, map[string]string{"sys/class/dmi/id/product_serial": "X1"})
	if err := os.Chmod(l.path(dmiDir, "product_serial"), 0); err != nil {
		t.Fatal(err)
	}
	l.Identity(t.Context())
	if got := l.Unavailable(); len(got) != 1 || !strings.Contains(got[0].Reason, "does not run as root") {
		t.Errorf("%+v", got)
	}
}

func metricsOf(t *testing.T, l *Linux) map[string]Metric {
	t.Helper()
	list, err := l.Metrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]Metric{}
	for _, m := range list {
		out[strings.TrimSpace(m.Name+" "+m.Attributes[AttrDevice]+m.Attributes[AttrDirection]+m.Attributes[AttrSensor])] = m
	}
	return out
}

func TestMetricsOfAMachineWithSensors(t *testing.T) {
	files := pc()
	for path, content := range map[string]string{
		"proc/stat":    "cpu  100 0 100 800 0 0 0 0 50 0\ncpu0 1 1 1 1\n",
		"proc/loadavg": "0.52 0.40 0.30 1/200 999\n", "proc/uptime": "1234.5 2000.0\n", "proc/self/statm": "3000 1000 500\n",
		"proc/net/dev":                              "Inter-|   Receive\n face |bytes\n    lo: 9 0 0 0 0 0 0 0 9 0\n  eth0: 1000 1 0 0 0 0 0 0 2000 1 0\n",
		"sys/class/thermal/thermal_zone0/type":      "x86_pkg_temp\n",
		"sys/class/thermal/thermal_zone0/temp":      "48500\n",
		"sys/class/thermal/thermal_zone1/temp":      "-274000\n",
		"sys/class/hwmon/hwmon0/name":               "ina219\n",
		"sys/class/hwmon/hwmon0/power1_input":       "7250000\n",
		"sys/class/power_supply/BAT0/type":          "Battery\n",
		"sys/class/power_supply/BAT0/capacity":      "83\n",
		"sys/class/powercap/intel-rapl:0/name":      "package-0\n",
		"sys/class/powercap/intel-rapl:0/energy_uj": "1000000\n",
	} {
		files[path] = content
	}
	l := tree(t, files)
	now := time.Now()
	l.now = func() time.Time { return now }
	if _, has := metricsOf(t, l)[MetricCPU]; has {
		t.Error("a rate from one sample")
	}
	now = now.Add(2 * time.Second)
	for path, content := range map[string]string{"proc/stat": "cpu  150 0 150 1000 0 0 0 0 90 0\n", "sys/class/powercap/intel-rapl:0/energy_uj": "25000000\n"} {
		if err := os.WriteFile(l.path(path), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got := metricsOf(t, l)
	for key, want := range map[string]float64{
		MetricCPU: 1.0 / 3, MetricMemoryUsage: 2_048_000_000, MetricMemoryLimit: 8_192_000_000, MetricLoad: 0.52, MetricUptime: 1234.5,
		MetricAgentMemory: float64(1000 * os.Getpagesize()), MetricNetwork + " eth0receive": 1000, MetricNetwork + " eth0transmit": 2000,
		MetricTemperature + " x86_pkg_temp": 48.5, MetricPower + " ina219 power1": 7.25, MetricBattery + " BAT0": 0.83, MetricPower + " package-0": 12,
	} {
		if m, has := got[key]; !has || math.Abs(m.Value-want) > 1e-9*math.Abs(want) {
			t.Errorf("%s is %v, want %v", key, m.Value, want)
		}
	}
	for key := range got {
		if strings.Contains(key, "thermal_zone1") || strings.HasPrefix(key, MetricNetwork+" lo") {
			t.Errorf("%s should not be there", key)
		}
	}
	if !got[MetricNetwork+" eth0receive"].Cumulative || got[MetricDiskLimit].Value <= got[MetricDiskUsage].Value {
		t.Errorf("%+v %+v", got[MetricDiskLimit], got[MetricDiskUsage])
	}
}

func TestMachineWithoutAnythingStillAnswers(t *testing.T) {
	l := tree(t, nil)
	if got, err := l.Inventory(t.Context()); err != nil || got.OS.Name == "" || got.CPU.Cores == 0 {
		t.Errorf("%+v %v", got, err)
	}
	if got, err := l.Metrics(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("%+v %v", got, err)
	}
	packages, err := l.Packages(t.Context())
	if err != nil || len(packages.Packages) != 0 {
		t.Errorf("%+v %v", packages, err)
	}
	services, err := l.Services(t.Context())
	if err != nil || services.Manager != "" {
		t.Errorf("%+v %v", services, err)
	}
	if got := fmt.Sprint(l.Unavailable()); !strings.Contains(got, "no service manager") || !strings.Contains(got, "no database of dpkg") {
		t.Errorf("%s", got)
	}
}

func TestUnchangedPackagesKeepTheirPointer(t *testing.T) {
	l := tree(t, map[string]string{"var/lib/dpkg/status": "Package: a\nVersion: 1\nStatus: install ok installed\n"})
	first, err := l.Packages(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if again, err := l.Packages(t.Context()); err != nil || again != first {
		t.Error("another pointer for the same packages", err)
	}
	if err := os.WriteFile(l.path("var/lib/dpkg/status"), []byte("Package: a\nVersion: 1.1\nStatus: install ok installed\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if changed, err := l.Packages(t.Context()); err != nil || changed == first || changed.Packages[0].Version != "1.1" {
		t.Error("the change was not seen", err)
	}
}

func TestServicesByManager(t *testing.T) {
	openRC := tree(t, map[string]string{
		"run/openrc/softlevel": "default", "etc/init.d/sshd": "", "etc/init.d/chronyd": "", "etc/init.d/modem": "",
		"etc/runlevels/default/sshd": "", "run/openrc/started/sshd": "", "run/openrc/failed/modem": "",
	})
	sysV := tree(t, map[string]string{
		"proc/1/comm": "init\n", "etc/init.d/cron": "", "etc/init.d/ssh": "", "etc/init.d/rc": "", "etc/rc2.d/S01cron": "",
		"run/sshd.pid": "77\n", "proc/77/comm": "sshd\n", "proc/78/comm": "cron\n",
	})
	cases := []struct {
		host    *Linux
		manager string
		want    []wire.Service
	}{
		{openRC, "openrc", []wire.Service{{Name: "chronyd", State: "stopped"}, {Name: "modem", State: "failed"}, {Name: "sshd", State: "running", Enabled: true}}},
		{sysV, "sysv", []wire.Service{{Name: "cron", State: "running", Enabled: true}, {Name: "ssh", State: "running"}}},
	}
	for _, c := range cases {
		got, err := c.host.Services(t.Context())
		if err != nil || got.Manager != c.manager {
			t.Fatalf("%s: %+v %v", c.manager, got, err)
		}
		if diff := cmp.Diff(c.want, got.Services); diff != "" {
			t.Errorf("%s: %s", c.manager, diff)
		}
		if again, err := c.host.Services(t.Context()); err != nil || again != got {
			t.Errorf("%s: another pointer for the same services", c.manager)
		}
	}
}

func TestSystemdListings(t *testing.T) {
	units := `  cron.service       loaded    active   running Regular background program
● modem.service      loaded    failed   failed  Modem
  network.service    loaded    active   exited  Raise
  absent.service     not-found inactive dead    absent.service
  getty@.service     loaded    inactive dead    Getty
`
	files := "cron.service enabled enabled\nmodem.service disabled enabled\nnetwork.service static -\n"
	want := []wire.Service{{Name: "cron", State: "running", Enabled: true}, {Name: "modem", State: "failed"}, {Name: "network", State: "stopped", Enabled: true}}
	if diff := cmp.Diff(want, parseSystemd(units, files)); diff != "" {
		t.Error(diff)
	}
}

func TestProcdListing(t *testing.T) {
	got, err := parseProcd([]byte(`{"dnsmasq":{"instances":{"cfg1":{"running":true}}},"boot":{}}`))
	if err != nil || !got["dnsmasq"] || got["boot"] {
		t.Errorf("%v %v", got, err)
	}
	if _, err := parseProcd([]byte("Command failed: Not found")); err == nil {
		t.Error("no error")
	}
}

func TestThisMachineIsRead(t *testing.T) {
	l := NewLinux(LinuxConfig{})
	inv, err := l.Inventory(t.Context())
	if err != nil || inv.Hostname == "" || inv.OS.Kernel == "" || inv.MemoryBytes == 0 || len(inv.Disks) == 0 {
		t.Errorf("%+v %v", inv, err)
	}
	if _, err := l.Metrics(t.Context()); err != nil {
		t.Error(err)
	}
	if free, err := l.FreeBytes(t.TempDir()); err != nil || free <= 0 {
		t.Errorf("%d %v", free, err)
	}
	if got := l.Identity(t.Context()); !serialPattern.MatchString(got.Serial) {
		t.Errorf("%+v", got)
	}
}

func TestExecReturnsOutputAndCode(t *testing.T) {
	t.Setenv("STEWARD_TOKEN", "secret")
	l := NewLinux(LinuxConfig{})
	dir := t.TempDir()
	out, code, err := l.Exec(t.Context(), dir, []string{"sh", "-c", "pwd; env; echo err >&2; exit 3"}, 10*time.Second)
	if err != nil || code != 3 || !strings.HasPrefix(string(out), dir+"\n") || !strings.Contains(string(out), "err") {
		t.Errorf("%d %v %s", code, err, out)
	}
	if strings.Contains(string(out), "secret") {
		t.Error("the program sees the agent's token")
	}
	if _, _, err := l.Exec(t.Context(), dir, []string{"/no/such/program"}, time.Second); !errors.Is(err, ErrStart) {
		t.Errorf("%v", err)
	}
	if _, _, err := l.Exec(t.Context(), dir, nil, time.Second); !errors.Is(err, ErrStart) {
		t.Errorf("%v", err)
	}
	if _, _, err := l.Exec(t.Context(), dir, []string{"sh", "-c", "kill -9 $$"}, 10*time.Second); err == nil {
		t.Error("a program that was killed passed")
	}
	out, code, err = l.Exec(t.Context(), dir, []string{"sh", "-c", "head -c 300000 /dev/zero; printf end"}, 10*time.Second)
	if err != nil || code != 0 || len(out) != MaxOutputBytes || !strings.HasSuffix(string(out), "end") {
		t.Errorf("%d bytes, %v", len(out), err)
	}
}

func TestExecKillsTheWholeGroupWhenTheTimeIsOver(t *testing.T) {
	l := NewLinux(LinuxConfig{})
	dir := t.TempDir()
	started := time.Now()
	_, _, err := l.Exec(t.Context(), dir, []string{"sh", "-c", "sleep 60 & echo $! > child; wait"}, 300*time.Millisecond)
	if !errors.Is(err, ErrTimeout) || time.Since(started) > 10*time.Second {
		t.Fatalf("%v after %s", err, time.Since(started))
	}
	raw, err := os.ReadFile(filepath.Join(dir, "child"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); alive(pid); {
		if time.Now().After(deadline) {
			t.Fatalf("child %d lives on", pid)
		}
		<-time.After(5 * time.Millisecond)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := l.Exec(ctx, dir, []string{"sleep", "60"}, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// alive leaves zombies out: in a container nobody may collect them.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

func TestCageOfTheServiceIsNotTakenForAReadOnlyMachine(t *testing.T) {
	files := pc()
	files["proc/self/mounts"] = "/dev/mmcblk0p2 / ext4 ro,relatime 0 0\n/dev/mmcblk0p1 /boot vfat ro 0 0\n"
	files["proc/self/mountinfo"] = "22 1 179:2 / / ro,relatime shared:1 - ext4 /dev/mmcblk0p2 rw,errors=remount-ro\n" +
		"23 22 179:1 / /boot ro,relatime - vfat /dev/mmcblk0p1 ro,fmask=0022\n"
	got, err := tree(t, files).Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range got.Disks {
		if d.ReadOnly != (d.Mount == "/boot") {
			t.Errorf("%s: read-only %t", d.Mount, d.ReadOnly)
		}
	}
}
