package swarm

import (
	"encoding/json"
	"fmt"
	"time"

	"steward/internal/mqtt"
	"steward/internal/wire"
)

// publish sends a message with QoS 1 on an up-topic. done is called once: when it was acknowledged, refused,
// or lost with the connection. It is not called when publish returns an error.
func (d *device) publish(name string, payload []byte, done func(error)) error {
	return d.send(mqtt.Message{Topic: wire.Topic(wire.Me, wire.TopicUp, name), Payload: payload, QoS: 1}, done)
}

func (d *device) publishJSON(name string, v any, done func(error)) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return d.publish(name, body, done)
}

func (d *device) send(m mqtt.Message, done func(error)) error {
	d.mu.Lock()
	client := d.client
	d.mu.Unlock()
	if client == nil {
		return errNotThere
	}
	return client.Send(m, done)
}

// reportOf says what a report names: nothing but the accepted epoch, or one or all of the sections.
type reportOf struct {
	sections map[wire.Section]wire.Hash
	full     bool
	mark     []byte // Correlation Data, which the answer repeats
}

// report sends what the device is.
func (d *device) report(what reportOf, done func(error)) error {
	d.mu.Lock()
	d.sequence++
	r := wire.Report{
		Protocol: wire.Protocol, Boot: d.squad.boot, Sequence: d.sequence, Instance: d.id.device, Time: time.Now(), Epoch: d.accepted,
		Full: what.full, Sections: what.sections,
	}
	d.mu.Unlock()
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return d.send(mqtt.Message{Topic: wire.Topic(wire.Me, wire.TopicUp, wire.TopicReport), Payload: body, QoS: 1, Correlation: what.mark}, done)
}

// greeting is a full report with all that follows from it.
type greeting struct {
	began   time.Time
	missing int // documents that are on their way
	done    func(began time.Time, err error)
}

// helloMark tells the answer to a greeting from those to other reports.
var helloMark = []byte("hello")

// over ends a greeting; without one it does nothing. It returns nil, the greeting that is left.
func (g *greeting) over(err error) *greeting {
	if g != nil {
		go g.done(g.began, err) // whoever calls holds the device's lock
	}
	return nil
}

// hello reports everything; done is called when the server lacks nothing more.
func (d *device) hello(done func(began time.Time, err error)) {
	d.mu.Lock()
	d.greeting = &greeting{began: time.Now(), done: done}
	d.mu.Unlock()
	d.sayHello()
}

func (d *device) sayHello() {
	if err := d.report(reportOf{sections: d.squad.docs.all, full: true, mark: helloMark}, d.stuck); err != nil {
		d.stuck(err)
	}
}

// stuck gives a greeting up when something of it has failed.
func (d *device) stuck(err error) {
	if err == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.greeting = d.greeting.over(err)
}

// answered takes the answer to a greeting's report. The answers to others say nothing that doesn't come by itself.
func (d *device) answered(body []byte) error {
	var a wire.ReportAnswer
	if err := json.Unmarshal(body, &a); err != nil {
		d.stuck(fmt.Errorf("answer to a report: %w", err))
		return nil
	}
	d.mu.Lock()
	if d.greeting == nil {
		d.mu.Unlock()
		return nil
	}
	if d.greeting.missing = len(a.Missing); len(a.Missing) == 0 {
		d.greeting = d.greeting.over(nil)
	}
	d.mu.Unlock()
	for _, hash := range a.Missing {
		if err := d.publish(wire.TopicDocument+"/"+string(hash), d.squad.docs.body[hash], d.uploaded); err != nil {
			d.stuck(err)
			return nil
		}
	}
	return nil
}

// uploaded counts the documents; after the last the report is sent again.
func (d *device) uploaded(err error) {
	if err != nil {
		d.stuck(fmt.Errorf("upload a document: %w", err))
		return
	}
	d.mu.Lock()
	again := false
	if g := d.greeting; g != nil {
		g.missing--
		again = g.missing == 0
	}
	d.mu.Unlock()
	if again {
		d.sayHello()
	}
}
