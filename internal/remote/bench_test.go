package remote

import (
	"fmt"
	"log/slog"
	"testing"

	"steward/internal/device"
	"steward/internal/ledger/ledgertest"
	"steward/internal/registry"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
	"steward/internal/wire"
)

// BenchmarkCommands asks what waits for a device with nothing to do, which every poll and every connection
// does, and takes one command from its giving to its result.
func BenchmarkCommands(b *testing.B) {
	for _, engine := range []string{sqldbtest.SQLiteEngine, sqldbtest.PostgresEngine} {
		b.Run(engine, func(b *testing.B) {
			db := sqldbtest.Open(b, engine, tables...)
			events := ledgertest.New(b, db)
			reg := registry.New(registry.Config{DB: db, Ledger: events})
			room := New(Config{DB: db, Ledger: events, Devices: reg, Log: slog.New(slog.DiscardHandler), Rate: Rate{PerSecond: 1e9, Burst: 1e9}})
			h := &house{db: db, reg: reg, room: room}
			idle, busy := h.benchDevice(b), h.benchDevice(b)
			b.Run("nothing-waits", func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if list, err := room.Waiting(b.Context(), idle); err != nil || len(list) > 0 {
						b.Fatal(list, err)
					}
				}
			})
			b.Run("give-and-answer", func(b *testing.B) {
				for b.Loop() {
					c, err := room.Give(b.Context(), ada, string(busy.ID), Wish{Name: "ping"})
					if err != nil {
						b.Fatal(err)
					}
					if err := room.Result(b.Context(), busy, c.ID, wire.RemoteResult{State: wire.CommandDone}); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

func (h *house) benchDevice(b *testing.B) (d device.Device) {
	b.Helper()
	h.nr++
	err := h.db.Write(b.Context(), func(tx *sqldb.Tx) (err error) {
		d, err = h.reg.Create(b.Context(), tx, ada.Actor, device.New{Tenant: "default", Serial: fmt.Sprintf("SN-%d", h.nr), Stage: device.Staged, Reason: "test"})
		for _, to := range []device.Stage{device.Enrolled, device.Active} {
			if err == nil {
				d, err = h.reg.Move(b.Context(), tx, ada.Actor, device.Move{Num: d.Num, To: to, Reason: "test"})
			}
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return d
}
