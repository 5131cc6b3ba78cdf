package swarm

import (
	"fmt"

	"steward/internal/wire"
)

// documents are what devices report: a fleet of one model has most of them in common.
type documents struct {
	body map[wire.Hash][]byte
	all  map[wire.Section]wire.Hash    // of a full report
	sets [2]map[wire.Section]wire.Hash // which changed reports name in turn
}

// installed is how many packages a device has.
const installed = 120

// makeDocuments returns the same documents in each process.
func makeDocuments() documents {
	docs := documents{body: map[wire.Hash][]byte{}, all: map[wire.Section]wire.Hash{}}
	packages := wire.Packages{}
	for i := range installed {
		packages.Packages = append(packages.Packages, wire.Package{Manager: "dpkg", Name: fmt.Sprintf("lib-bench-%03d", i), Version: fmt.Sprintf("1.%d.0-2", i), Architecture: "arm64"})
	}
	docs.all[wire.SectionInventory] = docs.add(wire.Inventory{Hostname: "bench", Architecture: "arm64", MemoryBytes: 1 << 30})
	docs.all[wire.SectionPackages] = docs.add(packages)
	docs.all[wire.SectionAgent] = docs.add(wire.AgentReported{Version: "bench", Protocol: wire.Protocol})
	for i, state := range []string{"active", "failed"} {
		services := wire.Services{Manager: "systemd", Services: []wire.Service{{Name: "bench-gateway.service", State: state}, {Name: "ssh.service", State: "active"}}}
		docs.sets[i] = map[wire.Section]wire.Hash{wire.SectionServices: docs.add(services)}
	}
	// The second set's document has to be known as well: a section of another name holds it for ever.
	docs.all[wire.SectionServices] = docs.sets[0][wire.SectionServices]
	docs.all["bench"] = docs.sets[1][wire.SectionServices]
	return docs
}

func (docs *documents) add(v any) wire.Hash {
	body, err := wire.Canonical(v)
	if err != nil {
		panic(err) // plain data of our own types
	}
	hash := wire.HashOf(body)
	docs.body[hash] = body
	return hash
}
