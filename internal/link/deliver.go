package link

import (
	"bytes"
	"encoding/json"
	"strings"
	"sync"
	"time"

	"steward/internal/mqtt"
	"steward/internal/wire"
)

// message is something for the device.
type message struct {
	name        downName
	rest        string // what follows the name in the topic
	payload     []byte
	correlation []byte
}

// Desired states and commands go out with QoS 1, when they were subscribed to so. Answers go out with QoS 0:
// who has lost one with its connection asks again, an acknowledgement of each would double the packets, and
// a device that handles a desired state before it acknowledges it gets the documents that it fetches
// meanwhile.

// queueMost bounds the commands that wait for the device's acknowledgement of those before.
const queueMost = 32

// writeMost is how much is written at a time, in bytes; a larger message goes alone.
const writeMost = 64 << 10

// say writes a packet that nothing holds back, such as an acknowledgement. It waits for the peer.
func (ss *session) say(p *mqtt.Packet) error {
	if err := ss.note(p); err != nil {
		return err
	}
	return ss.flush()
}

// note puts a packet in front of what is written next.
func (ss *session) note(p *mqtt.Packet) error {
	p.ProtocolVersion = ss.version
	p.Mods.DisallowProblemInfo = ss.taciturn && p.FixedHeader.Type != mqtt.TypeConnack
	p.Mods.MaxSize = uint32(ss.mostBytes)
	ss.mu.Lock()
	defer ss.mu.Unlock()
	buf := bytes.NewBuffer(ss.control)
	if err := mqtt.Append(buf, p); err != nil {
		return err
	}
	ss.control = buf.Bytes()
	return nil
}

// reply puts an answer behind the acknowledgement that is written next, if the device has subscribed to such.
func (ss *session) reply(m message) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	buf := bytes.NewBuffer(ss.answers)
	ss.encode(buf, m, 0)
	ss.answers = buf.Bytes()
}

// flush writes what may be written now. It waits for another writer, and for the peer at most writeTime or
// as long as for a piece of a body.
func (ss *session) flush() error {
	ss.writes.Lock()
	return ss.write(min(writeTime, ss.s.cfg.BodyTimeout))
}

// tryFlush is flush for who must not wait: when another goroutine writes, that one writes this too.
func (ss *session) tryFlush(patience time.Duration) {
	for ss.ready() && ss.writes.TryLock() {
		_ = ss.write(patience)
	}
}

// write writes until nothing is left that may be written, and gives up writes.
func (ss *session) write(patience time.Duration) (err error) {
	buf := writeBuffers.Get().(*bytes.Buffer)
	for {
		buf.Reset()
		if ss.collect(buf); buf.Len() == 0 {
			break
		}
		_ = ss.conn.SetWriteDeadline(time.Now().Add(patience))
		if _, err = ss.stream.Write(buf.Bytes()); err != nil {
			break
		}
	}
	if buf.Cap() <= writeMost {
		writeBuffers.Put(buf)
	}
	ss.writes.Unlock()
	if err != nil {
		ss.close("the device did not take what was sent", mqtt.Success)
		return err
	}
	if ss.ready() { // something came while writes was held, from one who did not wait
		ss.tryFlush(patience)
	}
	return nil
}

// ready tells whether flush would write something.
func (ss *session) ready() bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.ended != "" {
		return false
	}
	return len(ss.control)+len(ss.answers) > 0 || ((len(ss.queue) > 0 || ss.pending != nil) && len(ss.onWay) < ss.window)
}

// collect encodes what may be sent now: control packets and answers, then commands as long as the device has
// room for them, last the desired state, of which only the newest counts.
func (ss *session) collect(buf *bytes.Buffer) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.ended != "" {
		return
	}
	buf.Write(ss.control)
	buf.Write(ss.answers)
	ss.control, ss.answers = nil, nil
	for len(ss.queue) > 0 && len(ss.onWay) < ss.window && buf.Len() < writeMost {
		m := ss.queue[0]
		if ss.queue = ss.queue[1:]; len(ss.queue) == 0 {
			ss.queue = nil
		}
		ss.encode(buf, m, 1)
	}
	if p := ss.pending; p != nil && len(ss.queue) == 0 && len(ss.onWay) < ss.window && buf.Len() < writeMost {
		ss.pending = nil
		ss.epoch = p.Epoch
		ss.encode(buf, message{name: downDesired, payload: p.Envelope}, 1)
	}
}

