package sim

import "time"

// Model is a kind of gateway that the fleet simulates. Names of makers are invented.
type Model struct {
	ID           string // as purchase names it
	Vendor, Name string
	Architecture string // GOARCH
	system       system
	cpu          string
	cores        int
	memoryBytes  int64
	diskBytes    int64
	tpm          string
	secureBoot   string
	uplink       string  // kind of the second interface: wifi, cellular or empty
	watts        float64 // at rest; 0 when it has no meter
	battery      bool
	share        int // how many of a hundred devices are of this model
}

// system is what is installed; machines of one system share one package document.
type system int

const (
	debian system = iota
	alpine
	openWrt
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

// Models lists the kinds of gateways, the most frequent first.
func Models() []Model {
	return []Model{
		{
			ID: "kestrel-e240", Vendor: "Kestrel Industrial", Name: "E240 Edge Computer", Architecture: "amd64", system: debian,
			cpu: "Intel Atom x6413E", cores: 4, memoryBytes: 8 * gib, diskBytes: 128 * gib, tpm: "2.0", secureBoot: "on", watts: 11, share: 40,
		},
		{
			ID: "osprey-g3", Vendor: "Osprey Systems", Name: "Gateway G3", Architecture: "arm64", system: debian,
			cpu: "Cortex-A72", cores: 4, memoryBytes: 4 * gib, diskBytes: 32 * gib, tpm: "2.0", uplink: "cellular", watts: 5, share: 30,
		},
		{
			ID: "wren-m1", Vendor: "Wren Automation", Name: "M1 Modbus Gateway", Architecture: "arm", system: alpine,
			cpu: "Cortex-A7", cores: 1, memoryBytes: 512 * mib, diskBytes: 4 * gib, uplink: "wifi", battery: true, share: 20,
		},
		{
			ID: "swift-r7", Vendor: "Swift Networks", Name: "R7 Cellular Router", Architecture: "mips", system: openWrt,
			cpu: "Qualcomm Atheros QCA9531", cores: 1, memoryBytes: 256 * mib, diskBytes: 128 * mib, uplink: "cellular", share: 10,
		},
	}
}

type systemFacts struct {
	manager                             string
	id, version, name, codename, kernel string
	serviceManager                      string
	services                            []string
	root, fileSystem                    string
	dayZero                             time.Time // when the image was made: the uptime counts from there
}

func factsOf(s system) systemFacts {
	day := time.Date(2025, 9, 1, 4, 0, 0, 0, time.UTC)
	switch s {
	case alpine:
		return systemFacts{
			manager: "apk", id: "alpine", version: "3.19.1", name: "Alpine Linux v3.19", kernel: "6.6.14-0-lts", serviceManager: "openrc",
			services: []string{"chronyd", "dropbear", "mosquitto", "networking", "syslog"}, root: "/dev/mmcblk0p2", fileSystem: "ext4", dayZero: day,
		}
	case openWrt:
		return systemFacts{
			manager: "opkg", id: "openwrt", version: "22.03.4", name: "OpenWrt 22.03.4", kernel: "5.10.176", serviceManager: "procd",
			services: []string{"dnsmasq", "dropbear", "firewall", "log", "network"}, root: "/dev/ubi0_1", fileSystem: "ubifs", dayZero: day,
		}
	}
	return systemFacts{
		manager: "dpkg", id: "debian", version: "12", name: "Debian GNU/Linux 12 (bookworm)", codename: "bookworm", kernel: "6.1.0-18", serviceManager: "systemd",
		services: []string{"cron", "dbus", "mosquitto", "ssh", "systemd-journald", "systemd-networkd", "systemd-timesyncd"}, root: "/dev/mmcblk0p2", fileSystem: "ext4", dayZero: day,
	}
}
