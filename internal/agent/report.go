package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/user"
	"reflect"
	"strconv"
	"time"

	"steward/internal/wire"
)

// defaultReport is the time between two reports while the server has not said another.
const defaultReport = time.Minute

// reporter sends what the device is. Only its own goroutine uses it.
type reporter struct {
	agent    *Agent
	sequence int64
	full     bool // a full report of this boot was taken
	interval time.Duration
	docs     map[wire.Section]document
	acked    map[wire.Section]wire.Hash // what the server has
}

// document is a reported section. The body is encoded again when the server asks for it: keeping it
// would cost the memory of every package list of a simulated fleet.
type document struct {
	value any
	hash  wire.Hash
}

// report keeps the server informed until ctx ends: at each change, and at the latest after the
// interval.
func (a *Agent) report(ctx context.Context) error {
	r := &reporter{agent: a, docs: map[wire.Section]document{}, acked: map[wire.Section]wire.Hash{}}
	retry := a.cfg.Retry
	for ctx.Err() == nil {
		err := r.send(ctx)
		wait := r.wait()
		if ctx.Err() != nil {
			return nil
		}
		a.contacted(err)
		if err != nil { // a change does not shorten the wait, a new connection does
			wait = retry.Next(err)
			a.cfg.Log.Warn("report not taken", "error", err, "again_in", wait.Round(time.Millisecond))
			a.client.Rest(ctx, wait, err)
			continue
		}
		retry.Reset()
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-a.changed:
			sleep(ctx, settleTime) // several rooms change at once: one report for all
		}
		timer.Stop()
	}
	return nil
}

// settleTime is how long further changes are waited for before a report.
const settleTime = 50 * time.Millisecond

// wait is the time to the next report without a change, a tenth less at random.
func (r *reporter) wait() time.Duration {
	wait := defaultReport
	for _, d := range []time.Duration{r.interval, r.agent.monitoring.Interval(), r.agent.cfg.ReportInterval} {
		if d > 0 {
			wait = d // the later ones are the more specific
		}
	}
	r.agent.client.Pace(wait)
	return wait - rand.N(wait/10+1)
}

// send makes one report and uploads what the server misses; then it reports those sections again,
// since a section counts only once its body is known.
func (r *reporter) send(ctx context.Context) error {
	asked := r.agent.full.take()
	if len(asked) > 0 {
		r.full = false
	}
	err := r.deliver(ctx)
	r.agent.full.done(asked, err)
	return err
}

func (r *reporter) deliver(ctx context.Context) error {
	if err := r.collect(ctx); err != nil {
		return err
	}
	sections := r.changed()
	for range 4 {
		answer, err := r.exchange(ctx, sections)
		if err != nil {
			return err
		}
		if len(answer.Missing) == 0 {
			maps.Copy(r.acked, sections)
			return nil
		}
		if err := r.upload(ctx, answer.Missing); err != nil {
			return err
		}
	}
	return errors.New("the server keeps missing documents that were uploaded")
}

func (r *reporter) exchange(ctx context.Context, sections map[wire.Section]wire.Hash) (wire.ReportAnswer, error) {
	a := r.agent
	r.sequence++
	answer, err := a.client.Report(ctx, wire.Report{
		Protocol: wire.Protocol, Boot: a.boot, Sequence: r.sequence, Instance: a.instance, Time: a.cfg.Now().UTC(),
		Epoch: a.epoch(), Full: !r.full, Sections: sections,
	})
	if err != nil {
		return answer, err
	}
	r.interval = time.Duration(max(0, min(answer.IntervalSeconds, 86400))) * time.Second
	if len(answer.Missing) == 0 {
		r.full = true
	}
	a.newer(answer.Epoch)
	return answer, nil
}

func (r *reporter) upload(ctx context.Context, missing []wire.Hash) error {
	for _, hash := range missing {
		body, err := r.body(hash)
		if err != nil {
			return err
		}
		if err := r.agent.client.PutDocument(ctx, hash, body); err != nil {
			return err
		}
	}
	return nil
}

// body encodes the document of the hash.
func (r *reporter) body(hash wire.Hash) ([]byte, error) {
	for section, doc := range r.docs {
		if doc.hash == hash {
			body, err := wire.Canonical(doc.value)
			if err == nil && wire.HashOf(body) != hash {
				err = fmt.Errorf("section %s was changed after it was reported", section)
			}
			return body, err
		}
	}
	return nil, fmt.Errorf("the server misses document %.12s, which was not reported", hash)
}

// changed lists the sections that the server does not have in this form; in a full report all.
func (r *reporter) changed() map[wire.Section]wire.Hash {
	out := map[wire.Section]wire.Hash{}
	for section, doc := range r.docs {
		if !r.full || r.acked[section] != doc.hash {
			out[section] = doc.hash
		}
	}
	return out
}

// collect asks the rooms. A room that can't tell keeps its last section.
func (r *reporter) collect(ctx context.Context) error {
	a := r.agent
	for _, room := range a.rooms {
		sections, err := room.Reported(ctx)
		text := ""
		if err != nil {
			text = fmt.Sprintf("room %s can't report: %v", room.Name(), err)
		}
		a.problems.set("report "+room.Name(), text)
		for section, value := range sections {
			if err := r.keep(section, value); err != nil {
				return err
			}
		}
	}
	a.gatherProblems()
	return r.keep(wire.SectionAgent, a.reported())
}

// keep encodes a section unless it is the very value of before.
func (r *reporter) keep(section wire.Section, value any) error {
	if old, has := r.docs[section]; has && samePointer(old.value, value) {
		return nil
	}
	body, err := wire.Canonical(value)
	if err != nil {
		return fmt.Errorf("encode section %s: %w", section, err)
	}
	if len(body) > wire.MaxDocumentBytes {
		r.agent.problems.set("size "+string(section), fmt.Sprintf("section %s has %d bytes, at most %d: it is not reported", section, len(body), wire.MaxDocumentBytes))
		return nil
	}
	r.agent.problems.set("size "+string(section), "")
	r.docs[section] = document{value, wire.HashOf(body)}
	if section == wire.SectionUpdate {
		r.agent.status.setUpdate(body)
		r.agent.tellUpdates(value)
	}
	return nil
}

// samePointer tells whether both are one and the same value: a room promises not to change what it has
// returned.
func samePointer(a, b any) bool {
	va, vb := reflect.ValueOf(a), reflect.ValueOf(b)
	return va.Kind() == reflect.Pointer && vb.Kind() == reflect.Pointer && va.Type() == vb.Type() && va.Pointer() == vb.Pointer()
}

// reported is the agent's own section.
func (a *Agent) reported() wire.AgentReported {
	out := wire.AgentReported{
		Version: a.cfg.Version, Protocol: wire.Protocol, Rooms: a.roomNames(), User: userName(), Root: os.Geteuid() == 0,
		ReleaseTrust: a.releaseTrust, Unavailable: a.cfg.Host.Unavailable(), Problems: a.problems.list(),
	}
	if identity := a.provisioning.Identity(); identity != nil {
		out.CertificateEnds = identity.Certificate.NotAfter.UTC()
	}
	return out
}

// userName falls back to the number: small images have no /etc/passwd.
func userName() string {
	if u, err := user.Current(); err == nil && u.Username != "" {
		return u.Username
	}
	return strconv.Itoa(os.Geteuid())
}
