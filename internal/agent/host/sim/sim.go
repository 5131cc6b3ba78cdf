// Package sim is a simulated machine: a fleet of gateways that differ as real ones do, deterministic
// from a seed. The agent that runs on it is the real one; only what it would learn from or do to a
// machine is made up.
package sim

import (
	"context"
	"embed"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"steward/internal/agent/host"
	"steward/internal/wire"
)

//go:embed packages/*.txt
var packageLists embed.FS

// Config of a Fleet.
type Config struct {
	// Seed makes the fleet: the same seed gives the same devices.
	Seed uint64
	// Now is the clock of all devices; nil means time.Now.
	Now func() time.Time
	// Prefix begins every serial number; "" means "SIM".
	Prefix string
}

// Fleet makes devices that share what real fleets share: package lists. It is safe for use by several
// goroutines.
type Fleet struct {
	cfg Config

	mu       sync.Mutex
	packages map[string]*wire.Packages // by system, architecture and patch level
}

// NewFleet returns an empty fleet.
func NewFleet(cfg Config) *Fleet {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Prefix == "" {
		cfg.Prefix = "SIM"
	}
	return &Fleet{cfg: cfg, packages: map[string]*wire.Packages{}}
}

// Device is one simulated machine. It is safe for use by several goroutines.
type Device struct {
	fleet    *Fleet
	model    Model
	facts    systemFacts
	seed     uint64
	serial   string
	number   int
	phase    float64 // of its day, as a share: not all are busy at the same hour
	services *wire.Services
	packages *wire.Packages
	faults   faults

	remembers, every time.Duration // see Remember
}

var _ host.Host = (*Device)(nil)

// Device makes the n-th device, counted from 0.
func (f *Fleet) Device(n int) *Device {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d/%d", f.cfg.Seed, n)
	seed := h.Sum64()
	random := rand.New(rand.NewPCG(f.cfg.Seed, seed))
	model := pick(random.IntN(100))
	d := &Device{
		fleet: f, model: model, facts: factsOf(model.system), seed: seed, number: n,
		serial: fmt.Sprintf("%s-%s-%05d", f.cfg.Prefix, strings.ToUpper(strings.SplitN(model.ID, "-", 2)[1]), n+1),
		phase:  random.Float64() * 0.2,
	}
	d.packages = f.packagesOf(d.model, random.IntN(2))
	d.services = servicesOf(d.facts)
	return d
}

func pick(percent int) Model {
	models := Models()
	for _, m := range models {
		if percent < m.share {
			return m
		}
		percent -= m.share
	}
	return models[0]
}

// Model is the device's kind.
func (d *Device) Model() Model { return d.model }

// packagesOf reads the system's list; of the two patch levels the older one lacks the newest revision
// of every seventh package, as fleets do that are not updated evenly.
func (f *Fleet) packagesOf(m Model, level int) *wire.Packages {
	facts := factsOf(m.system)
	key := fmt.Sprint(m.system, m.Architecture, level)
	f.mu.Lock()
	defer f.mu.Unlock()
	if have := f.packages[key]; have != nil {
		return have
	}
	file := map[system]string{debian: "debian12", alpine: "alpine319", openWrt: "openwrt2203"}[m.system]
	text, err := packageLists.ReadFile("packages/" + file + ".txt")
	if err != nil {
		panic(err) // the file is part of the program
	}
	list := &wire.Packages{}
	for i, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		fields := strings.Fields(line)
		p := wire.Package{Manager: facts.manager, Name: fields[0], Version: fields[1], Architecture: packageArch(m)}
		if fields[2] != "-" {
			p.Source = fields[2]
		}
		if fields[3] != "-" {
			p.SourceVersion = fields[3]
		}
		if base, _, cut := strings.Cut(p.Version, "+deb12u"); level == 1 && i%7 == 0 && cut {
			p.Version, p.SourceVersion = base, ""
		}
		list.Packages = append(list.Packages, p)
	}
	f.packages[key] = list
	return list
}

// packageArch is the name that the package manager has for the architecture.
func packageArch(m Model) string {
	switch {
	case m.system == alpine && m.Architecture == "arm":
		return "armv7"
	case m.system == openWrt:
		return "mips_24kc"
	case m.Architecture == "arm":
		return "armhf"
	}
	return m.Architecture
}

func servicesOf(facts systemFacts) *wire.Services {
	s := &wire.Services{Manager: facts.serviceManager}
	for _, name := range facts.services {
		s.Services = append(s.Services, wire.Service{Name: name, State: "running", Enabled: true})
	}
	return s
}

// Identity is the serial number on the made-up label.
func (d *Device) Identity(context.Context) host.Identity {
	return host.Identity{Serial: d.serial, Source: "simulation"}
}

// Packages is shared among all devices of one system, architecture and patch level.
func (d *Device) Packages(ctx context.Context) (*wire.Packages, error) { return d.packages, ctx.Err() }

// Services never change.
func (d *Device) Services(ctx context.Context) (*wire.Services, error) { return d.services, ctx.Err() }

// Unavailable is empty: a simulated machine shows everything.
func (d *Device) Unavailable() []wire.Missing { return nil }

// Inventory is the same at each reading.
func (d *Device) Inventory(ctx context.Context) (wire.Inventory, error) {
	m, f := d.model, d.facts
	mac := func(i int) string {
		return fmt.Sprintf("02:%02x:%02x:%02x:%02x:%02x", byte(d.seed>>24), byte(d.seed>>16), byte(d.seed>>8), byte(d.seed), i)
	}
	inv := wire.Inventory{
		Hostname: strings.ToLower(d.serial), Architecture: m.Architecture,
		Machine:     wire.Machine{Vendor: m.Vendor, Product: m.Name, Serial: d.serial},
		OS:          wire.OS{ID: f.id, Version: f.version, Name: f.name, Codename: f.codename, Kernel: f.kernel},
		CPU:         wire.CPU{Model: m.cpu, Cores: m.cores},
		MemoryBytes: m.memoryBytes,
		Disks:       []wire.Disk{{Device: f.root, Mount: "/", FileSystem: f.fileSystem, SizeBytes: m.diskBytes}},
		Interfaces: []wire.Interface{{
			Name: "eth0", MAC: mac(0), Addresses: []string{fmt.Sprintf("10.%d.%d.%d/16", 64+d.number>>16&63, d.number>>8&255, d.number&255)}, MTU: 1500, Up: true, Kind: "ethernet",
		}},
		TPM: m.tpm, SecureBoot: m.secureBoot,
	}
	if m.uplink != "" {
		name := map[string]string{"wifi": "wlan0", "cellular": "wwan0"}[m.uplink]
		inv.Interfaces = append(inv.Interfaces, wire.Interface{Name: name, MAC: mac(1), MTU: 1500, Up: true, Kind: m.uplink})
	}
	return inv, ctx.Err()
}