// encode appends a PUBLISH with the given QoS or the granted one, whichever is lower (section 3.8.4). What is
// not subscribed to, or too large for the client, is dropped.
func (ss *session) encode(buf *bytes.Buffer, m message, qos byte) {
	granted, form, ok := ss.subs.find(m.name, m.rest)
	if !ok {
		return
	}
	qos = min(qos, granted)
	who := wire.Me
	if form == 1 {
		who = string(ss.id)
	}
	name := downTopics[m.name]
	if m.rest != "" {
		name += "/" + m.rest
	}
	p := mqtt.Packet{ProtocolVersion: ss.version, TopicName: wire.Topic(who, wire.TopicDown, name), Payload: m.payload}
	p.FixedHeader.Type, p.FixedHeader.Qos = mqtt.TypePublish, qos
	p.Properties.CorrelationData = m.correlation
	if size := len(p.TopicName) + len(m.payload) + len(m.correlation) + 16; size > ss.mostBytes {
		return
	}
	if qos > 0 {
		p.PacketID = ss.nextID()
		ss.onWay = append(ss.onWay, p.PacketID)
	}
	_ = mqtt.Append(buf, &p) // fails only without a packet identifier
}

// nextID returns an identifier that isn't on its way.
func (ss *session) nextID() uint16 {
	for {
		ss.lastID++
		if ss.lastID != 0 && !contains(ss.onWay, ss.lastID) {
			return ss.lastID
		}
	}
}

// writeBuffers are for what is written; a session that is idle has none.
var writeBuffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

func contains(ids []uint16, id uint16) bool {
	for _, other := range ids {
		if other == id {
			return true
		}
	}
	return false
}

// without returns ids without id, nil when nothing is left, and whether it was there.
func without(ids []uint16, id uint16) ([]uint16, bool) {
	for i, other := range ids {
		if other == id {
			if len(ids) == 1 {
				return nil, true
			}
			return append(ids[:i], ids[i+1:]...), true
		}
	}
	return ids, false
}

// offer gives the session a desired state; it is sent when it is newer than the last.
func (ss *session) offer(sealed wire.Sealed) {
	ss.mu.Lock()
	newer := sealed.Epoch > ss.epoch && (ss.pending == nil || sealed.Epoch > ss.pending.Epoch) && ss.subs.wants(downDesired)
	if newer {
		ss.pending = &sealed
	}
	ss.mu.Unlock()
	if newer {
		ss.tryFlush(pushTime)
	}
}

// command gives the session the commands that wait for its device; those that it has been sent are left
// out, and those that no longer wait are forgotten.
func (ss *session) command(waiting []wire.RemoteCommand) {
	ss.mu.Lock()
	ss.more = false
	sent := make(map[string]struct{}, len(waiting))
	var fresh []message
	for _, c := range waiting {
		if _, has := ss.commands[c.ID]; !has && len(ss.queue)+len(fresh) >= queueMost {
			ss.more = true // looked for again when there is room
			continue
		} else if !has {
			payload, _ := json.Marshal(c) // its parts were JSON before
			fresh = append(fresh, message{name: downCommand, payload: payload})
		}
		sent[c.ID] = struct{}{}
	}
	if ss.commands = sent; len(sent) == 0 {
		ss.commands = nil
	}
	if ss.subs.wants(downCommand) {
		ss.queue = append(ss.queue, fresh...)
	} else {
		ss.commands = nil
	}
	ss.mu.Unlock()
	ss.tryFlush(pushTime)
}

// problem tells the device on down/problem why a message was refused.
func (ss *session) problem(topic string, correlation []byte, p wire.Problem) {
	payload, _ := json.Marshal(wire.MessageProblem{Problem: p, Topic: strings.ToValidUTF8(topic, "")}) // strings and numbers only
	ss.reply(message{name: downProblem, payload: payload, correlation: correlation})
}
