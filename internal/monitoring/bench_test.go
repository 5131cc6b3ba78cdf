package monitoring

import (
	"fmt"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/sqldb/sqldbtest"
	"steward/internal/wire"
)

// BenchmarkContacts notes a contact of each of 10,000 devices and writes them, as in one busy second.
func BenchmarkContacts(b *testing.B) {
	for _, engine := range []string{sqldbtest.SQLiteEngine, sqldbtest.PostgresEngine} {
		b.Run(engine, func(b *testing.B) {
			now := &clock{t: morning}
			room, err := Open(Config{DB: sqldbtest.Open(b, engine, tables...), Dir: b.TempDir(), Now: now.now, Log: quietLog()})
			if err != nil {
				b.Fatal(err)
			}
			defer room.Close()
			devices := make([]device.Device, 10_000)
			for i := range devices {
				devices[i] = device.Device{Num: int64(i + 1), ID: device.ID(fmt.Sprintf("dev-%016d", i)), Tenant: "default"}
			}
			for b.Loop() {
				now.pass(30 * time.Second)
				for _, d := range devices {
					room.Seen(d, wire.Report{})
				}
				if err := room.flush(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(devices))*float64(b.N)/b.Elapsed().Seconds(), "contacts/s")
		})
	}
}

// BenchmarkConnections has 10,000 devices connect and writes it, as in a storm after a restart.
func BenchmarkConnections(b *testing.B) {
	for _, engine := range []string{sqldbtest.SQLiteEngine, sqldbtest.PostgresEngine} {
		b.Run(engine, func(b *testing.B) {
			now := &clock{t: morning}
			room, err := Open(Config{DB: sqldbtest.Open(b, engine, tables...), Dir: b.TempDir(), Now: now.now, Log: quietLog()})
			if err != nil {
				b.Fatal(err)
			}
			defer room.Close()
			devices := make([]device.Device, 10_000)
			for i := range devices {
				devices[i] = device.Device{Num: int64(i + 1), ID: device.ID(fmt.Sprintf("dev-%016d", i)), Tenant: "default"}
			}
			b.ReportAllocs()
			for b.Loop() {
				now.pass(30 * time.Second)
				for _, d := range devices {
					room.Connected(d, "mqtt/5", "192.0.2.1:50000")
				}
				if err := room.flush(b.Context()); err != nil {
					b.Fatal(err)
				}
				for _, d := range devices {
					room.Disconnected(d, "closed by the device")
				}
			}
			b.ReportMetric(float64(len(devices))*float64(b.N)/b.Elapsed().Seconds(), "connects/s")
		})
	}
}
