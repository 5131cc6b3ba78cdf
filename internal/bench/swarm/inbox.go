package swarm

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"steward/internal/mqtt"
	"steward/internal/wire"
)

// receive takes a message of the server; it runs in the goroutine that reads.
func (d *device) receive(m *mqtt.Message) {
	_, direction, name, rest, ok := wire.ParseTopic(m.Topic)
	var err error
	switch {
	case !ok || direction != wire.TopicDown:
		err = fmt.Errorf("a message on %q", m.Topic)
	case name == wire.TopicDesired:
		err = d.desired(m.Payload)
	case name == wire.TopicDocument:
		err = d.document(wire.Hash(rest), m.Payload)
	case name == wire.TopicReport && bytes.Equal(m.Correlation, helloMark):
		err = d.answered(m.Payload)
	case name == wire.TopicCommand:
		err = d.command(m.Payload)
	case name == wire.TopicProblem:
		err = fmt.Errorf("problem: %.300s", m.Payload)
	}
	d.squad.note(err)
}

// desired takes a desired state: the documents that are new to the device are fetched, then it reports that it
// has accepted them. It believes the signature, which a real device verifies: the load should be the server's.
func (d *device) desired(body []byte) error {
	var envelope wire.Envelope
	var want wire.Desired
	if err := json.Unmarshal(body, &envelope); err != nil {
		return fmt.Errorf("envelope: %w", err)
	}
	if err := json.Unmarshal(envelope.Payload, &want); err != nil {
		return fmt.Errorf("desired state: %w", err)
	}
	if want.Device != d.id.device {
		return fmt.Errorf("the desired state of %s came to %s", want.Device, d.id.device)
	}
	fetch, isNew := d.accept(want)
	for _, hash := range fetch {
		if err := d.publish(wire.TopicFetch+"/"+string(hash), nil, d.squad.noteOf("fetch a document")); err != nil {
			return err
		}
	}
	if !isNew {
		return nil
	}
	return d.settle()
}

// accept notes a newer desired state and what it needs.
func (d *device) accept(want wire.Desired) (fetch []wire.Hash, isNew bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.enveloped != nil {
		close(d.enveloped)
		d.enveloped = nil
	}
	if want.Epoch <= d.epoch {
		return nil, false
	}
	d.epoch, d.next, d.lacks = want.Epoch, want.Sections, map[wire.Hash]struct{}{}
	for section, hash := range want.Sections {
		if d.have[section] == hash {
			continue
		}
		if _, twice := d.lacks[hash]; !twice {
			d.lacks[hash] = struct{}{}
			fetch = append(fetch, hash)
		}
	}
	return fetch, true
}

// document takes the body of a desired document.
func (d *device) document(hash wire.Hash, body []byte) error {
	if wire.HashOf(body) != hash {
		return fmt.Errorf("document %s has another hash", hash)
	}
	d.mu.Lock()
	_, wanted := d.lacks[hash]
	delete(d.lacks, hash)
	d.mu.Unlock()
	if !wanted {
		return nil // of a state that a newer one has replaced
	}
	return d.settle()
}

// settle reports the new epoch once all documents of the desired state are there.
func (d *device) settle() error {
	d.mu.Lock()
	if d.lacks == nil || len(d.lacks) > 0 {
		d.mu.Unlock()
		return nil
	}
	d.have, d.next, d.lacks = d.next, nil, nil
	d.accepted = d.epoch
	d.mu.Unlock()
	return d.tellAccepted()
}

// tellAccepted reports which desired state the device has, unless the server has acknowledged that already. It is
// called again after a lost connection: the report may have been lost with it.
func (d *device) tellAccepted() error {
	d.mu.Lock()
	epoch := d.accepted
	told := d.known >= epoch
	d.mu.Unlock()
	if told {
		return nil
	}
	return d.report(reportOf{}, func(err error) {
		if err != nil {
			d.squad.note(fmt.Errorf("report of a new epoch: %w", err))
			return
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.known = max(d.known, epoch)
		if d.knownAt == 0 && d.known > d.markKnown {
			d.knownAt = time.Now().UnixMicro()
		}
	})
}

// command does what a command asks: nothing but to say that it is done.
func (d *device) command(body []byte) error {
	var c wire.RemoteCommand
	if err := json.Unmarshal(body, &c); err != nil {
		return fmt.Errorf("command: %w", err)
	}
	d.squad.fact("commands")
	return d.publishJSON(wire.TopicResult+"/"+c.ID, wire.RemoteResult{State: wire.CommandDone, At: time.Now()}, d.squad.noteOf("result of a command"))
}
