package wire

import "time"

// Inventory is the reported section of that name: what the machine is. It changes seldom; what changes
// by the minute is a metric.
type Inventory struct {
	Hostname     string      `json:"hostname"`
	Architecture string      `json:"architecture"` // GOARCH: amd64, arm64, arm, riscv64, mips…
	Machine      Machine     `json:"machine"`
	OS           OS          `json:"os"`
	CPU          CPU         `json:"cpu"`
	MemoryBytes  int64       `json:"memory_bytes"`
	Disks        []Disk      `json:"disks"`
	Interfaces   []Interface `json:"interfaces"`
	TPM          string      `json:"tpm,omitempty"`         // "2.0", "1.2" or empty
	SecureBoot   string      `json:"secure_boot,omitempty"` // "on", "off" or empty when unknown
	Unavailable  []Missing   `json:"unavailable,omitempty"`
}

// Machine is what the maker says of the hardware (DMI or device tree).
type Machine struct {
	Vendor  string `json:"vendor,omitempty"`
	Product string `json:"product,omitempty"`
	Serial  string `json:"serial,omitempty"`
	Virtual bool   `json:"virtual,omitempty"`
}

// OS is the operating system, from os-release(5) and uname(2).
type OS struct {
	ID       string `json:"id"`
	Version  string `json:"version,omitempty"`
	Name     string `json:"name"`
	Codename string `json:"codename,omitempty"`
	Kernel   string `json:"kernel"`
}

// CPU of the machine.
type CPU struct {
	Model string `json:"model,omitempty"`
	Cores int    `json:"cores"`
}

// Disk is one mounted file system or block device.
type Disk struct {
	Device     string `json:"device"`
	Mount      string `json:"mount,omitempty"`
	FileSystem string `json:"file_system,omitempty"`
	SizeBytes  int64  `json:"size_bytes"`
	ReadOnly   bool   `json:"read_only,omitempty"`
}

// Interface is one network interface without the loopback.
type Interface struct {
	Name      string   `json:"name"`
	MAC       string   `json:"mac,omitempty"`
	Addresses []string `json:"addresses,omitempty"` // CIDR
	MTU       int      `json:"mtu"`
	Up        bool     `json:"up"`
	Kind      string   `json:"kind,omitempty"` // ethernet, wifi, cellular, bridge, virtual
}

// Missing names something that the agent could not learn or do here and why, for example because it
// does not run as root.
type Missing struct {
	What   string `json:"what"`
	Reason string `json:"reason"`
}

// Packages is the reported section of that name: all installed packages of one machine, in the order
// of manager, name, architecture. Equal machines have equal bytes and share one document.
type Packages struct {
	Packages []Package `json:"packages"`
}

// Package is one installed package as its manager's database names it.
type Package struct {
	Manager       string `json:"manager"` // dpkg, apk, opkg, rpm
	Name          string `json:"name"`
	Version       string `json:"version"`
	Architecture  string `json:"architecture,omitempty"`
	Source        string `json:"source,omitempty"`         // source package, when it has another name
	SourceVersion string `json:"source_version,omitempty"` // when it differs
}

// Services is the reported section of that name: system services and whether they run.
type Services struct {
	Manager  string    `json:"manager"` // systemd, openrc, procd, sysv or empty when none was found
	Services []Service `json:"services"`
}

// Service of the machine's service manager.
type Service struct {
	Name    string `json:"name"`
	State   string `json:"state"` // running, stopped, failed
	Enabled bool   `json:"enabled"`
}

// AgentReported is the reported section "agent".
type AgentReported struct {
	Version         string    `json:"version"`
	Protocol        int       `json:"protocol"`
	Rooms           []string  `json:"rooms"` // names of the rooms that this agent has
	User            string    `json:"user"`
	Root            bool      `json:"root"`
	ReleaseTrust    string    `json:"release_trust"` // "pinned", "token" or "none": where the TUF root came from
	CertificateEnds time.Time `json:"certificate_ends"`
	Unavailable     []Missing `json:"unavailable,omitempty"`
	Problems        []string  `json:"problems,omitempty"` // e.g. a refused envelope, a section that is not understood
}
