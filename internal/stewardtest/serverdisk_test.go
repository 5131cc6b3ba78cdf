package stewardtest_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"steward/internal/agent"
	"steward/internal/client"
	. "steward/internal/stewardtest" //nolint:revive // the words of these tests
)

func TestServerWithAFullDiskRefusesNewWorkAndLosesNone(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t, "192m")
	h := Start(t, Options{Dir: filepath.Join(dir, "server"), Process: true})
	devices := h.Prepare(h.API, 0, 3)
	for _, d := range devices {
		d.Tune(func(c *agent.Config) { c.ReportInterval = 300 * time.Millisecond })
		d.Start()
	}
	for _, d := range devices {
		h.AwaitStage(d.ID, "active")
	}
	kept := h.Checkpoint()
	ballast := filepath.Join(dir, "ballast")
	fill(t, ballast, 256<<20)
	acknowledged := map[string]string{}
	label := func(n int) error {
		id, value := devices[n%len(devices)].ID, fmt.Sprintf("v%d", n)
		_, err := h.Try(http.MethodPatch, "/devices/"+id, Object{"labels": Object{"written": value}})
		if err == nil {
			acknowledged[id] = value
		}
		return err
	}
	n := 0
	h.Until("the server refuses for lack of space", func() bool {
		n++
		err := label(n)
		var p *client.Problem
		if err != nil && (!errors.As(err, &p) || p.Status != http.StatusInsufficientStorage) {
			t.Errorf("a write is refused with %v", err)
		}
		return err != nil
	})
	for _, d := range devices { // what can be read is read
		if stage := h.Stage(d.ID); stage != "active" {
			t.Errorf("with a full disk %s is %q", d.ID, stage)
		}
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	freed := time.Now().UTC()
	h.Until("the server takes work again", func() bool { n++; return label(n) == nil })
	for _, d := range devices {
		if want, got := acknowledged[d.ID], h.Get("/devices/" + d.ID)["labels"].(Object)["written"]; want != "" && got != want {
			t.Errorf("device %s has %v, acknowledged was %q", d.ID, got, want)
		}
		h.Until("the devices are in contact", func() bool {
			text, _ := h.Get("/devices/" + d.ID + "/presence")["last_contact"].(string)
			at, err := time.Parse(time.RFC3339Nano, text)
			return err == nil && at.After(freed)
		})
	}
	h.Settle()
	h.StopServer()
	h.VerifyLedger(kept)
}
