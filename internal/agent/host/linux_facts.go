package host

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"steward/internal/wire"
)

func architecture() string { return runtime.GOARCH }

var serialPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/+-]{0,63}$`)

// placeholders are what board makers leave in the serial number's field.
var placeholders = []string{
	"tobefilledbyoem", "defaultstring", "none", "notspecified", "notapplicable", "na", "systemserialnumber",
	"serialnumber", "unknown", "oem", "notavailable", "empty", "invalid", "chassisserialnumber", "boardserialnumber",
}

// cleanSerial returns the number when it is one of the form that the server takes, else "".
func cleanSerial(s string) string {
	s = strings.TrimSpace(s)
	plain := strings.ToLower(strings.NewReplacer(".", "", " ", "", "-", "", "_", "").Replace(s))
	if slices.Contains(placeholders, plain) || strings.Trim(plain, "0") == "" || strings.Trim(plain, "0123456789") == "" && len(plain) < 4 || plain == "0123456789" {
		return ""
	}
	s = strings.ReplaceAll(s, " ", "-")
	if !serialPattern.MatchString(s) {
		return ""
	}
	return s
}

// deriveID hashes what machine-id(5) asks not to be shown to others.
func deriveID(secret string) string {
	mac := hmac.New(sha256.New, []byte("steward serial number"))
	mac.Write([]byte(secret))
	return hex.EncodeToString(mac.Sum(nil))[:16]
}

// cpuinfoField returns the first value of the name in /proc/cpuinfo.
func cpuinfoField(cpuinfo, name string) string {
	for line := range strings.Lines(cpuinfo) {
		key, value, ok := strings.Cut(line, ":")
		if ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// cpuOf finds the model, whose field differs by architecture, and counts the logical processors.
func cpuOf(cpuinfo string) wire.CPU {
	var cpu wire.CPU
	for line := range strings.Lines(cpuinfo) {
		key, _, _ := strings.Cut(line, ":")
		if strings.TrimSpace(key) == "processor" {
			cpu.Cores++
		}
	}
	for _, field := range []string{"model name", "cpu model", "Model", "Hardware", "uarch", "isa"} {
		if cpu.Model = cpuinfoField(cpuinfo, field); cpu.Model != "" {
			break
		}
	}
	if cpu.Cores == 0 {
		cpu.Cores = runtime.NumCPU()
	}
	return cpu
}

// osRelease reads os-release(5) and the kernel's release.
func (l *Linux) osRelease() wire.OS {
	text := l.read("", "etc/os-release")
	if text == "" {
		text = l.read("", "usr/lib/os-release")
	}
	values := map[string]string{}
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if ok && !strings.HasPrefix(key, "#") {
			values[key] = unquote(value)
		}
	}
	out := wire.OS{ID: values["ID"], Version: values["VERSION_ID"], Name: values["PRETTY_NAME"], Codename: values["VERSION_CODENAME"]}
	if out.ID == "" {
		out.ID = "linux" // the default of os-release(5)
	}
	if out.Name == "" {
		out.Name = strings.TrimSpace(values["NAME"] + " " + values["VERSION"])
	}
	if out.Name == "" {
		out.Name = "Linux"
	}
	out.Kernel = l.read("kernel release", "proc/sys/kernel/osrelease")
	return out
}

// unquote reads a shell-quoted value of os-release.
func unquote(s string) string {
	if len(s) >= 2 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0] {
		s = s[1 : len(s)-1]
	}
	return strings.NewReplacer(`\"`, `"`, `\$`, `$`, `\\`, `\`, "\\`", "`").Replace(s)
}

// machine reads what the maker says: DMI on PCs, the device tree's model on boards.
func (l *Linux) machine(cpuinfo string, identity Identity) wire.Machine {
	m := wire.Machine{
		Vendor:  l.read("", dmiDir, "sys_vendor"),
		Product: l.read("", dmiDir, "product_name"),
	}
	if m.Product == "" {
		m.Product = l.read("", "proc/device-tree/model")
		vendor, _, _ := strings.Cut(l.read("", "proc/device-tree/compatible"), ",")
		m.Vendor, _, _ = strings.Cut(vendor, "\x00")
	}
	if !identity.Fallback {
		m.Serial = identity.Serial
	}
	flags := strings.Fields(cpuinfoField(cpuinfo, "flags"))
	m.Virtual = slices.Contains(flags, "hypervisor") || slices.ContainsFunc([]string{"QEMU", "VMware", "VirtualBox", "Virtual Machine", "KVM", "Bochs"}, func(name string) bool {
		return strings.Contains(m.Vendor+" "+m.Product, name)
	})
	return m
}

// meminfo reads /proc/meminfo in bytes.
func meminfo(text string) map[string]int64 {
	out := map[string]int64{}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		if len(fields) == 0 {
			continue
		}
		if n, err := strconv.ParseInt(fields[0], 10, 64); err == nil {
			out[key] = n << 10
		}
	}
	return out
}

// storage are the file systems that hold data of the device. Network file systems are left out: asking
// a dead server for its size would block.
var storage = []string{
	"ext2", "ext3", "ext4", "xfs", "btrfs", "vfat", "exfat", "f2fs", "ubifs", "jffs2", "squashfs", "erofs",
	"overlay", "zfs", "ntfs", "ntfs3", "bcachefs", "nilfs2", "reiserfs", "iso9660",
}

type mount struct{ device, point, fileSystem, options string }

// mounts lists the mounted storage, one line per device: of several mounts (bind mounts, snapshots)
// the shortest path.
func (l *Linux) mounts() []mount {
	text := l.read("mounted file systems", "proc/self/mounts")
	if text == "" {
		text = l.read("mounted file systems", "proc/mounts")
	}
	super := l.superOptions()
	best := map[string]mount{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 4 || !slices.Contains(storage, f[2]) {
			continue
		}
		m := mount{device: unescape(f[0]), point: unescape(f[1]), fileSystem: f[2], options: f[3]}
		if options, known := super[m.point]; known {
			m.options = options
		}
		if strings.HasPrefix(m.point, "/snap/") || strings.HasPrefix(m.point, "/var/lib/docker/") || strings.HasPrefix(m.point, "/var/lib/containers/") {
			continue
		}
		if info, err := os.Stat(l.path(m.point)); l.real() && (err != nil || !info.IsDir()) {
			continue // single files are bound into containers
		}
		key := m.device
		if m.fileSystem == "overlay" {
			key += m.point
		}
		if old, has := best[key]; !has || len(m.point) < len(old.point) {
			best[key] = m
		}
	}
	out := make([]mount, 0, len(best))
	for _, m := range best {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b mount) int { return strings.Compare(a.point, b.point) })
	return out
}

// superOptions are the options of the file systems themselves by mount point, as far as the kernel tells: a
// service manager shows its services a system that only they can't write to. See proc_pid_mountinfo(5).
func (l *Linux) superOptions() map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(l.read("", "proc/self/mountinfo")) {
		f := strings.Fields(line)
		if len(f) >= 10 {
			out[unescape(f[4])] = f[len(f)-1]
		}
	}
	return out
}

// unescape reads the octal escapes of /proc/mounts (\040 is a blank).
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func (l *Linux) disks() []wire.Disk {
	disks := []wire.Disk{}
	for _, m := range l.mounts() {
		d := wire.Disk{Device: m.device, Mount: m.point, FileSystem: m.fileSystem}
		d.ReadOnly = slices.Contains(strings.Split(m.options, ","), "ro")
		var fs unix.Statfs_t
		if err := unix.Statfs(l.path(m.point), &fs); err == nil {
			d.SizeBytes = int64(fs.Blocks) * int64(fs.Bsize)
		}
		disks = append(disks, d)
	}
	return disks
}

// ARPHRD values of /sys/class/net/*/type.
const (
	arpEthernet = "1"
	arpLoopback = "772"
	arpRawIP    = "519" // cellular modems
)

// interfaces lists the network interfaces without the loopback and without the pairs of containers,
// which come and go.
func (l *Linux) interfaces() []wire.Interface {
	out := []wire.Interface{}
	dirs, err := filepath.Glob(l.path("sys/class/net/*"))
	if err != nil {
		return out
	}
	addresses := l.addresses()
	for _, dir := range dirs {
		name := filepath.Base(dir)
		kind := l.read("", "sys/class/net", name, "type")
		if kind == arpLoopback || kind == "" || strings.HasPrefix(name, "veth") {
			continue
		}
		i := wire.Interface{Name: name, Addresses: addresses[name], Kind: l.interfaceKind(name, kind)}
		if mac := l.read("", "sys/class/net", name, "address"); strings.Trim(mac, "0:") != "" {
			i.MAC = mac
		}
		i.MTU, _ = strconv.Atoi(l.read("", "sys/class/net", name, "mtu"))
		state := l.read("", "sys/class/net", name, "operstate")
		i.Up = state == "up" || state == "unknown" && len(i.Addresses) > 0
		out = append(out, i)
	}
	return out
}

func (l *Linux) interfaceKind(name, arpType string) string {
	has := func(entry string) bool {
		_, err := os.Stat(l.path("sys/class/net", name, entry))
		return err == nil
	}
	switch {
	case has("wireless"), has("phy80211"):
		return "wifi"
	case has("bridge"):
		return "bridge"
	case arpType == arpRawIP, strings.HasPrefix(name, "wwan"), has("qmi"):
		return "cellular"
	case !has("device"):
		return "virtual"
	case arpType == arpEthernet:
		return "ethernet"
	}
	return ""
}

// addresses of the running machine by interface; none for a tree of a test.
func (l *Linux) addresses() map[string][]string {
	out := map[string][]string{}
	if !l.real() {
		return out
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		l.noteReason("network addresses", err.Error())
		return out
	}
	l.noteReason("network addresses", "")
	for _, i := range interfaces {
		addrs, err := i.Addrs()
		if err != nil {
			continue // the interface has gone meanwhile
		}
		for _, a := range addrs {
			out[i.Name] = append(out[i.Name], a.String())
		}
		slices.Sort(out[i.Name])
	}
	return out
}

func (l *Linux) tpm() string {
	switch l.read("", "sys/class/tpm/tpm0/tpm_version_major") {
	case "2":
		return "2.0"
	case "1":
		return "1.2"
	}
	if caps := l.read("", "sys/class/tpm/tpm0/device/caps"); strings.Contains(caps, "TCG version: 1.2") {
		return "1.2"
	}
	return ""
}

// secureBoot reads the UEFI variable: four bytes of attributes, then 0 or 1.
func (l *Linux) secureBoot() string {
	path := []string{"sys/firmware/efi/efivars", "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"}
	data, err := os.ReadFile(l.path(path...))
	l.note("secure boot", err, path...)
	if len(data) != 5 {
		return ""
	}
	if data[4] == 1 {
		return "on"
	}
	return "off"
}
