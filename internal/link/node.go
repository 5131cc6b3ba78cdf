package link

import (
	"encoding/json"
	"errors"
	"strconv"
	"time"

	"steward/internal/fault"
	"steward/internal/mqtt"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// What the bus carries for the link.
const (
	// RevokedSubject carries the decimal number of a device whose certificates were revoked.
	RevokedSubject = "provisioning.revoked"
	// ChangedSubject carries the decimal number of a device that Identify may see with other eyes now:
	// its stage, its tenant or its certificates have changed.
	ChangedSubject = "device.changed"
	// takeOverSubject carries a takeOver.
	takeOverSubject = "link.takeover"
)

// takeOver tells the other nodes that a device has a new session, so that an old one with the same client
// identifier ends: the device has moved, and nobody has noticed the old connection's end.
type takeOver struct {
	Node   string `json:"node"`
	Num    int64  `json:"num"`
	Client string `json:"client"`
}

// youngTime is how long a session withstands a message of another node: of two that begin at the same
// moment on two nodes, one should stay.
const youngTime = 2 * time.Second

func (s *Server) tellTakeOver(ss *session) {
	data, _ := json.Marshal(takeOver{s.node, ss.conn.num, ss.clientID}) // a struct of strings
	if err := s.cfg.Bus.Publish(takeOverSubject, data); err != nil {
		s.cfg.Log.Warn("link: other nodes don't know of a new session", "error", err)
	}
}

func (s *Server) takenOver(data []byte) {
	var t takeOver
	if err := json.Unmarshal(data, &t); err != nil || t.Node == s.node {
		return
	}
	for _, ss := range s.doors.sessionsOf(t.Num) {
		if ss.clientID == t.Client && (time.Since(ss.opened) > youngTime || s.node < t.Node) {
			ss.close("another connection with the same client identifier, on another node", mqtt.SessionTakenOver)
		}
	}
}

// subscribe listens to the bus; cancel ends it.
func (s *Server) subscribe() (cancel func(), err error) {
	var cancels []func()
	cancel = func() {
		for _, c := range cancels {
			c()
		}
	}
	for subject, handle := range map[string]func([]byte){RevokedSubject: s.revoked, ChangedSubject: s.changed, takeOverSubject: s.takenOver} {
		c, err := s.cfg.Bus.Subscribe(subject, func(_ string, data []byte) { handle(data) })
		if err != nil {
			cancel()
			return nil, err
		}
		cancels = append(cancels, c)
	}
	cancels = append(cancels, s.cfg.Changes.Watch(s.push.desired))
	if s.cfg.Commands != nil {
		cancels = append(cancels, s.cfg.Commands.Watch(func(num int64) {
			s.push.command(num)
			s.polls.tell(num)
		}))
	}
	return cancel, nil
}

func (s *Server) revoked(data []byte) {
	num, err := strconv.ParseInt(string(data), 10, 64)
	if err != nil {
		s.cfg.Log.Error("link: a revocation that names no device", "data", string(data))
		return
	}
	s.who.drop(num)
	sessions := s.doors.sessionsOf(num)
	n := s.doors.revoke(num) + len(sessions)
	for _, ss := range sessions {
		ss.close("the device's certificates were revoked", mqtt.AdministrativeAction)
	}
	if n > 0 {
		s.cfg.Log.Info("link: closed connections of a revoked device", "device.num", num, "connections", n)
	}
}

func (s *Server) changed(data []byte) {
	if num, err := strconv.ParseInt(string(data), 10, 64); err == nil {
		s.who.drop(num)
		s.push.judge(num)
	}
}

// spread is over how many seconds this node asks its devices to spread their coming back: as many as it
// takes when backPerSecond come at a time.
func (s *Server) spread() int {
	return min(max(s.doors.devices()/backPerSecond, 1), maxSpread)
}

const (
	backPerSecond = 400 // connections that a small node takes in one second beside its other work
	maxSpread     = 600
)

// reconnect is the user property that says so.
func (s *Server) reconnect() []mqtt.UserProperty {
	return []mqtt.UserProperty{{Key: wire.UserPropertyReconnect, Val: strconv.Itoa(s.spread())}}
}

// codeProperty is the user property of a refusal for programs, if it has a code.
func codeProperty(err error) []mqtt.UserProperty {
	if known, ok := errors.AsType[*fault.Error](err); ok && known.Code != "" {
		return []mqtt.UserProperty{{Key: wire.UserPropertyCode, Val: known.Code}}
	}
	return nil
}

// epochProperty is the epoch that a device says it has; 0 when it says nothing of use.
func epochProperty(list []mqtt.UserProperty) int64 {
	n, err := strconv.ParseInt(mqtt.Property(list, wire.UserPropertyEpoch), 10, 64)
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// reasonText is what a device may read of an error.
func (s *Server) reasonText(err error) string {
	if known, ok := errors.AsType[*fault.Error](err); ok {
		return known.Detail
	}
	if e, ok := errors.AsType[*mqtt.PacketError](err); ok {
		return e.Detail
	}
	s.cfg.Log.Error("link: a device could not be identified", "error", err)
	return "something went wrong on the server; its log has the details"
}

// farewellReason is the reason of a DISCONNECT for a device that may not speak any more.
func farewellReason(err error) mqtt.Reason {
	if known, ok := errors.AsType[*fault.Error](err); ok && (known.Code == wire.CodeRevoked || known.Code == wire.CodeDecommissioned) {
		return mqtt.AdministrativeAction
	}
	return mqtt.NotAuthorized
}

func isFull(err error) bool { return sqldb.IsFull(err) }
